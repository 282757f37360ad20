"""A network on its way to a plan: what a training procedure holds and changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from prunefront.errors import PrunefrontError
from prunefront.pruners.bits.bit_width import wrap
from prunefront.pruners.criteria import criteria
from prunefront.pruners.cut.compact import compact
from prunefront.pruners.cut.prune import calibrate, prune
from prunefront.pruners.cut.surgery import cut_tensor, reduced_graph, removed_positions
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.plan import GroupPlan, PruningPlan, Scores
from prunefront.pruners.plan.layer_parts import parameter_bit_widths
from prunefront.pruners.procedures.bit_widths import QuantisedWeights
from prunefront.pruners.procedures.hook import Hook, UnitScores
from prunefront.pruners.scoring import score_all, why_not
from prunefront.pruners.statistics import Batch, Loss

NOTHING = ChannelGraph((), (), (), {}, ())
"""Of a step that cuts no channel."""

Kept = Mapping[str, tuple[int, ...]]
"""Group -> the units that are still there, in the dense numbering."""


class SnapshotError(PrunefrontError):
    """Bytes that are no snapshot, or one of another run."""


class Run:
    """State of one procedure: the network as it is now, how far it is, and what it may use.

    model, graph: of now; `cut` replaces both. goal: the plan to arrive at; its counts bind, its units are a proposal
    made on the dense network. kept: by group, the units that are still there, in the dense numbering. steps: mini-
    batches that there are to spend, per_epoch of them in a pass over the data; step: how many were. hooks: of every
    step from now on, whatever the procedure: those of quantised weights.

    What the goal asks besides channels is carried out as soon as the last of them is gone, for whichever procedure.

    cuts: what each call of `cut` left. repeatable: whether a run that makes these cuts again has tensors of the same
    names and shapes, with the same meaning (`procedures.snapshot`).
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        goal: PruningPlan,
        *,
        steps: int,
        per_epoch: int,
        optimizer: Callable[[nn.Module], Optimizer],
        calibration: Sequence[Batch] = (),
        loss: Loss = F.cross_entropy,
        seed: int = 0,
    ) -> None:
        """model: dense, and changed in place until the first cut. optimizer: made anew for each network; momenta of
        what stays are carried over. calibration: batches through the training augmentation, for scores and batch norm.
        """
        self.model, self.graph, self.goal = model, graph, goal
        self.steps, self.per_epoch, self.step = steps, per_epoch, 0
        self.calibration, self.loss = calibration, loss
        self.rng = np.random.default_rng([seed, 3])
        self.kept: dict[str, tuple[int, ...]] = {g.name: tuple(range(g.units)) for g in graph.groups}
        self.hooks: tuple[Hook, ...] = ()
        self.cuts: list[Kept] = []
        self.repeatable = True
        self._repeat: list[Kept] | None = None
        self._compacted = not (goal.stacks or goal.layers)
        self._make_optimizer = optimizer
        self.optimizer = optimizer(model)

    @property
    def done(self) -> float:
        """Share of the steps that were taken."""
        return self.step / self.steps if self.steps else 1.0

    @property
    def left(self) -> int:
        """Steps that are left."""
        return self.steps - self.step

    @property
    def identity(self) -> str:
        """Equal for runs with one goal and one length."""
        return f"{self.goal.key()} in {self.steps} steps, {self.per_epoch} an epoch"

    @property
    def arrived(self) -> bool:
        """Whether everything has gone that the goal asks for."""
        return self._compacted and self.counts() == self.wanted()

    def wanted(self) -> dict[str, int]:
        """Group -> how many units shall stay in the end."""
        return {g.name: len(g.kept) for g in self.goal.groups}

    def counts(self) -> dict[str, int]:
        """Group -> how many units there are now."""
        return {name: len(units) for name, units in self.kept.items()}

    def plan(self) -> PruningPlan:
        """What has gone so far, as a plan for the dense network."""
        return replace(
            self.goal,
            groups=tuple(
                GroupPlan(g.name, g.choice, g.units, self.kept[g.name], g.requested) for g in self.goal.groups
            ),
        )

    def scores(self, names: str | Mapping[str, str] | None = None) -> UnitScores:
        """Units, as of now, of every group that is to lose any more.

        names: one criterion for all, or group -> criterion; a group that it leaves out has that of its own choice.
        Raises PrunefrontError where the criterion does not fit a group, unless an explicit pattern decides there.
        """
        if self._repeat is not None:
            return {}  # the cuts are known
        wanted, counts = self.wanted(), self.counts()
        chosen, explicit = {}, set()
        for g in self.goal.groups:
            if wanted[g.name] == counts[g.name]:
                continue
            own = g.choice.criterion
            name = names if isinstance(names, str) else (names or {}).get(g.name, own)
            if g.choice.keep is not None:
                explicit.add(g.name)
                if name not in criteria:
                    continue
            chosen[g.name] = name
        found: Scores = score_all(
            self.model, self.graph, sorted(set(chosen.values())), self.calibration or None, self.loss
        )
        for group, criterion in chosen.items():
            if group not in found[criterion] and group not in explicit:
                raise PrunefrontError(
                    f"criterion {criterion!r} cannot rank group {group!r}, which this procedure must score again"
                )
        return {group: found[name][group] for group, name in chosen.items() if group in found[name]}

    def fitting(self, criterion: str) -> dict[str, str]:
        """The groups for which a criterion makes sense, each with its name, as `scores` takes them."""
        entry = criteria[criterion]
        return {g.name: criterion for g in self.graph.groups if why_not(entry, g, self.graph) is None}

    def weakest(
        self, counts: Mapping[str, int], scores: UnitScores | None = None
    ) -> dict[str, tuple[int, ...]]:
        """The units, in the dense numbering, that stay if every group is to keep `counts` of those that it has.

        scores: of the units that are there; None = those of the goal, as long as it decides. An explicit pattern of the
        goal outweighs scores.
        """
        stay = {}
        for group in self.goal.groups:
            here = self.kept[group.name]
            count = min(counts.get(group.name, len(here)), len(here))
            proposed = set(group.kept)
            if count == len(here):
                stay[group.name] = here
                continue
            pattern = proposed if group.choice.keep is not None or scores is None else set()
            if scores is None and count != len(group.kept):
                raise ValueError(f"the goal does not say which {count} units of {group.name!r} stay")
            if scores is None or (pattern and group.name not in scores):
                value = np.zeros(len(here))
            else:
                value = scores[group.name]
            order = sorted(range(len(here)), key=lambda u: (here[u] not in pattern, -value[u], u))
            stay[group.name] = tuple(sorted(here[u] for u in order[:count]))
        return stay

    def fewer(self, number: int, scores: UnitScores) -> dict[str, int]:
        """Counts, as `cut` takes them, without the `number` weakest units of all groups together.

        No group falls below the goal's count, so at most as many go as are left to. scores: comparable between groups.
        """
        stay, counts = self.weakest(self.wanted(), scores), self.counts()
        going = sorted(
            (float(value), name, unit)
            for name, values in scores.items()
            for unit, value in zip(self.kept[name], values, strict=True)
            if unit not in set(stay[name])
        )
        for _, name, _ in going[:number]:
            counts[name] -= 1
        return counts

    def cut(
        self,
        counts: Mapping[str, int] | None = None,
        scores: UnitScores | None = None,
        *,
        statistics: bool = True,
    ) -> None:
        """Takes the weakest units out of the network; by default all that the goal does not keep.

        statistics: estimate batch norms anew; a procedure that cuts often and trains on at once saves it.
        """
        stay = self._stay(self.wanted() if counts is None else counts, scores)
        statistics = statistics and self._repeat is None
        self.cuts.append(stay)
        if stay != self.kept:
            plan = self._relative(stay)
            before, graph, old = self.model, self.graph, self.optimizer
            after = prune(before, graph, plan, self.calibration, statistics=statistics)
            self.model, self.graph, self.kept = after, reduced_graph(graph, plan), stay
            self.optimizer = self._make_optimizer(after)
            carry(old, self.optimizer, before, after, graph, plan)
        self.arrive()

    def repeat(self, cuts: Sequence[Kept]) -> None:
        """From now on makes these cuts, whatever is asked for, until `repeated`; nothing is scored or estimated."""
        self._repeat = list(cuts)

    def repeated(self) -> None:
        """Ends `repeat`. Raises SnapshotError where not all of its cuts were made."""
        if self._repeat:
            raise SnapshotError(f"the snapshot is of a run with {len(self._repeat)} more cuts")
        self._repeat = None

    def _stay(self, counts: Mapping[str, int], scores: UnitScores | None) -> dict[str, tuple[int, ...]]:
        if self._repeat is None:
            return self.weakest(counts, scores)
        if not self._repeat:
            raise SnapshotError("the snapshot is of a run with fewer cuts")
        stay = dict(self._repeat.pop(0))
        if stay.keys() != self.kept.keys() or any(not set(stay[g]) <= set(self.kept[g]) for g in stay):
            raise SnapshotError("the snapshot is of a run with other channel groups")
        return stay

    def arrive(self) -> None:
        """Carries out what the goal asks besides channels, if these are all gone and it was not done yet."""
        if self._compacted or self.counts() != self.wanted():
            return
        self._compacted = True
        self.repeatable = self.step == 0  # which units of a layer stay is decided on its weights of now
        before, old = self.model, self.optimizer
        self.model = compact(before, self.graph, self.goal)
        if quantised := self.goal.bit_widths():
            wrap(self.model, quantised, self.goal.quantisation)
            self.hooks = (
                QuantisedWeights(self.model, parameter_bit_widths(self.goal), self.goal.quantisation),
            )
        if self.calibration and self._repeat is None:
            calibrate(self.model, self.goal, self.calibration)
        self.optimizer = self._make_optimizer(self.model)
        carry(old, self.optimizer, before, self.model, NOTHING, PruningPlan(()))

    def finish(self) -> None:
        """After the last step: the network gets the quantised weights that were trained for. Raises ValueError before
        the goal is reached."""
        self.arrive()
        if not self._compacted:
            raise ValueError("the procedure is over before the last channels are gone")
        for hook in self.hooks:
            hook.finish(self)
        if self.hooks and not self.steps and self.calibration:
            calibrate(self.model, self.goal, self.calibration)

    def _relative(self, stay: Mapping[str, tuple[int, ...]]) -> PruningPlan:
        """The plan for the network of now that leaves the units `stay`."""
        groups = []
        for group in self.goal.groups:
            here = self.kept[group.name]
            place = {unit: number for number, unit in enumerate(here)}
            kept = tuple(place[unit] for unit in stay[group.name])
            groups.append(GroupPlan(group.name, group.choice, len(here), kept, 1.0 - len(kept) / len(here)))
        return PruningPlan(tuple(groups))


def carry(
    old: Optimizer,
    new: Optimizer,
    before: nn.Module,
    after: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
) -> None:
    """Hands each parameter's optimiser state on to what is left of it. Tensors of another shape start afresh."""
    going = removed_positions(graph, plan)
    parameters, successors = dict(before.named_parameters()), dict(after.named_parameters())
    for name, parameter in parameters.items():
        state = old.state.get(parameter)
        if not state or name not in successors:  # a layer that became another, or went with its block
            continue
        new.state[successors[name]] = {
            key: cut_tensor(going, name, value)
            if isinstance(value, Tensor) and value.shape == parameter.shape
            else value
            for key, value in state.items()
        }
