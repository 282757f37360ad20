"""Events as standard logging, and logging as one line of JSON per event."""

import json
import logging
import logging.handlers
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from prunefront.errors import PrunefrontError
from prunefront.pipelines.events.events import Event
from prunefront.pipelines.events.redaction import redacted

ROOT = "prunefront"
STDOUT = "-"

WARNINGS = ("failed", "worker_lost", "outage")
LEVELS = {"failed": logging.ERROR, "stopped": logging.WARNING}
"""By how a run ended."""

LOGGERS = {
    "study": ("study_begins", "study_ends", "stage_begins", "stage_ends", "said", "partial_front"),
    "candidates": ("scored", "trained", "failed", "stopped_early", "rung", "promoted", "progress"),
    "cluster": ("worker_lost", "joined"),
    "stores": ("outage", "tracking"),
}
"""Part of the logger's name -> its events; all others are `prunefront.study`'s."""

_PART = {event: part for part, events in LOGGERS.items() for event in events}

logging.getLogger(ROOT).addHandler(logging.NullHandler())


def to_logging(event: Event) -> None:
    """A listener: each event is a record of the logger `prunefront.<part>`."""
    name = event["event"]
    logger = logging.getLogger(f"{ROOT}.{_PART.get(name, 'study')}")
    level = logging.WARNING if name in WARNINGS else LEVELS.get(event.get("status", ""), logging.INFO)
    if logger.isEnabledFor(level):
        words = [name, event.get("candidate", event["stage"]), event.get("reason", event.get("line", ""))]
        logger.log(level, " ".join(filter(None, map(str, words))), extra={"prunefront": dict(event)})


class JsonFormatter(logging.Formatter):
    """One line of JSON: time (UTC), level, logger, and the fields of the event; of other records, their message."""

    def format(self, record: logging.LogRecord) -> str:
        data = dict(getattr(record, ROOT, {"event": "log", "message": record.getMessage()}))
        moment = datetime.fromtimestamp(data.pop("time", record.created), UTC)
        if record.exc_info:
            data["traceback"] = self.formatException(record.exc_info)
        line = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **{name: value for name, value in data.items() if value != ""},
        }
        return json.dumps(redacted(line), default=str)


def wanted(option: str | None) -> str | None:
    """Where lines of JSON go: what the command line says, else `PRUNEFRONT_LOG=json`, which is stdout; None = nowhere.

    Raises PrunefrontError for another value of the variable.
    """
    if option is not None:
        return option
    asked = os.environ.get("PRUNEFRONT_LOG", "text")
    if asked not in ("json", "text", ""):
        raise PrunefrontError(f"PRUNEFRONT_LOG={asked} is not a form of log; possible: json, text")
    return STDOUT if asked == "json" else None


@contextmanager
def json_lines(target: str | None) -> Iterator[None]:
    """Within, events go to `target` as lines of JSON: a file that is added to, or `-` for stdout; None = nowhere.

    Raises PrunefrontError for a file that cannot be written.
    """
    logger = logging.getLogger(ROOT)
    level, propagates = logger.level, logger.propagate
    handler = _handler(target)
    logger.propagate = False  # a library that configures the root logger would print each event once more
    if target is not None:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
        with suppress(OSError):  # a full disk refuses again what it refused before, and that was said
            handler.close()


def _handler(target: str | None) -> logging.Handler:
    if target is None:
        return logging.NullHandler()
    handler: logging.Handler
    if target == STDOUT:
        handler = _Stream(sys.stdout)
    else:
        try:
            Path(target).absolute().parent.mkdir(parents=True, exist_ok=True)
            handler = _File(target, encoding="utf-8")
        except OSError as error:
            raise PrunefrontError(
                f"--log-json {target}: {error.strerror}; name a file that can be written, or - for stdout"
            ) from error
    handler.setFormatter(JsonFormatter())
    return handler


class _Once:
    """logging prints a traceback for each line that a full disk refuses; here the first is told to `Events`."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # logging calls this within its `except`


class _Stream(_Once, logging.StreamHandler):  # type: ignore[type-arg]
    """Of this process."""


class _File(_Once, logging.handlers.WatchedFileHandler):
    """Goes on in a new file when the old one was moved away, as log rotation does."""
