"""Hides secrets in all that is recorded, shown or published: those of addresses and of the environment."""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
"""Text that stands for a secret."""

LEAST = 6
"""Least number of characters of a value that is hidden: a shorter one is in every other text by chance."""

_WORDS = r"(?:passw(?:or)?d|secret|token|credential|signature|api_?key|access_?key|private_?key)"
_NAME = re.compile(_WORDS, re.IGNORECASE)
_PLACE = re.compile(r"_(FILE|PATH|MODE|URI|URL)$", re.IGNORECASE)
"""Ends of names whose values say where a secret lies; such a value is no secret itself."""
_PASSWORD = re.compile(r"(://[^:/@\s\"']*):[^\s\"']*@")
_QUERY = re.compile(rf"([?&;][^=&?\s\"']*{_WORDS}[^=&?\s\"']*=)[^&\s\"']+", re.IGNORECASE)


def without_password(text: str) -> str:
    """Returns the text with *** for the password of every address in it and for the secrets in its query."""
    return _QUERY.sub(rf"\1{HIDDEN}", _PASSWORD.sub(rf"\1:{HIDDEN}@", text))


def without_secrets(text: str) -> str:
    """Returns the text as `without_password` does, and with *** for the secrets of this process's environment.

    These are the values of variables whose names say so, e.g. AWS_SECRET_ACCESS_KEY and MLFLOW_TRACKING_PASSWORD.
    """
    return _without(text, _secrets())


def redact(data: Any) -> Any:
    """Returns JSON data with `without_secrets` of its texts, and *** for every value whose key names a secret."""
    return _redact(data, _secrets())


def _without(text: str, secrets: list[str]) -> str:
    for value in secrets:
        text = text.replace(value, HIDDEN)
    return without_password(text)


def _redact(data: Any, secrets: list[str]) -> Any:
    if isinstance(data, Mapping):
        return {k: HIDDEN if v and _NAME.search(str(k)) else _redact(v, secrets) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_redact(value, secrets) for value in data]
    return _without(data, secrets) if isinstance(data, str) else data


def is_redacted(text: str) -> bool:
    """Tells whether a secret was taken out of an address. Such an address cannot be used."""
    return HIDDEN in text


def _secrets() -> list[str]:
    """Returns the environment's secrets, longest first, since one may be a part of another."""
    values = {
        value
        for name, value in os.environ.items()
        if _NAME.search(name)
        and not _PLACE.search(name)
        and len(value) >= LEAST
        and not os.path.exists(value)  # a file that holds one is none
    }
    return sorted(values, key=len, reverse=True)
