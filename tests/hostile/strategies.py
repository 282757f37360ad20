"""What readers are given: JSON, TOML and bytes as nobody should write them; and what they may answer."""

import copy
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from types import FrameType
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.text import LONGEST

EXAMPLES = int(os.environ.get("PRUNEFRONT_FUZZ", "80"))
"""Of each reader; `make fuzz` asks for 500, of all of them together 12,500."""

HANG_SECONDS = 60
"""No reader of a file of some kilobytes takes so long, on however busy a machine."""

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
    ],
)

T = TypeVar("T")

TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            "dense",
            "a\nb",
            "\x1b[31mred\x1b[0m\x07",
            "\u202eevil",
            "\x00",
            "../../etc/passwd",
            "/etc/passwd",
            "a" * 5000,
            "\ud800",
            "{0.__class__}",
            "%s",
            "[bold]x[/bold]",
            "1e400",
            "nan",
            "--help",
            "s3://bucket/x",
            "os:system",
        ]
    ),
    st.text(max_size=12),
)
NUMBERS = st.one_of(
    st.sampled_from(
        [
            0,
            -0.0,
            -1,
            1,
            True,
            2**31,
            2**53 + 1,
            2**63,
            -(2**63) - 1,
            2**64,
            10**400,
            1e308,
            5e-324,
            0.1,
            float("nan"),
            float("inf"),
            float("-inf"),
        ]
    ),
    st.integers(),
    st.floats(),
)


@dataclass(frozen=True)
class Deep:
    """Stands for so many lists within each other: as lists, they would break those who write and show them first."""

    levels: int


SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.one_of(
    SCALARS,
    st.recursive(
        SCALARS,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
        ),
        max_leaves=8,
    ),
    st.sampled_from([Deep(90), Deep(100_000)]),
)
"""Any JSON value, and some that JSON does not have."""


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document, its own first."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """The document with one to four of its values replaced, taken out, repeated or put elsewhere."""
    made = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 4))):
        every = list(places(made))
        path = every[draw(st.integers(0, len(every) - 1))]
        if not path:
            if draw(st.integers(0, 9)) == 0:
                made = draw(VALUES)
            continue
        owner = made
        for part in path[:-1]:
            owner = owner[part]
        match draw(st.sampled_from(["replace", "replace", "replace", "drop", "repeat", "rename", "swap"])):
            case "replace":
                owner[path[-1]] = draw(VALUES)
            case "drop":
                del owner[path[-1]]
            case "repeat" if isinstance(owner, list):
                owner.extend([copy.deepcopy(owner[path[-1]])] * draw(st.integers(1, 3)))
            case "rename" if isinstance(owner, dict):
                owner[draw(TEXTS)] = owner.pop(path[-1])
            case _:
                other = every[draw(st.integers(0, len(every) - 1))]
                owner[path[-1]] = copy.deepcopy(_at(made, other))
    return made


def _at(data: Any, path: tuple[Any, ...]) -> Any:
    try:
        for part in path:
            data = data[part]
    except (KeyError, IndexError, TypeError):
        return None
    return data if len(text_of(data)) < 20_000 else None


def text_of(data: Any) -> str:
    """As JSON, or as what comes near it: NaN, integers of 400 digits, lone surrogates and any depth stay."""
    if isinstance(data, Deep):
        return "[" * data.levels + "0" + "]" * data.levels
    if isinstance(data, dict):
        return "{" + ",".join(f"{json.dumps(str(k))}:{text_of(v)}" for k, v in data.items()) + "}"
    if isinstance(data, list):
        return "[" + ",".join(map(text_of, data)) + "]"
    return json.dumps(data)


def as_lists(data: Any) -> Any:
    """For readers of dicts: what is deep is as deep as the parsers of JSON and TOML let through."""
    if isinstance(data, Deep):
        return reduce(lambda inner, _: [inner], range(min(data.levels, 400)), 0)
    if isinstance(data, dict):
        return {k: as_lists(v) for k, v in data.items()}
    return [as_lists(v) for v in data] if isinstance(data, list) else data


@st.composite
def documents(draw: st.DrawFn, document: Any) -> bytes:
    """A file that holds the document changed, sometimes with a key twice, and sometimes damaged as bytes."""
    text = text_of(draw(changed(document)))
    match draw(st.integers(0, 19)):
        case 0 if text.startswith("{"):
            text = "{" + json.dumps(draw(TEXTS)) + ":1," * 2 + text[1:]
        case 1:
            return text.encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig"])), "surrogatepass")
        case 2:
            return draw(damaged(text.encode("utf-8", "surrogatepass")))
        case 3:
            return draw(st.binary(max_size=40))
        case 4:
            text = text.replace("1", "1" * draw(st.sampled_from([2, 30, 400, 5000])), 1)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes cut short, with some turned, taken out, or put in."""
    made = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(made) - 1)))
        match draw(st.sampled_from(["turn", "turn", "cut", "insert", "remove", "number", "twice"])):
            case "turn" if made:
                made[at] ^= draw(st.integers(1, 255))
            case "cut":
                del made[at:]
            case "insert":
                made[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "remove":
                del made[at : at + draw(st.integers(1, 64))]
            case "number":
                size = draw(st.sampled_from([4, 8]))
                value = draw(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]))
                made[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
            case _:
                made[at:at] = made[at : at + 200]
    return bytes(made)


class Hang(BaseException):
    """A reader that does not come to an end."""


@contextmanager
def _no_hang() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise Hang(f"no answer within {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answered(read: Callable[[], T]) -> T | None:
    """What the reader made of its input; None where it refused it in one clear line. Anything else is a fault."""
    with _no_hang():
        try:
            return read()
        except PrunefrontError as error:
            said = str(error)
    assert said, "an error without a word"
    assert said.isprintable(), f"what is no text for a terminal: {said!r}"
    assert len(said) <= LONGEST
    return None
