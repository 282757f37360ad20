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
from prunefront.pipelines.events.redaction import redact

ROOT = "prunefront"
"""Logger above all of ours."""

STDOUT = "-"
"""Name of standard output in place of a file."""

WARNINGS = ("failed", "worker_lost", "outage")
"""Events that are logged as warnings."""

LEVELS = {"failed": logging.ERROR, "stopped": logging.WARNING}
"""Status of a run that ended -> its level; all others are information."""

LOGGERS = {
    "study": ("study_begins", "study_ends", "stage_begins", "stage_ends", "said", "partial_front"),
    "candidates": ("scored", "trained", "failed", "stopped_early", "rung", "promoted", "progress"),
    "cluster": ("worker_lost", "joined"),
    "stores": ("outage", "tracking"),
}
"""Part of the logger's name -> its events; all others belong to `prunefront.study`."""

_PART = {event: part for part, events in LOGGERS.items() for event in events}

logging.getLogger(ROOT).addHandler(logging.NullHandler())


def to_logging(event: Event) -> None:
    """Logs an event as a record of the logger `prunefront.<part>`. A listener of `Events`."""
    name = event["event"]
    logger = logging.getLogger(f"{ROOT}.{_PART.get(name, 'study')}")
    level = logging.WARNING if name in WARNINGS else LEVELS.get(event.get("status", ""), logging.INFO)
    if logger.isEnabledFor(level):
        words = [name, event.get("candidate", event["stage"]), event.get("reason", event.get("line", ""))]
        logger.log(level, " ".join(filter(None, map(str, words))), extra={"prunefront": dict(event)})


class JsonFormatter(logging.Formatter):
    """Writes one line of JSON a record: time (UTC), level, logger, and the event's fields, or else the message."""

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
        return json.dumps(redact(line), default=str)


def log_target(option: str | None) -> str | None:
    """Returns the place that lines of JSON go to: a file, `-` for stdout, None for nowhere.

    option: place that the command line names. Without one, `PRUNEFRONT_LOG=json` means stdout. Raises PrunefrontError
    for another value of the variable.
    """
    if option is not None:
        return option
    form = os.environ.get("PRUNEFRONT_LOG", "text")
    if form not in ("json", "text", ""):
        raise PrunefrontError(f"PRUNEFRONT_LOG={form} is not a log format; possible: json, text")
    return STDOUT if form == "json" else None


@contextmanager
def json_lines(target: str | None) -> Iterator[None]:
    """Writes events within to `target` as lines of JSON: at the end of a file, or `-` for stdout; None = nowhere.

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
    """Lets the first line that a full disk refuses raise, for `Events`. logging would print a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # logging calls this within its `except`


class _Stream(_Once, logging.StreamHandler):  # type: ignore[type-arg]
    """Handler of a stream of this process."""


class _File(_Once, logging.handlers.WatchedFileHandler):
    """Handler of a file. It goes on in a new file when log rotation has moved the old one away."""
