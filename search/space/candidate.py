"""The point that a search tries: one choice per group."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from prunefront.choice import GroupChoice
from prunefront.text import one_line


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice for each group, sorted by name.

    origin: the proposer; no part of the key. parent: key of the candidate that it was derived from, "" = none; no part
    of the key, nor of equality.
    """

    choices: Mapping[str, GroupChoice]
    origin: str = ""
    parent: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", dict(sorted(self.choices.items())))

    def key(self) -> str:
        """Returns a hash of the choices as *asked*; `PruningPlan.key` hashes the plan as realised."""
        inner = ", ".join(_text(name, choice) for name, choice in self.choices.items())
        return hashlib.sha256(f"{{{inner}}}".encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        data = {"origin": self.origin, "choices": {name: c.to_json() for name, c in self.choices.items()}}
        return data | {"parent": self.parent} if self.parent else data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Candidate":
        """Reads the JSON of `to_json`, perhaps from elsewhere.

        Raises TypeError, KeyError or RatioError for other data.
        """
        choices = {name: GroupChoice.from_json(c) for name, c in dict(data["choices"]).items()}
        origin, parent = data.get("origin", ""), data.get("parent", "")
        if not isinstance(origin, str) or not isinstance(parent, str):
            raise TypeError("origin and parent of a candidate must be text")
        return cls(choices, one_line(origin, 200), parent)


@lru_cache(maxsize=2**16)
def _text(name: str, choice: GroupChoice) -> str:
    """Writes a group's choice as JSON. Cached, as thousands of candidates consist of a few choices."""
    return f"{json.dumps(name)}: {json.dumps(choice.to_json(), sort_keys=True)}"


def pack(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Returns JSON of candidates of one space, several times shorter than the sum of their own.

    names: of the groups. choices, origins: every different one, once. rows: per candidate, the index of its origin and
    of its choice in each group; parents are left out. Raises ValueError for candidates of different groups.
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
def _interned(choice: GroupChoice) -> GroupChoice:
    """Returns the first choice equal to this one: a lookup of the same object takes half as long as of an equal one."""
    return choice


def unpack(data: Mapping[str, Any]) -> list[Candidate]:
    """Returns the candidates from the JSON of `pack`."""
    choices = [_interned(GroupChoice.from_json(choice)) for choice in data["choices"]]
    return [
        Candidate(
            {name: choices[place] for name, place in zip(data["names"], row[1:], strict=True)},
            data["origins"][row[0]],
        )
        for row in data["rows"]
    ]
