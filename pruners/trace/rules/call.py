"""Call of one operator of the forward pass, as a rule sees it, and the registry of rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prunefront.errors import PrunefrontError
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
OWN: dict[str, Rule] = {}
"""Those among RULES that people have written for operators of theirs, in this process."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Returns a decorator that registers a rule under ATen names, without overload and in-place underscore."""

    def add(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"operator {name!r} has two rules")
            RULES[name] = function
        return function

    return add


def channel_rule(*operators: str) -> Callable[[Rule], Rule]:
    """Returns a decorator that registers one's own rule for operators that have none (docs/add-an-operator.md).

    operators: as `prunefront inspect` names them: `aten.rot90`, `mylib.op`, or without what stands before the dot. A
    rule holds for this process. The cuts of a network that meets it are tried on the example, as with any rule. The
    same function may be defined again, as notebooks do. Raises PrunefrontError for an operator that has another rule.
    """
    names = [_bare(operator) for operator in operators]
    if not names:
        raise PrunefrontError("channel_rule needs the name of an operator, e.g. @channel_rule('aten.rot90')")

    def add(function: Rule) -> Rule:
        for name in names:
            there = OWN.get(name)
            again = there is not None and _place(there) == _place(function)
            if name in RULES and not again:
                whose = f"by {'.'.join(_place(there))}" if there else "of prunefront's own"
                raise PrunefrontError(
                    f"{'.'.join(_place(function))} is a channel rule for operator {name!r}, which has one already, "
                    f"{whose}; leave it out"
                )
        for name in names:
            RULES[name] = OWN[name] = function
        return function

    return add


def _bare(operator: str) -> str:
    """Returns an operator's name without its library, and without the underscore of those that work in place."""
    name = operator.replace("::", ".").rpartition(".")[2]
    if not name.isidentifier():
        raise PrunefrontError(f"channel_rule: {operator!r} names no operator; write e.g. 'aten.rot90'")
    return name if name.startswith("_") and name.endswith("__") else name.rstrip("_")


def _place(function: Rule) -> tuple[str, str]:
    return function.__module__, getattr(function, "__qualname__", type(function).__name__)


def is_tensor(value: Value) -> bool:
    return isinstance(value, Labels | Stored)
