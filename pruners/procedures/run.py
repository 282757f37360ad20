"""A network on its way to a plan: the state that a training procedure holds and changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from prunefront.errors import PrunefrontError
from prunefront.pruners.bits.bit_width import wrap
from prunefront.pruners.criteria import criteria
from prunefront.pruners.cut.compact import compact
from prunefront.pruners.cut.prune import calibrate, prune
from prunefront.pruners.cut.refit import Refit
from prunefront.pruners.cut.surgery import cut_tensor, reduced_graph, removed_positions
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import GroupPlan, PruningPlan, Scores
from prunefront.pruners.plan.layer_parts import parameter_bit_widths
from prunefront.pruners.procedures.bit_widths import QuantisedWeights
from prunefront.pruners.procedures.hook import Hook, UnitScores
from prunefront.pruners.scoring import score, why_not
from prunefront.pruners.statistics import Batch, Loss

NO_CHANNELS = ChannelGraph((), (), (), {}, ())
"""Channel graph for a step that cuts no channel."""

Kept = Mapping[str, tuple[int, ...]]
"""Map from group to the units that are still there, in the dense numbering."""


class SnapshotError(PrunefrontError):
    """The bytes are no snapshot, or one of another run."""


class Run:
    """State of one procedure: the present network, the progress, and the means to go on.

    model, graph: the present ones; `cut` replaces both. goal: the plan to arrive at; its counts bind, its units are a
    proposal made on the dense network. kept: group -> the units that are still there, in the dense numbering. steps:
    mini- batches to spend, per_epoch of them in a pass over the data; step: the number already spent. hooks: called in
    every step from now on, whatever the procedure; they train for small bit widths.

    For every procedure, the parts of the goal beside channels are carried out as soon as the last channel is gone.

    cuts: the units that each call of `cut` left. replayable: a run that makes these cuts again has tensors of the same
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
        repaired: Refit | Literal["criterion", "none"] = "criterion",
    ) -> None:
        """model: dense, changed in place until the first cut. optimizer: makes one for each new network.

        Momenta of remaining weights are carried over. calibration: batches through the training augmentation, for
        scores and batch norm. repaired: as in `prune`. A `Refit` of the model serves until a step is taken; later cuts
        have the moments of the network that they find, gathered on the calibration batches.
        """
        self.model, self.graph, self.goal = model, graph, goal
        self.steps, self.per_epoch, self.step = steps, per_epoch, 0
        self.calibration, self.loss = calibration, loss
        self.rng = np.random.default_rng([seed, 3])
        self.kept: dict[str, tuple[int, ...]] = {g.name: tuple(range(g.units)) for g in graph.groups}
        self.hooks: tuple[Hook, ...] = ()
        self.cuts: list[Kept] = []
        self.replayable = True
        self._replay: list[Kept] | None = None
        self._compacted = not (goal.stacks or goal.layers)
        self._repaired, self._repaired_at = repaired, 0
        self._make_optimizer = optimizer
        self.optimizer = optimizer(model)

    @property
    def share_done(self) -> float:
        """Share of the steps that are spent."""
        return self.step / self.steps if self.steps else 1.0

    @property
    def steps_left(self) -> int:
        """Number of steps that are left."""
        return self.steps - self.step

    @property
    def identity(self) -> str:
        """Text that is equal for runs with the same goal and the same length."""
        return f"{self.goal.key()} in {self.steps} steps, {self.per_epoch} an epoch"

    @property
    def at_goal(self) -> bool:
        """Says that everything is gone that the goal asks for."""
        return self._compacted and self.counts() == self.goal_counts()

    def goal_counts(self) -> dict[str, int]:
        """Returns group -> how many units shall stay in the end."""
        return {g.name: len(g.kept) for g in self.goal.groups}

    def counts(self) -> dict[str, int]:
        """Returns group -> how many units there are at present."""
        return {name: len(units) for name, units in self.kept.items()}

    def plan(self) -> PruningPlan:
        """Returns the cuts made so far as a plan for the dense network."""
        return replace(
            self.goal,
            groups=tuple(
                GroupPlan(g.name, g.choice, g.units, self.kept[g.name], g.requested) for g in self.goal.groups
            ),
        )

    def scores(self, names: str | Mapping[str, str] | None = None) -> UnitScores:
        """Returns scores of the present units of every group that has units to lose.

        names: one criterion for all, or group -> criterion; a group that it leaves out has that of its own choice.
        Raises PrunefrontError where the criterion does not fit a group, unless an explicit pattern decides there.
        """
        if self._replay is not None:
            return {}  # the cuts are known
        wanted, counts = self.goal_counts(), self.counts()
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
        found: Scores = score(
            self.model, self.graph, sorted(set(chosen.values())), self.calibration or None, self.loss
        )
        for group, criterion in chosen.items():
            if group not in found[criterion] and group not in explicit:
                raise PrunefrontError(
                    f"criterion {criterion!r} cannot rank group {group!r}, which this procedure must score again"
                )
        return {group: found[name][group] for group, name in chosen.items() if group in found[name]}

    def applicable(self, criterion: str) -> dict[str, str]:
        """Returns group -> this criterion, for the groups to which it applies, as `scores` takes them."""
        entry = criteria[criterion]
        return {g.name: criterion for g in self.graph.groups if why_not(entry, g, self.graph) is None}

    def weakest(
        self, counts: Mapping[str, int], scores: UnitScores | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Returns the units that stay, in the dense numbering, if every group keeps `counts` of those that it has.

        scores: of the present units; None = the goal's units stay, where it decides. An explicit pattern of the goal
        outweighs scores.
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
                raise ValueError(f"the goal does not name {count} units of {group.name!r} to keep")
            if scores is None or (pattern and group.name not in scores):
                value = np.zeros(len(here))
            else:
                value = scores[group.name]
            order = sorted(range(len(here)), key=lambda u: (here[u] not in pattern, -value[u], u))
            stay[group.name] = tuple(sorted(here[u] for u in order[:count]))
        return stay

    def fewer(self, number: int, scores: UnitScores) -> dict[str, int]:
        """Returns counts, as `cut` takes them, without the `number` weakest units of all groups together.

        No group falls below the goal's count, so no more units go than may. scores: comparable between groups.
        """
        stay, counts = self.weakest(self.goal_counts(), scores), self.counts()
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

        statistics: estimate batch norms again. A procedure that cuts often and trains on at once saves that work.
        """
        stay = self._choose_units(self.goal_counts() if counts is None else counts, scores)
        statistics = statistics and self._replay is None
        self.cuts.append(stay)
        if stay != self.kept:
            plan = self._plan_from_here(stay)
            before, graph, old = self.model, self.graph, self.optimizer
            repaired = self._repair_now()
            after = prune(before, graph, plan, self.calibration, statistics=statistics, repaired=repaired)
            if isinstance(repaired, Refit):
                self._repaired = repaired.after(before, graph, plan)
            self.model, self.graph, self.kept = after, reduced_graph(graph, plan), stay
            self.optimizer = self._make_optimizer(after)
            carry_state(old, self.optimizer, before, after, graph, plan)
        self.compact_if_cut()

    def _repair_now(self) -> Refit | Literal["criterion", "none"]:
        """Returns what fits the present network after a cut; in a replay nothing, as weights come from outside."""
        if self._replay is not None:
            return "none"
        if isinstance(self._repaired, Refit) and self._repaired_at != self.step:
            layers = bool(self.goal.layers)
            self._repaired = Refit.of(self.model, self.graph, self.calibration, layers=layers)
            self._repaired_at = self.step
        return self._repaired

    def start_replay(self, cuts: Sequence[Kept]) -> None:
        """Makes these cuts instead of the requested ones until `end_replay`. Meanwhile nothing is scored or estimated.

        cuts: those of a snapshot.
        """
        self._replay = list(cuts)

    def end_replay(self) -> None:
        """Ends `start_replay`. Raises SnapshotError where not all of its cuts were made."""
        if self._replay:
            raise SnapshotError(f"the snapshot is of a run with {len(self._replay)} more cuts")
        self._replay = None

    def _choose_units(
        self, counts: Mapping[str, int], scores: UnitScores | None
    ) -> dict[str, tuple[int, ...]]:
        if self._replay is None:
            return self.weakest(counts, scores)
        if not self._replay:
            raise SnapshotError("the snapshot is of a run with fewer cuts")
        stay = dict(self._replay.pop(0))
        if stay.keys() != self.kept.keys() or any(not set(stay[g]) <= set(self.kept[g]) for g in stay):
            raise SnapshotError("the snapshot is of a run with other channel groups")
        return stay

    def compact_if_cut(self) -> None:
        """Carries out the goal's parts beside channels, if all channels are gone and it was not done yet."""
        if self._compacted or self.counts() != self.goal_counts():
            return
        self._compacted = True
        self.replayable = self.step == 0  # the present weights decide which units of a layer stay
        before, old = self.model, self.optimizer
        repaired = self._repair_now() if self.goal.layers else "none"
        refit = repaired if isinstance(repaired, Refit) else None
        self.model = compact(before, self.graph, self.goal, refit)
        if short := self.goal.bit_widths():
            wrap(self.model, short, self.goal.quantisation)
            self.hooks = (
                QuantisedWeights(self.model, parameter_bit_widths(self.goal), self.goal.quantisation),
            )
        if self.calibration and self._replay is None:
            calibrate(self.model, self.goal, self.calibration)
        self.optimizer = self._make_optimizer(self.model)
        carry_state(old, self.optimizer, before, self.model, NO_CHANNELS, PruningPlan(()))

    def finish(self) -> None:
        """Makes the quantised weights that were trained for the network's own, after the last step.

        Raises ValueError before the goal is reached.
        """
        self.compact_if_cut()
        if not self._compacted:
            raise ValueError("the procedure ended before the last channels were removed")
        for hook in self.hooks:
            hook.finish(self)
        if self.hooks and not self.steps and self.calibration:
            calibrate(self.model, self.goal, self.calibration)

    def _plan_from_here(self, stay: Mapping[str, tuple[int, ...]]) -> PruningPlan:
        """Returns the plan that takes the present network to the units `stay`."""
        groups = []
        for group in self.goal.groups:
            here = self.kept[group.name]
            place = {unit: number for number, unit in enumerate(here)}
            kept = tuple(place[unit] for unit in stay[group.name])
            groups.append(GroupPlan(group.name, group.choice, len(here), kept, 1.0 - len(kept) / len(here)))
        return PruningPlan(tuple(groups))


def carry_state(
    old: Optimizer,
    new: Optimizer,
    before: nn.Module,
    after: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
) -> None:
    """Passes each parameter's optimiser state on to the rest of it. Tensors of another shape start afresh."""
    going = removed_positions(graph, plan)
    parameters, successors = dict(before.named_parameters()), dict(after.named_parameters())
    for name, parameter in parameters.items():
        state = old.state.get(parameter)
        if not state or name not in successors:  # a layer that another replaced, or that went with its block
            continue
        new.state[successors[name]] = {
            key: cut_tensor(going, name, value)
            if isinstance(value, Tensor) and value.shape == parameter.shape
            else value
            for key, value in state.items()
        }
