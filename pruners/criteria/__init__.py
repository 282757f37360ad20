"""Criteria: scores of how much each unit matters. Modules here are found by themselves; see docs/add-a-criterion.md."""

import importlib
import pkgutil
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.statistics import WhyNot
from prunefront.pruners.units.view import FIELDS, UnitView
from prunefront.registry import Registry, summary_of

Score = Callable[[UnitView], Float[Tensor, " units"]]
"""Function that gives one score per unit, higher = keep. Pure: neither the view nor any global state changes."""


Repair = Literal["none", "rescale", "refit"]
"""Names of what is done, once a group's units are gone, to the weights that read the group; see `cut.repair`."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """A scoring function, and what there is to know about it before it is used.

    needs: the `UnitView` fields that it reads. why_not: gives the reason for groups to which it does not apply although
    the fields do. comparable: scores of different groups may be ranked together. repair: what follows the cut.
    pairwise: it compares every unit with every other one, and a layer has too many weights or kernels for that. unit:
    what the paper removes. choose: when to take it, in a few words. paper: authors, year and arXiv number. summary: one
    line, for lists.
    """

    name: str
    needs: frozenset[str]
    score: Score
    summary: str
    unit: str = "filter"
    choose: str = ""
    paper: str = ""
    comparable: bool = False
    repair: Repair = "none"
    why_not: WhyNot | None = None
    pairwise: bool = False

    def __call__(self, view: UnitView) -> Float[Tensor, " units"]:
        """Returns finite float64 scores, one per unit, higher = keep.

        Raises PrunefrontError where the view lacks a need or a score is not finite, ValueError for a wrong shape.
        """
        lacking = sorted(self.needs - view.known_fields())
        if lacking:
            raise PrunefrontError(
                f"criterion {self.name!r} needs {', '.join(lacking)}, which the view does not hold; "
                f"it holds: {', '.join(sorted(view.known_fields())) or 'nothing'}"
            )
        scores = self.score(view).to(torch.float64)
        if scores.shape != view.weight.shape[:1]:
            raise ValueError(
                f"criterion {self.name!r} gave scores of shape {tuple(scores.shape)}, not {len(view.weight)} scores"
            )
        wrong = int((~scores.isfinite()).sum())
        if wrong:
            raise PrunefrontError(
                f"criterion {self.name!r} gave {wrong} of {scores.numel()} scores that are not finite; "
                f"check that the dense model's weights, and its loss on the calibration batches, are finite"
            )
        return scores


criteria: Registry[Criterion] = Registry("criterion")


def criterion(
    name: str,
    *,
    needs: Set[str],
    choose: str = "",
    paper: str = "",
    unit: str = "filter",
    comparable: bool = False,
    repair: Repair = "none",
    why_not: WhyNot | None = None,
    pairwise: bool = False,
) -> Callable[[Score], Criterion]:
    """Returns a decorator that registers a scoring function; its docstring's first line becomes the summary.

    needs: the `UnitView` fields that it reads; only these are gathered. The rest: as in `Criterion`. Raises ValueError
    for a name already taken, a need that is no field, or a function without a docstring.
    """
    unknown = sorted(set(needs) - FIELDS)
    if unknown:
        raise ValueError(f"criterion {name!r} needs {unknown[0]!r}; a view has: {', '.join(sorted(FIELDS))}")

    def add(score: Score) -> Criterion:
        summary = summary_of(score, "criterion", name)
        entry = Criterion(
            name, frozenset(needs), score, summary, unit, choose, paper, comparable, repair, why_not, pairwise
        )
        return criteria.register(name)(entry)

    return add


for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
