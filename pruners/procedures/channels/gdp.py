"""Global dynamic pruning: masks that are drawn again every few steps (Lin et al., IJCAI 2018)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.hook import Hook, Progress, UnitScores
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.procedures.schedules import check
from prunefront.pruners.procedures.slices import WHISPER, groups_to_cut, slices_of
from prunefront.pruners.units.view import gates


class DynamicMasks(Hook):
    """Masks each group's weakest units in the forward pass; all units are scored, and ranked again at intervals.

    A score is the mean of |Σ w · ∂L/∂w| over the mini-batches since the last ranking. w are the parameters at the
    unit's gates (see `view.gates`): γ and β of its norms, else the weights that produce it. A masked unit has WHISPER ·
    w instead of 0. Its sum is then the change of the loss, to first order, when the unit starts to come back.
    """

    def __init__(self, run: Run, every: int) -> None:
        """every: steps from one ranking to the next. Raises PrunefrontError for a group without trained parameters."""
        self.every, self.seen = every, 0
        self.gates = {}
        for group in groups_to_cut(run):
            members, count = gates(group, run.graph)
            if not count:
                raise PrunefrontError(
                    f"procedure 'gdp' cannot score group {group.name!r}, which has no trained norm, conv or linear "
                    "layer; leave it dense, or choose another procedure"
                )
            self.gates[group.name] = slices_of(run, members)
        self.tensors = {s.name: s.tensor for parts in self.gates.values() for s in parts}
        self.stay = run.weakest(run.goal_counts())
        self.scores: UnitScores | None = None
        self._factors = self._masks(run)
        self._works: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}

    @torch.no_grad()
    def install(self, run: Progress) -> None:
        self._trained = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        for name, parts in self.gates.items():
            for part in parts:
                part.scale(self._factors[name])

    @torch.no_grad()
    def restore(self, run: Progress) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(self._trained[name])

    @torch.no_grad()
    def use_gradients(self, run: Progress) -> bool:
        for name, parts in self.gates.items():
            works = [p.total((p.tensor * p.tensor.grad).double()) for p in parts if p.tensor.grad is not None]
            if works:
                work = torch.stack(works).sum(0).abs()
                self._works[name] = work + self._works.get(name, torch.zeros_like(work))
        self.seen += 1
        return True

    def after_step(self, run: Progress) -> None:
        if self.seen == self.every:
            self.rank(run)

    def rank(self, run: Progress) -> None:
        """Chooses the masks again from the scores since the last ranking, if there are any."""
        if not self.seen:
            return
        self.scores = {
            name: self._works[name].cpu().numpy() / self.seen
            if name in self._works
            else torch.zeros(len(run.kept[name]), dtype=torch.float64).numpy()
            for name in self.gates
        }
        self.stay = run.weakest(run.goal_counts(), self.scores)
        self._factors = self._masks(run)
        self._works, self.seen = {}, 0

    def _masks(self, run: Progress) -> dict[str, Tensor]:
        factors = {}
        for name, parts in self.gates.items():
            kept = set(self.stay[name])
            factors[name] = torch.tensor(
                [1.0 if u in kept else WHISPER for u in run.kept[name]], device=parts[0].tensor.device
            )
        return factors


@procedure(
    "gdp",
    choose="when early scores are unreliable: masked units go on competing and may return",
    paper="Lin et al. 2018, IJCAI",
)
def gdp(run: Run, dynamic: float = 0.5, every: int = 16) -> Iterator[Phase]:
    """Masks the weakest units, ranks all of them every few steps, then cuts by the last ranking and trains on.

    dynamic: share of the steps with masks; both parts have the recipe's whole schedule (own). every: steps between
    rankings. The gradient is that of the masked network and moves all trained weights, masked ones included. Layers
    before a masked norm get nearly no gradient, since the mask sits after the norm (in front of it, scores of a batch
    norm's filters are noise). The number of masked units is the goal's count of each group at all times; own, since the
    paper ranks all groups together.
    """
    check("gdp", shares={"dynamic": dynamic}, counts={"every": every})
    hook = DynamicMasks(run, every)
    yield Phase(int(run.steps_left * dynamic), restart=True, hooks=(hook,))
    hook.rank(run)
    run.cut(scores=hook.scores)
    yield Phase(run.steps_left, restart=True)
