"""Call of one operator of the forward pass, as a rule sees it, and the registry of rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prunefront.pruners.trace.labels import Labels, Ledger, Shape, Stored

Value = Any  # Labels, Stored, a list of them, or a plain argument


@dataclass(frozen=True, slots=True)
class Call:
    """One operator in the forward pass.

    given: arguments by their name in the schema. shape: of the (first) result. statistic: of a reduction that is part
    of a norm, whether it is a "sum" or a "mean" (`handwritten.Kind`).
    """

    op: str
    given: Mapping[str, Value]
    shape: Shape
    statistic: str = ""

    def __getitem__(self, name: str) -> Value:
        return self.given[name]

    def get(self, name: str, default: Value = None) -> Value:
        return self.given.get(name, default)

    @property
    def first(self) -> Value:
        """The first argument."""
        return next(iter(self.given.values()))

    def tensors(self) -> list[Labels | Stored]:
        """Returns all tensor arguments, those in lists included."""
        found: list[Labels | Stored] = []
        for value in self.given.values():
            found.extend(v for v in (value if isinstance(value, list | tuple) else (value,)) if is_tensor(v))
        return found

    def axis(self, name: str = "dim", default: int = 0) -> int:
        """Returns a dimension argument, counted from the front."""
        axis = self.get(name)
        axis = default if axis is None else axis
        return int(axis) % max(1, len(self.first.shape))


Rule = Callable[[Ledger, Call], Value]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Returns a decorator that registers a rule under ATen names, without overload and in-place underscore."""

    def add(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"operator {name!r} has two rules")
            RULES[name] = function
        return function

    return add


def is_tensor(value: Value) -> bool:
    return isinstance(value, Labels | Stored)
