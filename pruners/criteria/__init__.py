"""Criteria: how much each unit matters. Modules here are found by themselves; see docs/add-a-criterion.md."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Set
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pruners.errors import PrunefrontError
from pruners.registry import Registry
from pruners.view import FIELDS, UnitView

Score = Callable[[UnitView], Float[Tensor, " units"]]
"""One score per unit, higher = keep. Pure: neither the view nor any global state changes."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """A scoring function. needs: the `UnitView` fields that it reads. summary: one line, for lists."""

    name: str
    needs: frozenset[str]
    score: Score
    summary: str

    def __call__(self, view: UnitView) -> Float[Tensor, " units"]:
        """Finite float64 scores, one per unit, higher = keep.

        Raises PrunefrontError where the view lacks a need or a score is not finite, ValueError for a
        wrong shape.
        """
        lacking = sorted(self.needs - view.held())
        if lacking:
            raise PrunefrontError(
                f"criterion {self.name!r} needs {', '.join(lacking)}, which the view does not hold; "
                f"it holds: {', '.join(sorted(view.held())) or 'nothing'}"
            )
        scores = self.score(view).to(torch.float64)
        if scores.shape != view.weight.shape[:1]:
            raise ValueError(
                f"criterion {self.name!r} gave not {len(view.weight)} scores but shape {tuple(scores.shape)}"
            )
        wrong = int((~scores.isfinite()).sum())
        if wrong:
            raise PrunefrontError(
                f"criterion {self.name!r} gave {wrong} of {scores.numel()} scores that are not finite; "
                f"check that the dense model's weights, and its loss on the calibration batches, are finite"
            )
        return scores


criteria: Registry[Criterion] = Registry("criterion")


def criterion(name: str, *, needs: Set[str]) -> Callable[[Score], Criterion]:
    """Decorator that registers a scoring function; its docstring's first line becomes the summary.

    needs: the `UnitView` fields that it reads; only these are gathered.
    Raises ValueError for a name already taken, a need that is no field, or a function without a docstring.
    """
    unknown = sorted(set(needs) - FIELDS)
    if unknown:
        raise ValueError(f"criterion {name!r} needs {unknown[0]!r}; a view has: {', '.join(sorted(FIELDS))}")

    def file(score: Score) -> Criterion:
        summary = (inspect.getdoc(score) or "").partition("\n")[0]
        if not summary:
            raise ValueError(f"criterion {name!r} has no docstring to describe it")
        return criteria.register(name)(Criterion(name, frozenset(needs), score, summary))

    return file


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
