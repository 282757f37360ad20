"""The point that is tried: one choice per channel group."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from prunefront.choice import GroupChoice
from prunefront.text import one_line


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
