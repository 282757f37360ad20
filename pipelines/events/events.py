"""What happens in one run of a study, said in one place to whoever listens: structured logs, metrics."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Event = Mapping[str, Any]
"""`event`, its name; `time` in seconds since the epoch; `study`; `stage`, "" outside of one; and what the name brings
(docs/operate.md has the table)."""

Listener = Callable[[Event], None]


class Events:
    """Hands events to listeners, which may come and go. They may be told from any thread.

    One that raises is dropped with a line to `say`, for a search outlives its logs. watched: what can be looked at now
    and then, by name, such as how many workers are busy.
    """

    def __init__(self, study: str = "", say: Callable[[str], None] = lambda line: None) -> None:
        self.study = study
        self.watched: dict[str, Callable[[], float]] = {}
        self.say = say
        self._stage = ""
        self._listeners: list[Listener] = []

    def tell(self, event: str, **data: Any) -> None:
        """One event, now."""
        record = {"time": time.time(), "study": self.study, "stage": self._stage, "event": event, **data}
        for listener in tuple(self._listeners):
            try:
                listener(record)
            except Exception as error:  # noqa: BLE001 - whatever a log or a metric raises, the search goes on
                self._drop(listener)
                self.say(f"no more events for {_name(listener)}: {type(error).__name__}: {error}")

    @contextmanager
    def heard_by(self, listener: Listener) -> Iterator[None]:
        """Tells the listener what happens within."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._drop(listener)

    @contextmanager
    def run(self, **data: Any) -> Iterator[None]:
        """One run of the study, and how it ended."""
        start = time.monotonic()
        self.tell("study_begins", **data)
        status, reason = "failed", ""
        try:
            yield
            status = "finished"
        except (KeyboardInterrupt, SystemExit) as stopped:
            status, reason = "stopped", str(stopped) or "interrupted"
            raise
        except BaseException as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[-1] if lines else type(error).__name__  # the last line of a traceback says why
            raise
        finally:
            seconds = round(time.monotonic() - start, 3)
            self.tell("study_ends", status=status, seconds=seconds, **({"reason": reason} if reason else {}))

    def on_stage(self, name: str, seconds: float | None) -> None:
        """A stage begins (seconds: None) or has ended."""
        if seconds is None:
            self._stage = name
            self.tell("stage_begins")
        else:
            self.tell("stage_ends", seconds=round(seconds, 3))
            self._stage = ""

    def on_outage(self, store: str) -> Callable[[str], None]:
        """What a store, `tracking` or `artifacts`, calls with the reason when it does not answer."""
        return lambda why: self.tell("outage", store=store, reason=why)

    def on_journal(self, record: Mapping[str, Any]) -> None:
        """What was written to the study's journal, where it is of interest."""
        if (found := from_journal(record)) is not None:
            name, data = found
            self.tell(name, **data)

    def _drop(self, listener: Listener) -> None:
        self._listeners = [other for other in self._listeners if other is not listener]


def from_journal(record: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The name and the data of the event that a line of a journal is; None for one that says nothing of the run."""
    data = {k: v for k, v in record.items() if k not in ("event", "time", "outcome", "key", "name")}
    candidate = record.get("key", record.get("name"))
    if candidate is not None:
        data["candidate"] = candidate
    outcome = record.get("outcome", {})
    if "failure" in outcome:
        return "failed", data | {"kind": outcome["failure"], "reason": outcome["reason"]}
    if "values" in outcome:
        data["values"] = outcome["values"]
    match record["event"]:
        case "asked":
            return None
        case "told":
            return "scored", data
        case "stopped":
            return "stopped_early", data
        case "promoted":
            return "promoted", {"count": len(record["candidates"])}
        case "warm_start":
            return "warm_start", {}
        case name:
            return str(name), data


def _name(listener: Listener) -> str:
    return str(getattr(listener, "__name__", type(listener).__name__))
