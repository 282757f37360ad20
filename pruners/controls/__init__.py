"""Controls: rivals of a pruned network that show whether the method is worth it. Modules here are found by themselves.

A rival has what the control leaves of the method, and the same budget otherwise. A claim of a gain requires training it
too. Nothing here imports torch, so that a driver can ask for rivals at once.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from prunefront.choice import pattern
from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import GroupPlan, PruningPlan, Scores
from prunefront.pruners.plan.cost import macs
from prunefront.pruners.plan.decide import keep_counts
from prunefront.pruners.plan.multiples import RoundTo
from prunefront.registry import Registry, summary_of

Start = Literal["dense", "fresh", "initial"]


@dataclass(frozen=True, slots=True)
class Subject:
    """The pruned network that a study found.

    plan: made for the dense network, whose channel graph is `graph`. scores: of the dense network. epochs: number that
    the pruned network was trained for. dense_epochs: number that the dense network was trained for. round_to: channel
    counts are multiples of it, where that is possible. seed: for all random draws.
    """

    plan: PruningPlan
    graph: ChannelGraph
    scores: Scores
    epochs: int
    dense_epochs: int
    round_to: RoundTo = 1
    seed: int = 0

    def macs_ratio(self) -> float:
        """Returns the MACs of the dense network over those of the pruned one, by its channels alone."""
        return macs(self.graph) / macs(self.graph, PruningPlan(self.plan.groups))

    def keeps(self) -> dict[str, tuple[int, ...]]:
        """Returns group name -> the kept-unit counts that a rival may choose from, ascending to all.

        The smallest is what the search allows by default, or what the subject itself has in any group.
        """
        most = max([0.9, *(g.achieved for g in self.plan.groups)])
        return {g.name: keep_counts(g, most, self.round_to) for g in self.graph.groups}


@dataclass(frozen=True, slots=True)
class Rival:
    """A network to train. plan: for the dense network.

    start: `dense` = cut from the trained dense network, `fresh` = cut from a new initialisation (`untrained.fresh`),
    `initial` = cut from the weights that the dense network was trained from. epochs: to train.
    """

    plan: PruningPlan
    start: Start
    epochs: int


Choose = Callable[[Subject], Rival]
"""Function that returns the rival. Pure: the same subject has the same rival."""


@dataclass(frozen=True, slots=True)
class Control:
    """A way to find the rival. choose: its purpose. paper: authors, year and arXiv number. summary: one line."""

    name: str
    rival: Choose
    summary: str
    choose: str = ""
    paper: str = ""

    def __call__(self, subject: Subject) -> Rival:
        """Returns the rival. Raises PrunefrontError where there is none within the subject's budget."""
        return self.rival(subject)


controls: Registry[Control] = Registry("control")


def control(name: str, *, choose: str = "", paper: str = "") -> Callable[[Choose], Control]:
    """Returns a decorator that registers a control; its docstring's first line becomes the summary.

    Raises ValueError for a name already taken, or a function without a docstring.
    """

    def add(rival: Choose) -> Control:
        summary = summary_of(rival, "control", name)
        return controls.register(name)(Control(name, rival, summary, choose, paper))

    return add


def plan_with_units(plan: PruningPlan, kept: Mapping[str, tuple[int, ...]]) -> PruningPlan:
    """Returns the plan with exactly these units, as explicit patterns. Groups that `kept` leaves out are dense.

    The plan's effects on blocks and within layers stay as they are. Raises PrunefrontError for a group that the plan
    lacks.
    """
    if unknown := sorted(kept.keys() - {g.name for g in plan.groups}):
        raise PrunefrontError(f"the plan has no channel group {unknown[0]!r}")
    groups = tuple(_group_with_units(g, kept.get(g.name, tuple(range(g.units)))) for g in plan.groups)
    return replace(plan, groups=groups)


def _group_with_units(group: GroupPlan, kept: tuple[int, ...]) -> GroupPlan:
    ratio = 1.0 - len(kept) / group.units
    explicit = None if len(kept) == group.units else pattern(kept)
    choice = replace(group.choice, ratio=ratio, keep=explicit)
    return GroupPlan(group.name, choice, group.units, kept, ratio)


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
