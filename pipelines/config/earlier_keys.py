"""Keys of a study file that have another name now: earlier files keep working."""

from collections.abc import Mapping
from typing import Any

MOVED = {
    "space.bits": "quantisation.bits",
    "space.quantiser": "quantisation.quantiser",
    "space.per_channel": "quantisation.per_channel",
    "space.activations": "quantisation.activations",
    "space.activation_bits": "quantisation.activation_bits",
    "controls": "controls.methods",
    "controlled": "controls.networks",
    "search.objectives": "goal.objectives",
    "search.constraints": "goal.constraints",
    "search.allocators": "start.allocators",
    "search.seeds": "start.seeds",
    "search.warm_start": "start.warm_start",
    "search.train_images": "scoring.train_images",
    "search.validation_limit": "scoring.validation_limit",
}
"""Earlier key -> today's."""


class MovedKey(FutureWarning):
    """A study file uses a key that has another name now."""


class KeyTwice(ValueError):
    """A study file gives a key under its earlier and under today's name."""


def under_new_keys(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns a study's data under today's keys, and a line for each key that was moved.

    Raises KeyTwice for a key that is given under both names.
    """
    made = {name: dict(value) if isinstance(value, Mapping) else value for name, value in data.items()}
    lines = []
    for before, now in MOVED.items():
        holder, key = _holder(made, before)
        if holder is None or key not in holder or (before == "controls" and isinstance(holder[key], dict)):
            continue
        value = holder.pop(key)
        section, _, name = now.partition(".")
        target = made.setdefault(section, {})
        if not isinstance(target, dict):  # a section that is no table is refused by name later
            holder[key] = value
            continue
        if name in target:
            raise KeyTwice(f"{before!r} is now called {now!r}, and both are given; remove {before!r}")
        target[name] = value
        lines.append(f"{before!r} is now called {now!r}; the old name still works")
    return made, lines


def _holder(data: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """Returns the table that a dotted key lies in, None where there is none, and its last part."""
    section, _, name = key.rpartition(".")
    if not section:
        return data, name
    table = data.get(section)
    return (table if isinstance(table, dict) else None), name
