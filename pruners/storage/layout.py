"""Checks of a layout that may come from an untrusted file."""

from collections.abc import Mapping

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.layers import Part
from prunefront.pruners.storage.sizes import SEPARATOR, WIDEST_CODE, kept_per_team


def check_layout(layout: Mapping[str, Part], limit: int | None = None) -> None:
    """Raises PrunefrontError for a part without a stored form, and for more than `limit` elements in all."""
    for name, part in layout.items():
        why = f"its name holds {SEPARATOR!r}" if SEPARATOR in name else _why_not(part)
        if why:
            raise PrunefrontError(f"tensor {name!r} cannot be stored: {why}")
    elements = sum(part.size for part in layout.values())
    if limit is not None and elements > limit:
        raise PrunefrontError(
            f"the network has {elements} stored elements, and at most {limit} are allowed here"
        )


def _why_not(part: Part) -> str | None:
    numbers = (*part.shape, part.below, part.kept, part.team, part.axis, part.bits, part.width)
    if any(type(n) is not int for n in numbers) or any(n < 0 for n in part.shape):
        return f"its shape {part.shape} and counts must be whole numbers"
    if part.width not in (1, 2, 4, 8):
        return f"elements of {part.width} bytes, where 1, 2, 4 and 8 are possible"
    if part.kind == "index":
        return (
            None if 0 < part.below <= 1 << 32 else f"indices below {part.below}, where 1 to 2^32 is possible"
        )
    if part.kind in ("float", "integer"):
        return None
    if part.kind != "value":
        return f"unknown kind {part.kind!r}"
    if part.bits != 32 and not 1 <= part.bits <= WIDEST_CODE:
        return f"a bit width of {part.bits}, where 1 to {WIDEST_CODE} and 32 are possible"
    if part.form == "dense":
        return None if part.kept == part.size else f"{part.kept} of {part.size} values in dense form"
    if part.form == "mask":
        return None if part.kept <= part.size else f"{part.kept} of {part.size} values kept"
    return _why_no_teams(part) if part.form == "n_of_m" else f"unknown form {part.form!r}"


def _why_no_teams(part: Part) -> str | None:
    if not 0 <= part.axis < len(part.shape):
        return f"no axis {part.axis} in its shape {part.shape}"
    if part.team < 1 or part.shape[part.axis] % part.team:
        return f"teams of {part.team} do not divide the {part.shape[part.axis]} positions of axis {part.axis}"
    if part.kept > part.size or kept_per_team(part) * part.size != part.kept * part.team:
        return f"{part.kept} of {part.size} values are not equally many in each team of {part.team}"
    return None
