"""Reading a study file: TOML to `StudyConfig`, checked before anything is spent."""

import json
import math
import re
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.earlier_keys import KeyTwice, MovedKey, under_new_keys
from prunefront.pipelines.config.sections import Section, StudyConfig
from prunefront.reading import read_text
from prunefront.search.outcomes.constraints import Bound

MOST_BYTES = 64 << 10
"""Largest study file that is read, in bytes."""

DEEPEST = 32
"""Most levels of tables and lists in a study file."""

_DOTS = re.compile(rf"(?:[^\s.=\[\]{{}},#]{{1,64}}[ \t]*\.[ \t]*){{{DEEPEST},}}")


class ConfigError(PrunefrontError):
    """A study file asks for something that there is not."""


def settings() -> dict[str, str]:
    """Returns every key of a study file, dotted -> its meaning and default, for `prunefront list settings`."""
    return _settings(StudyConfig, "")


def _settings(section: type[BaseModel], prefix: str) -> dict[str, str]:
    lines: dict[str, str] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            lines |= _settings(field.annotation, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else json.dumps(field.default, default=str)
        lines[f"{prefix}{name}"] = f"{field.description} [{default}]".removesuffix(" [null]")
    return lines


def load(path: Path, *, base: Path | None = None) -> StudyConfig:
    """Reads and checks a study file. base: folder of its relative paths; None = the file's own folder.

    Warns (`MovedKey`) of a key that has another name now. Raises ConfigError: one line that says where the fault is,
    what was asked and what is possible.
    """
    try:
        text = read_text(path, limit=MOST_BYTES)
        if _DOTS.search(text):  # tomllib takes the square of their number
            raise ConfigError(f"{path} names a key of more than {DEEPEST} parts")
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"there is no study file {path}; see examples/digits.toml for one") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML: it is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and what dates and numbers raise that cannot be
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    config = parse(data, source=str(path), base=path.parent if base is None else base)
    warn_of_moved_keys(data, str(path), stacklevel=3)
    return config


def warn_of_moved_keys(data: Mapping[str, Any], source: str, *, stacklevel: int = 2) -> None:
    """Warns (`MovedKey`) once for each key of a study that has another name now, and names that."""
    for line in under_new_keys(data)[1]:
        warnings.warn(f"{source}: {line}", MovedKey, stacklevel=stacklevel)


def parse(data: Mapping[str, Any], *, source: str, base: Path) -> StudyConfig:
    """Checks a study that is given as nested dicts, under today's keys or earlier ones.

    base: folder of its relative paths. Raises ConfigError.
    """
    if fault := _not_plain(data, ()):
        raise ConfigError(f"{source}: {fault}")
    try:
        today = under_new_keys(data)[0] if isinstance(data, Mapping) else data
        config = StudyConfig.model_validate(today)
    except KeyTwice as error:
        raise ConfigError(f"{source}: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{source}: {'; '.join(_explain(e) for e in error.errors())}") from None
    return _anchor(config, base)


def _anchor(config: StudyConfig, base: Path) -> StudyConfig:
    """Returns the study with its relative paths below `base`."""

    def at(path: Any) -> Any:
        if isinstance(path, tuple):
            return tuple(map(at, path))
        return base / path if isinstance(path, Path) else path

    return config.model_copy(
        update={
            "model": config.model.model_copy(
                update={"weights": at(config.model.weights), "initial": at(config.model.initial)}
            ),
            "data": config.data.model_copy(
                update={"train": at(config.data.train), "test": at(config.data.test)}
            ),
            "measure": config.measure.model_copy(update={"latency_table": at(config.measure.latency_table)}),
        }
    )


def _not_plain(value: object, where: tuple[str, ...]) -> str | None:
    """Returns why a value cannot stand in study.json or on a terminal; None where it can."""
    name = repr(".".join(where))
    if len(where) > DEEPEST:
        return f"{name:.80} is nested too deeply; at most {DEEPEST} levels are possible"
    if isinstance(value, Mapping):
        found = (_not_plain(str(k), where) or _not_plain(v, (*where, str(k))) for k, v in value.items())
        return next(filter(None, found), None)
    if isinstance(value, list | tuple):
        return next(filter(None, (_not_plain(v, (*where, str(i))) for i, v in enumerate(value))), None)
    if isinstance(value, str | Path):
        text = str(value)
        return (
            None if text.isprintable() else f"{name} holds a character that cannot be printed: {text!r:.80}"
        )
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return f"{name} is a number beyond 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} = {value}; numbers must be finite"
    if value is None or isinstance(value, bool | int | float | Bound):
        return None
    return f"{name} is a {type(value).__name__}; possible are texts, numbers, flags, lists and tables of them"


def _explain(error: Mapping[str, Any]) -> str:
    """Returns one of pydantic's errors as a clause: where, what was asked, what is possible."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        asked = str(error["loc"][-1])
        near = get_close_matches(asked, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key {where!r}; {hint}known here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{where!r} is missing"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    return f"{where or 'the study'} = {error['input']!r:.200}: {message}" if where else message


def _known_keys(location: Sequence[int | str]) -> list[str]:
    """Returns the keys of the section at `location`, by the annotations from StudyConfig downwards."""
    section: Any = StudyConfig
    for part in location:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
