"""The point that is tried: one choice per channel group."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruners.choice import GroupChoice


@dataclass(frozen=True, slots=True)
class Candidate:
    """Group name -> GroupChoice, sorted by name. `origin` says who proposed it and is no part of the key."""

    choices: Mapping[str, GroupChoice]
    origin: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", dict(sorted(self.choices.items())))

    def key(self) -> str:
        """Hash of what is *asked*; `PruningPlan.key` is the one of what is realised."""
        text = json.dumps({name: c.to_json() for name, c in self.choices.items()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {"origin": self.origin, "choices": {name: c.to_json() for name, c in self.choices.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Candidate":
        choices = {name: GroupChoice.from_json(c) for name, c in data["choices"].items()}
        return cls(choices, data.get("origin", ""))
