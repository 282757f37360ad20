"""Tick-Tock: small cuts after short frozen phases, with full training at intervals (You et al. 2019, 1909.08174)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.channels.network_slimming import ScalePenalty
from prunefront.pruners.procedures.hook import Hook, Progress, UnitScores
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.procedures.schedules import check, check_strength, falling_counts, split, triangular
from prunefront.pruners.procedures.slices import groups_to_cut, slices_of
from prunefront.pruners.statistics.first_order import separate_gates
from prunefront.pruners.units.view import gates

LOW = 0.1
"""Learning rate of a Tick, and of both ends of a Tock, over the recipe's: the authors have 1e-3 and a peak of 1e-2."""

TRIANGLE = 0.8
"""Part of the last fine-tuning in which the learning rate is a triangle: 40 of the authors' 50 epochs."""


class GateScores(Hook):
    """Θ = Σ_batches Σ_members |γ ∂L/∂γ + β ∂L/∂β| of every unit, while weights of convs and linears stand still.

    A group without trained norms uses w · ∂L/∂w of the layers that produce it instead. A bias that may belong to
    several gates joins them into one (own).
    """

    def __init__(self, run: Run) -> None:
        """Raises PrunefrontError for a group without trained parameters."""
        self.gates = {}
        for group in groups_to_cut(run):
            members, count = gates(group, run.graph)
            if not count:
                raise PrunefrontError(
                    f"a Tick cannot score group {group.name!r}, which has no trained norm, conv or linear layer; "
                    "leave it dense, or choose another procedure"
                )
            apart = separate_gates(group, run.graph) or (members,)
            self.gates[group.name] = tuple(slices_of(run, one) for one in apart)
        self._read = {s.name for each in self.gates.values() for one in each for s in one}
        self._sums = {
            name: torch.zeros(len(run.kept[name]), dtype=torch.float64, device=each[0][0].tensor.device)
            for name, each in self.gates.items()
        }

    def trains(self, name: str, parameter: Tensor) -> bool:
        """Returns True, as `Phase.trains`, for scales, shifts, biases, and weights whose gradients are only read."""
        return parameter.ndim < 2 or name in self._read

    @torch.no_grad()
    def use_gradients(self, run: Progress) -> bool:
        for name, each in self.gates.items():
            for one in each:
                works = [
                    s.total((s.tensor * s.tensor.grad).double()) for s in one if s.tensor.grad is not None
                ]
                if works:
                    self._sums[name] += torch.stack(works).sum(0).abs()
        for parameter in run.model.parameters():
            if parameter.ndim > 1:
                parameter.grad = None
        return True

    def scores(self) -> UnitScores:
        """Returns group -> Θ of its units."""
        return {name: total.cpu().numpy() for name, total in self._sums.items()}


@procedure(
    "tick_tock",
    choose="best accuracy where there are many steps: a few units at a time, everywhere in the network",
    paper="You et al. 2019, 1909.08174",
)
def tick_tock(
    run: Run,
    ticks: int = 30,
    ticks_per_tock: int = 10,
    tick_share: float = 0.2,
    tock_share: float = 0.4,
    strength: float = 1e-3,
) -> Iterator[Phase]:
    """Makes many small cuts, each after a short frozen phase (Tick), with full training at intervals (Tock).

    A Tock comes first and after every `ticks_per_tock` Ticks but the last: all parameters, L + strength · Σ|γ|, a
    triangular learning rate. A Tick moves only norms and biases, at a tenth of the recipe's rate, and sums up scores.
    Then the weakest units of the whole network go, none below the goal's count of its group. In the end the network is
    trained on with a triangle and a tail at a tenth of the rate.

    Own, to fit any budget: the authors have about 150 Ticks of an epoch on a subset, Tocks of 10 epochs and 50 epochs
    at the end. Here all Ticks together have `tick_share` of the steps, all Tocks `tock_share`. The authors take 0.2 %
    or 0.5 % of the units per Tick. Here each Tick takes the same fraction of those left, at least one unit, such that
    the last ends at the goal. There are no more Ticks than steps for them or units that go; without any, the goal's own
    units go. Batch norms are estimated again after the last Tick.
    """
    yield from run_ticks("tick_tock", run, ticks, ticks_per_tock, tick_share, tock_share, strength)


def run_ticks(
    name: str,
    run: Run,
    ticks: int,
    ticks_per_tock: int,
    tick_share: float,
    tock_share: float,
    strength: float,
) -> Iterator[Phase]:
    """Yields the phases of tick_tock and its ablation, whose options these are."""
    check(
        name,
        shares={"tick_share": tick_share, "tock_share": tock_share},
        counts={"ticks": ticks, "ticks_per_tock": ticks_per_tock},
    )
    check_strength(name, strength)
    units, goal = sum(run.counts().values()), sum(run.goal_counts().values())
    looking = int(run.steps_left * tick_share)
    ticks = min(ticks, looking, units - goal)
    tocks = iter(split(int(run.steps_left * tock_share), 1 + max(0, ticks - 1) // ticks_per_tock))

    def tock() -> Phase:
        return Phase(
            next(tocks), rate=lambda share: triangular(share, LOW), hooks=(ScalePenalty(run, strength),)
        )

    yield tock()
    steps = split(looking, ticks) if ticks else []
    for number, (left, length) in enumerate(zip(falling_counts(units, goal, ticks), steps, strict=True), 1):
        hook = GateScores(run)
        yield Phase(length, rate=lambda _: LOW, hooks=(hook,), trains=hook.trains)
        scores = hook.scores()
        run.cut(run.fewer(units - left, scores), scores, statistics=left == goal)
        units = left
        if number < ticks and number % ticks_per_tock == 0:
            yield tock()
    run.cut()
    triangle = int(run.steps_left * TRIANGLE)
    yield Phase(triangle, rate=lambda share: triangular(share, LOW))
    yield Phase(run.steps_left, rate=lambda _: LOW)
