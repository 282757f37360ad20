"""One word on the command line for a study: its file, its name, or its folder, and what a command needs of it."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.journal.layout import STUDY
from prunefront.pipelines.study.find import NoStudy, check_complete, exists, find


def study_config(study: str) -> StudyConfig:
    """The configuration of a study: from its file, else as its last search was started, with `path` where it is now.

    Raises PrunefrontError for a name or folder of no study that has been searched, and for a password that is needed
    and not kept.
    """
    try:
        found = find(study)
    except NoStudy as error:
        raise NoStudy(f"{error}; before its first search a study is named by its file, NAME.toml") from None
    if found.file is not None:
        return found.config
    for key, text in _texts(found.config.to_json()):
        check_complete(text, key)
    folder = found.folder.resolve() if found.folder.name in ("", "..") else found.folder
    if folder.name != found.config.name:
        raise PrunefrontError(
            f"the folder {folder} holds the study {found.config.name!r}; give it that name, or name the study file"
        )
    return found.config.model_copy(update={"folder": folder.parent})


def study_name(study: str) -> str:
    """The name of a study that may run elsewhere, or the id of its job, which is taken as it is."""
    if study.endswith(".toml") or exists(Path(study) / STUDY):
        return find(study).config.name
    return study


@contextmanager
def study_file(study: str) -> Iterator[Path]:
    """The file of a study; of one that is named otherwise, a file in the current folder as long as the `with` lasts.

    Relative paths in a study's folder mean what they mean from the current one, so a file of them has to lie here.
    """
    if study.endswith(".toml"):
        yield Path(study)
        return
    text = to_toml(study_config(study).to_json())
    with tempfile.NamedTemporaryFile("w", dir=".", prefix="study-", suffix=".toml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        yield Path(Path(file.name).name)


def to_toml(data: Mapping[str, Any]) -> str:
    """A study's JSON as the text of a study file. What is None has no key."""
    return "".join(f"{_key(k)} = {_value(v)}\n" for k, v in data.items() if v is not None)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # JSON's texts, numbers and booleans are TOML's, but for DEL
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else str(_value(name))


def _texts(data: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in JSON data, with its dotted key."""
    if isinstance(data, str):
        yield key, data
    elif isinstance(data, Mapping):
        for name, value in data.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _texts(value, key)
