"""Multiples that channel counts are rounded to: one for all groups, or one for each pattern of group names."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from prunefront.errors import PrunefrontError
from prunefront.text import did_you_mean

RoundTo = int | Mapping[str, int]
"""A multiple for all groups; or pattern of group names -> multiple, where the most specific pattern counts."""


def multiple_of(group: str, round_to: RoundTo) -> int:
    """Returns the number that the kept channels of a group are a multiple of; 1 where no pattern fits.

    Of several patterns that fit, the most specific counts: the group's own name, else the one with most characters
    beside wildcards. The order of a table does not matter, as JSON and TOML give no meaning to it. Raises
    PrunefrontError where two patterns are equally specific and their multiples differ.
    """
    if isinstance(round_to, int):
        return round_to
    if group in round_to:
        return round_to[group]
    fitting = [pattern for pattern in round_to if fnmatchcase(group, pattern)]
    best = max(map(_specific, fitting), default=0)
    first, *others = [p for p in fitting if _specific(p) == best] or [""]
    for other in others:
        if round_to[other] != round_to[first]:
            raise PrunefrontError(
                f"space.round_to: {first!r} = {round_to[first]} and {other!r} = {round_to[other]} fit group {group!r} "
                "equally well; make one of them more specific, or name the group itself"
            )
    return round_to[first] if fitting else 1


def _specific(pattern: str) -> int:
    """Returns the number of characters that are no wildcards; a set such as `[ab]` counts as one wildcard."""
    count, inside = 0, False
    for letter in pattern:
        count += letter not in "*?[]" and not inside
        inside = letter == "[" or (inside and letter != "]")
    return count


def check_multiples(round_to: RoundTo, groups: Iterable[str]) -> None:
    """Raises PrunefrontError for a pattern that fits no group, and for two that fit one group equally well."""
    if isinstance(round_to, int):
        return
    names = list(groups)
    for pattern in round_to:
        if pattern != "*" and not any(name == pattern or fnmatchcase(name, pattern) for name in names):
            raise PrunefrontError(
                f"space.round_to names {pattern!r}, which fits no channel group of the network; "
                f"{did_you_mean(pattern, names)}there are: {', '.join(names) or 'none'}"
            )
    for name in names:
        multiple_of(name, round_to)
