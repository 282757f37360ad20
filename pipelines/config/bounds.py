"""Bounds of a study file: texts such as `accuracy >= -1pt`, or a table of low and high sides."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, cast

from pydantic import BeforeValidator, InstanceOf, PlainSerializer

from prunefront.search.outcomes.constraints import Bound, ConstraintError, check_compatible
from prunefront.search.outcomes.constraints import parse as parse_bound


def _bounds(asked: object) -> object:
    """Returns the bounds of a list of texts, of one text, or of { name = { low = …, high = … } }."""
    if isinstance(asked, Mapping):
        return tuple(bound for name, sides in asked.items() for bound in _sides(str(name), sides))
    found = (asked,) if isinstance(asked, str) else asked
    if not isinstance(found, list | tuple) or not all(isinstance(b, str | Bound) for b in found):
        raise ValueError("should be a list of bounds such as ['accuracy >= -1pt', 'latency_ms <= 60%']")
    return tuple(parse_bound(b, any_metric=True) if isinstance(b, str) else b for b in found)


def _sides(name: str, sides: object) -> list[Bound]:
    """Returns the bounds of one table { low = …, high = … }."""
    if not isinstance(sides, Mapping) or not sides:
        raise ValueError(f"{name} should have a low or a high side, e.g. {{ high = 1e7 }}")
    for side, value in sides.items():
        if side not in ("low", "high"):
            near = get_close_matches(str(side), ("low", "high"), n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown key '{name}.{side}'; {hint}known here: low, high")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(
                f"{name}.{side} should be a number, got {value!r}; texts such as '60%' go into a list"
            )
    return [Bound(name, side, float(value)) for side, value in sides.items()]


def _checked(asked: object) -> object:
    """Returns the bounds of what a study file asks for. Raises ValueError, which pydantic turns into its own."""
    try:
        bounds = _bounds(asked)
        check_compatible(cast(Sequence[Bound], bounds))
    except ConstraintError as error:
        raise ValueError(str(error)) from None
    return bounds


Bounds = Annotated[
    tuple[InstanceOf[Bound], ...],
    BeforeValidator(_checked),
    PlainSerializer(lambda bounds: [str(b) for b in bounds], return_type=list[str]),
]
"""Bounds as a field of a section; its JSON is the texts that they are read from."""
