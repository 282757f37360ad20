"""The point that is tried: one choice per channel group."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from prunefront.choice import GroupChoice
from prunefront.errors import one_line


@dataclass(frozen=True, slots=True)
class Candidate:
    """Group name -> GroupChoice, sorted by name. `origin` says who proposed it and is no part of the key.

    parent: key of the candidate that it was made of, "" = of none. It is no part of the key, nor of equality.
    """

    choices: Mapping[str, GroupChoice]
    origin: str = ""
    parent: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", dict(sorted(self.choices.items())))

    def key(self) -> str:
        """Hash of what is *asked*; `PruningPlan.key` is the one of what is realised."""
        inner = ", ".join(_text(name, choice) for name, choice in self.choices.items())
        return hashlib.sha256(f"{{{inner}}}".encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        data = {"origin": self.origin, "choices": {name: c.to_json() for name, c in self.choices.items()}}
        return data | {"parent": self.parent} if self.parent else data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Candidate":
        """Raises TypeError, KeyError or RatioError for what `to_json` never makes, as it may come from elsewhere."""
        choices = {name: GroupChoice.from_json(c) for name, c in dict(data["choices"]).items()}
        origin, parent = data.get("origin", ""), data.get("parent", "")
        if not isinstance(origin, str) or not isinstance(parent, str):
            raise TypeError("origin and parent of a candidate must be text")
        return cls(choices, one_line(origin, 200), parent)


@lru_cache(maxsize=2**16)
def _text(name: str, choice: GroupChoice) -> str:
    """A group's choice as JSON. Kept, as thousands of candidates are made of a few choices."""
    return f"{json.dumps(name)}: {json.dumps(choice.to_json(), sort_keys=True)}"


def pack(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """JSON of candidates of one space, several times shorter than each one's own.

    names: of the groups. choices, origins: every different one, once. rows: per candidate, the place of its origin and
    of its choice in each group. Raises ValueError if the candidates are not all of the same groups.
    """
    names = list(candidates[0].choices) if candidates else []
    choices: dict[GroupChoice, int] = {}
    origins: dict[str, int] = {}
    rows = []
    for candidate in candidates:
        if list(candidate.choices) != names:
            raise ValueError("only candidates of the same groups are packed together")
        row = [origins.setdefault(candidate.origin, len(origins))]
        row += [choices.setdefault(choice, len(choices)) for choice in candidate.choices.values()]
        rows.append(row)
    return {
        "names": names,
        "choices": [choice.to_json() for choice in choices],
        "origins": list(origins),
        "rows": rows,
    }


@lru_cache(maxsize=2**16)
def _first_of(choice: GroupChoice) -> GroupChoice:
    """The first choice that was equal to this one: looking up the same object takes half as long as an equal one."""
    return choice


def unpack(data: Mapping[str, Any]) -> list[Candidate]:
    """The candidates that were packed."""
    choices = [_first_of(GroupChoice.from_json(choice)) for choice in data["choices"]]
    return [
        Candidate(
            {name: choices[place] for name, place in zip(data["names"], row[1:], strict=True)},
            data["origins"][row[0]],
        )
        for row in data["rows"]
    ]
