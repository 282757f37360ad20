"""Events of one run of a study, and the one place that hands them to listeners, such as logs and metrics."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Event = Mapping[str, Any]
"""Fields of an event: `event`, its name; `time` in seconds since the epoch; `study`; `stage`, "" outside of one; and
those that belong to the name (docs/operate.md has the table)."""

Listener = Callable[[Event], None]
"""Function that takes every event, in the thread that reports it."""


class Events:
    """Hands events to listeners, which may come and go. Any thread may report an event.

    A listener that raises is dropped with a line to `say`, because a search outlives its logs. watched: functions that
    return a current figure, by its name, such as the number of busy workers; metrics read them now and then.
    """

    def __init__(self, study: str = "", say: Callable[[str], None] = lambda line: None) -> None:
        self.study = study
        self.watched: dict[str, Callable[[], float]] = {}
        self.say = say
        self._stage = ""
        self._listeners: list[Listener] = []

    def report(self, event: str, **data: Any) -> None:
        """Hands an event of this moment to every listener."""
        record = {"time": time.time(), "study": self.study, "stage": self._stage, "event": event, **data}
        for listener in tuple(self._listeners):
            try:
                listener(record)
            except Exception as error:  # noqa: BLE001 - whatever a log or a metric raises, the search continues
                self._drop(listener)
                self.say(f"events are no longer passed to {_name(listener)}: {type(error).__name__}: {error}")

    @contextmanager
    def attach(self, listener: Listener) -> Iterator[None]:
        """Hands the listener every event within."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._drop(listener)

    @contextmanager
    def run(self, **data: Any) -> Iterator[None]:
        """Reports the begin of a run of the study, and its end with status, seconds and reason. data: of the begin."""
        start = time.monotonic()
        self.report("study_begins", **data)
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
            self.report(
                "study_ends", status=status, seconds=seconds, **({"reason": reason} if reason else {})
            )

    def on_stage(self, name: str, seconds: float | None) -> None:
        """Reports that a stage begins (seconds: None), or that it has ended after so many seconds."""
        if seconds is None:
            self._stage = name
            self.report("stage_begins")
        else:
            self.report("stage_ends", seconds=round(seconds, 3))
            self._stage = ""

    def on_outage(self, store: str) -> Callable[[str], None]:
        """Returns the function that a store calls with the reason when it does not answer.

        store: `tracking` or `artifacts`.
        """
        return lambda why: self.report("outage", store=store, reason=why)

    def on_journal(self, record: Mapping[str, Any]) -> None:
        """Reports a record of the study's journal, unless it says nothing of the run."""
        if (event := from_journal(record)) is not None:
            name, data = event
            self.report(name, **data)

    def _drop(self, listener: Listener) -> None:
        self._listeners = [other for other in self._listeners if other is not listener]


def from_journal(record: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Returns name and data of the event that a journal's record is; None for one that says nothing of the run."""
    data = {k: v for k, v in record.items() if k not in ("event", "time", "outcome", "key", "name", "parts")}
    candidate = record.get("key", record.get("name"))
    if candidate is not None:
        data["candidate"] = candidate
    outcome = record.get("outcome", {})
    if "failure" in outcome:
        return "failed", data | {"kind": outcome["failure"], "reason": outcome["reason"]}
    if "values" in outcome:
        data["values"] = outcome["values"]
    match record["event"]:
        case "asked" | "versions":
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
