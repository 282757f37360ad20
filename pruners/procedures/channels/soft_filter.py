"""Soft filter pruning: weak filters are zeroed after each epoch and may come back (He et al. 2018, 1808.06866)."""

from collections.abc import Iterator

import torch

from prunefront.errors import PrunefrontError
from prunefront.pruners.criteria import criteria
from prunefront.pruners.graph.channel_graph import ChannelGroup
from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.hook import Hook, Progress, UnitScores
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.procedures.slices import WHISPER, Slice, groups_to_cut, slices_of
from prunefront.pruners.scoring import why_not
from prunefront.pruners.units.view import MEASURED, scales, shifts

FAINT = 3e-3
"""Largest |γ| that a silenced unit's scale is left with: about √ε of torch's batch norms."""


class SoftFilters(Hook):
    """Silences, after each epoch and after the last step, the units that the goal's counts do not keep."""

    def __init__(self, run: Run, criterion: str) -> None:
        """criterion: scores the units, "" = see `soft_filter`."""
        self.criteria = scoring_criteria(run, criterion)
        self.groups = {g.name: _Filters(run, g) for g in groups_to_cut(run)}
        self.scores: UnitScores | None = None

    def after_step(self, run: Progress) -> None:
        step = run.step + 1
        if step % run.per_epoch and step != run.steps:
            return
        self.scores = run.scores(self.criteria)
        stay = run.weakest(run.goal_counts(), self.scores)
        for name, filters in self.groups.items():
            kept = set(stay[name])
            filters.silence(
                torch.tensor(
                    [u for u, unit in enumerate(run.kept[name]) if unit not in kept], dtype=torch.int64
                )
            )


class _Filters:
    """Slices of the tensors that make a group's units."""

    def __init__(self, run: Run, group: ChannelGroup) -> None:
        made = [m for m in group.members if m.role == "out"]
        means = [
            m for m in group.members if m.role == "norm" and m.tensor.rpartition(".")[2] == "running_mean"
        ]
        self.weights: list[Slice] = [s for s in slices_of(run, made) if s.tensor.ndim > 1]
        self.shifts = [s for s in slices_of(run, made) if s.tensor.ndim == 1] + list(
            slices_of(run, shifts(group))
        )
        self.means = slices_of(run, means)
        self.scales = slices_of(run, scales(group))

    @torch.no_grad()
    def silence(self, units: torch.Tensor) -> None:
        for part in self.weights:
            part.fill(units, 0.0)
        for part in self.shifts:
            part.fill(units, WHISPER)
        for part in self.means:
            part.fill(units, 0.0)
        for part in self.scales:
            places = part.index[units.to(part.index.device)].flatten()
            part.tensor[places] = part.tensor[places].clamp(-FAINT, FAINT)


def scoring_criteria(run: Run, criterion: str) -> dict[str, str]:
    """Returns group -> the criterion that scores it after each epoch.

    Raises PrunefrontError where the given criterion does not apply to a group that loses units.
    """
    if criterion:
        explicit = {g.name for g in run.goal.groups if g.choice.keep is not None}
        for group in groups_to_cut(run):
            reason = why_not(criteria[criterion], group, run.graph)
            if reason is not None and group.name not in explicit:
                raise PrunefrontError(
                    f"criterion = {criterion!r} of procedure 'soft_filter' does not apply to group {group.name!r}, "
                    f"which {reason}; leave the option out, so that each group has its own criterion or 'l2'"
                )
        return run.applicable(criterion)
    free = {
        g.name: g.choice.criterion
        for g in run.goal.groups
        if g.choice.criterion in criteria and not criteria[g.choice.criterion].needs & MEASURED
    }
    return run.applicable("l2") | free


@procedure(
    "soft_filter",
    choose="training at a high rate: no unit is lost for good before the end",
    paper="He et al. 2018, 1808.06866",
)
def soft_filter(run: Run, criterion: str = "") -> Iterator[Phase]:
    """Zeroes the weakest units after each epoch, trains all of them on, and takes them out at the end.

    criterion: ranks the units to zero; it must apply to every group that loses any. By default each group has its own
    if that needs no data, else `l2`, the paper's.

    Zeroing (own): producing weights and biases, the norms' shifts β and running means become zero, so that the unit is
    silent in train and eval mode. The authors zero the convolution alone, which leaves a constant of β. The scale |γ|
    becomes `FAINT` at most. A batch norm would otherwise bring the smallest filter back at full strength in one step;
    with γ = 0 neither γ nor the weights would have a gradient. Shifts are `WHISPER` instead of 0, so that a ReLU lets
    the gradient through. A unit with neither norm nor bias comes back by momentum only. Reports are of the zeroed
    network. With fewer steps than an epoch, there is one zeroing, after the last.
    """
    hook = SoftFilters(run, criterion)
    yield Phase(run.steps_left, hooks=(hook,))
    run.cut(scores=hook.scores)
