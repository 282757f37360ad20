"""What is recorded, shown or published holds no secret: passwords of addresses, tokens in them, the environment's."""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

LEAST = 6
"""Characters of a value that is looked for: shorter ones are in every other text by chance."""

_WORDS = r"(?:passw(?:or)?d|secret|token|credential|signature|api_?key|access_?key|private_?key)"
_NAME = re.compile(_WORDS, re.IGNORECASE)
_PLACE = re.compile(r"_(FILE|PATH|MODE|URI|URL)$", re.IGNORECASE)
"""Where a secret lies is none."""
_PASSWORD = re.compile(r"(://[^:/@\s\"']*):[^\s\"']*@")
_QUERY = re.compile(rf"([?&;][^=&?\s\"']*{_WORDS}[^=&?\s\"']*=)[^&\s\"']+", re.IGNORECASE)


def without_password(text: str) -> str:
    """The text with the password of every address in it, and what is secret in its query, replaced by ***."""
    return _QUERY.sub(rf"\1{HIDDEN}", _PASSWORD.sub(rf"\1:{HIDDEN}@", text))


def without_secrets(text: str) -> str:
    """As `without_password`, and without the values of this process's environment variables that are named as secrets,
    such as AWS_SECRET_ACCESS_KEY and MLFLOW_TRACKING_PASSWORD."""
    return _without(text, _secrets())


def redacted(data: Any) -> Any:
    """JSON data whose texts are `without_secrets`, and in which what is named as a secret is not told at all."""
    return _redacted(data, _secrets())


def _without(text: str, secrets: list[str]) -> str:
    for value in secrets:
        text = text.replace(value, HIDDEN)
    return without_password(text)


def _redacted(data: Any, secrets: list[str]) -> Any:
    if isinstance(data, Mapping):
        return {k: HIDDEN if v and _NAME.search(str(k)) else _redacted(v, secrets) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_redacted(value, secrets) for value in data]
    return _without(data, secrets) if isinstance(data, str) else data


def is_redacted(text: str) -> bool:
    """Whether something was taken out of an address, which then cannot be used."""
    return HIDDEN in text


def _secrets() -> list[str]:
    """Longest first: one may be a part of another."""
    found = {
        value
        for name, value in os.environ.items()
        if _NAME.search(name)
        and not _PLACE.search(name)
        and len(value) >= LEAST
        and not os.path.exists(value)  # a file that holds one is none
    }
    return sorted(found, key=len, reverse=True)
