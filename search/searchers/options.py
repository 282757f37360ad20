"""Options of a searcher: a frozen dataclass of numbers, each with its range."""

from collections.abc import Mapping
from dataclasses import Field, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from prunefront.errors import PrunefrontError
from prunefront.text import did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def option(default: float, low: float, high: float) -> Any:
    """Returns a dataclass field for a number in [low, high]; whole if the default is an int."""
    return field(default=default, metadata={"low": low, "high": high})


def read_options(kind: type[T], given: Mapping[str, Any], searcher: str) -> T:
    """Returns the options dataclass `kind` filled from `given`.

    Raises PrunefrontError for an unknown name or a bad value.
    """
    known: dict[str, Field[Any]] = {f.name: f for f in fields(kind)}
    for name, value in given.items():
        if name not in known:
            raise PrunefrontError(
                f"searcher {searcher!r} has no option {name!r}; {did_you_mean(name, known)}"
                f"options: {', '.join(sorted(known)) or 'none'}"
            )
        _check(known[name], value, searcher)
    return kind(**given)


def _check(known: "Field[Any]", value: Any, searcher: str) -> None:
    low, high, whole = known.metadata["low"], known.metadata["high"], isinstance(known.default, int)
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right or not low <= value <= high:
        raise PrunefrontError(
            f"option {known.name!r} of searcher {searcher!r} must be a {'whole ' if whole else ''}number "
            f"in [{low}, {high}], got {value!r}"
        )
