"""JSON from a place that is not trusted: whatever differs from our own files is one kind of error."""

import json
import re
from functools import partial
from typing import Any, NoReturn

MOST_VALUES = 10_000_000
"""Largest number of values in one document: a file of empty lists takes thirty times its size in memory."""

_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def loads(text: str | bytes, *, integer_bits: int = 64) -> Any:
    """Returns the document. Raises ValueError, and nothing else, for what is not JSON in UTF-8.

    It also refuses what json.loads lets through although we never write it: NaN and infinity, numbers that overflow
    to them, integers of more than `integer_bits` with their sign, a key twice in one object, half a surrogate pair,
    nesting without bottom, more than MOST_VALUES values.
    """
    if isinstance(text, bytes):
        text = text.decode()
    if text.count(",") + text.count("[") > MOST_VALUES:
        raise ValueError(f"it has more than the {MOST_VALUES:,} values that are read")
    try:
        data = json.loads(
            text,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=partial(_integer, bits=integer_bits),
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _HALF.search(text):
        json.dumps(data, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return data


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits:.40} is beyond what a number can be")
    return value


def _integer(digits: str, bits: int) -> int:
    most = 1 << (bits - 1)
    if len(digits) > bits // 3 or not -most <= int(digits) < most:
        raise ValueError(f"{digits:.40} is beyond {bits} bits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in data if keys.count(key) > 1)
        raise ValueError(f"it has the key {twice!r:.40} twice")
    return data
