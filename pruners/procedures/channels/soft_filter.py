"""Soft filter pruning: weak filters are zeroed after each epoch and may come back (He et al. 2018, 1808.06866)."""

from collections.abc import Iterator

import torch

from prunefront.pruners.criteria import criteria
from prunefront.pruners.graph.channel_graph import ChannelGroup
from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.hook import Hook, Progress, UnitScores
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.procedures.slices import WHISPER, Slice, losing, slices
from prunefront.pruners.units.view import MEASURED, scales, shifts

FAINT = 3e-3
"""The most that a silenced unit's scale γ is left with: about √ε of torch's batch norms."""


class SoftFilters(Hook):
    """After each epoch, and after the last step, silences the units that the goal's counts would cost."""

    def __init__(self, run: Run, criterion: str) -> None:
        """criterion: which scores the units, "" = see `soft_filter`."""
        self.criterions = chosen(run, criterion)
        self.groups = {g.name: _Filters(run, g) for g in losing(run)}
        self.scores: UnitScores | None = None

    def stepped(self, run: Progress) -> None:
        step = run.step + 1
        if step % run.per_epoch and step != run.steps:
            return
        self.scores = run.scores(self.criterions)
        stay = run.weakest(run.wanted(), self.scores)
        for name, filters in self.groups.items():
            kept = set(stay[name])
            filters.silence(
                torch.tensor(
                    [u for u, unit in enumerate(run.kept[name]) if unit not in kept], dtype=torch.int64
                )
            )


class _Filters:
    """What a group's units are made with."""

    def __init__(self, run: Run, group: ChannelGroup) -> None:
        made = [m for m in group.members if m.role == "out"]
        means = [
            m for m in group.members if m.role == "norm" and m.tensor.rpartition(".")[2] == "running_mean"
        ]
        self.weights: list[Slice] = [s for s in slices(run, made) if s.tensor.ndim > 1]
        self.shifts = [s for s in slices(run, made) if s.tensor.ndim == 1] + list(slices(run, shifts(group)))
        self.means = slices(run, means)
        self.scales = slices(run, scales(group))

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


def chosen(run: Run, criterion: str) -> dict[str, str]:
    """Group -> the criterion that scores it again and again."""
    if criterion:
        return run.fitting(criterion)
    free = {
        g.name: g.choice.criterion
        for g in run.goal.groups
        if g.choice.criterion in criteria and not criteria[g.choice.criterion].needs & MEASURED
    }
    return run.fitting("l2") | free


@procedure(
    "soft_filter",
    choose="training at a high rate: nothing is lost for good before the end",
    paper="He et al. 2018, 1808.06866",
)
def soft_filter(run: Run, criterion: str = "") -> Iterator[Phase]:
    """Zeroes the weakest units after each epoch, trains all of them on, and takes them out at the end.

    criterion: of the zeroing; by default each group's own if it needs no data, else `l2`, the paper's.
    What zeroing means (own): producing weights and biases, the norms' shifts β and running means become zero, so that
    the unit is silent in train and eval mode; the authors zero the convolution alone, which leaves a constant of β.
    The scale |γ| becomes `FAINT` at most: a batch norm would bring the smallest filter back at full strength in one
    step; were γ zero as well, neither it nor the weights would have a gradient. Shifts are not 0 but `WHISPER`, for a
    ReLU to let the gradient through; where a unit has neither norm nor bias, it comes back by momentum only. Reports
    are of the zeroed network. With fewer steps than an epoch, there is one zeroing, after the last.
    """
    hook = SoftFilters(run, criterion)
    yield Phase(run.left, hooks=(hook,))
    run.cut(scores=hook.scores)
