"""Controls: is the method worth it? Each gives a rival to a pruned network. Modules here are found by themselves.

A rival has what the control leaves of the method, and the same budget otherwise: whoever claims a gain trains it too.
Nothing here imports torch, so that a driver can ask for rivals at once.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from prunefront.choice import pattern
from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.plan import GroupPlan, PruningPlan, Scores
from prunefront.pruners.plan.cost import macs
from prunefront.pruners.plan.decide import keep_counts
from prunefront.registry import Registry, summary_of

Start = Literal["dense", "fresh", "initial"]


@dataclass(frozen=True, slots=True)
class Subject:
    """The pruned network that a study found.

    plan: made for the dense network, whose channel graph is `graph`. scores: of the dense network. epochs: what the
    pruned network was trained for. dense_epochs: what the dense network was trained for. round_to: channel counts are
    multiples of it, where that is possible. seed: of everything that is drawn.
    """

    plan: PruningPlan
    graph: ChannelGraph
    scores: Scores
    epochs: int
    dense_epochs: int
    round_to: int = 1
    seed: int = 0

    def macs_ratio(self) -> float:
        """MACs of the dense network over those of the pruned one, by its channels alone."""
        return macs(self.graph) / macs(self.graph, PruningPlan(self.plan.groups))

    def keeps(self) -> dict[str, tuple[int, ...]]:
        """Group name -> the kept-unit counts that a rival may choose from, ascending to all.

        As few as the search allows by default, or as the subject itself has in any group.
        """
        most = max([0.9, *(g.achieved for g in self.plan.groups)])
        return {g.name: keep_counts(g, most, self.round_to) for g in self.graph.groups}


@dataclass(frozen=True, slots=True)
class Rival:
    """A network to train. plan: for the dense network.

    start: `dense` = cut from the trained dense network, `fresh` = cut from a new initialisation
    (`untrained.fresh`), `initial` = cut from the weights that the dense network was trained from. epochs: to train.
    """

    plan: PruningPlan
    start: Start
    epochs: int


Choose = Callable[[Subject], Rival]
"""Pure: the same subject has the same rival."""


@dataclass(frozen=True, slots=True)
class Control:
    """A way to find the rival. choose: what it isolates. paper: authors, year and arXiv number. summary: one line."""

    name: str
    rival: Choose
    summary: str
    choose: str = ""
    paper: str = ""

    def __call__(self, subject: Subject) -> Rival:
        """The rival. Raises PrunefrontError where there is none within the subject's budget."""
        return self.rival(subject)


controls: Registry[Control] = Registry("control")


def control(name: str, *, choose: str = "", paper: str = "") -> Callable[[Choose], Control]:
    """Decorator that registers a control; its docstring's first line becomes the summary.

    Raises ValueError for a name already taken, or a function without a docstring.
    """

    def file(rival: Choose) -> Control:
        summary = summary_of(rival, "control", name)
        return controls.register(name)(Control(name, rival, summary, choose, paper))

    return file


def keeping(plan: PruningPlan, kept: Mapping[str, tuple[int, ...]]) -> PruningPlan:
    """The plan with exactly these units, as explicit patterns. Groups that `kept` leaves out are dense.

    What the plan does to blocks and within layers stays as it was. Raises PrunefrontError for a group that the plan
    lacks.
    """
    if unknown := sorted(kept.keys() - {g.name for g in plan.groups}):
        raise PrunefrontError(f"the plan has no channel group {unknown[0]!r}")
    groups = tuple(_keeping(g, kept.get(g.name, tuple(range(g.units)))) for g in plan.groups)
    return replace(plan, groups=groups)


def _keeping(group: GroupPlan, kept: tuple[int, ...]) -> GroupPlan:
    ratio = 1.0 - len(kept) / group.units
    explicit = None if len(kept) == group.units else pattern(kept)
    choice = replace(group.choice, ratio=ratio, keep=explicit)
    return GroupPlan(group.name, choice, group.units, kept, ratio)


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
