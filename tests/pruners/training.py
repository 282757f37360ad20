"""Tools that tests of training procedures share: a run that takes milliseconds, and a log of its phases."""

import itertools
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from prunefront.choice import GroupChoice
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.procedures import Phase
from prunefront.pruners.procedures.loop import EpochReport, fit
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.scoring import score
from tests.pruners.fixtures import Residual, batches, made

RATE = 0.05


def data(count: int = 3):
    return [(x.float(), y) for x, y in batches(count=count, images=6)]


def sgd(model: nn.Module, momentum: float = 0.9) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=momentum)


def goal_of(model: nn.Module, **choices: GroupChoice) -> PruningPlan:
    """By default half of every group by l1."""
    graph = model.graph()
    asked = choices or {g.name: GroupChoice("l1", 0.5) for g in graph.groups}
    return plan(graph, asked, score(model, graph, ("l1", "l2", "bn_scale"), data()))


def start(
    kind=Residual,
    *,
    steps: int = 12,
    per_epoch: int = 5,
    goal=None,
    optimizer=sgd,
    dtype=torch.float32,
    repaired="criterion",
) -> Run:
    """A run that no step has been taken of. goal: of the model, or None = `goal_of`."""
    model = made(kind).to(dtype)
    return Run(
        model,
        model.graph(),
        goal_of(model) if goal is None else goal,
        steps=steps,
        per_epoch=per_epoch,
        optimizer=optimizer,
        calibration=[(x.to(dtype), y) for x, y in data(count=2)],
        repaired=repaired,
    )


def backward(model: nn.Module, batch, number: int) -> float:
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    return loss.item()


def no_slope(model: nn.Module, batch, number: int) -> float:
    """A loss that no parameter can change."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    return 1.0


def trained(
    run: Run, phases: Iterator[Phase], backward=backward, schedule=lambda done: 1.0
) -> Iterator[EpochReport]:
    dtype = next(run.model.parameters()).dtype
    stream = itertools.cycle([(x.to(dtype), y) for x, y in data()])
    return fit(run, phases, stream, backward, learning_rate=RATE, schedule=schedule)


def density(weights: Iterable[torch.Tensor]) -> float:
    """Share of the elements that are not zero."""
    held = list(weights)
    return sum(int(t.count_nonzero()) for t in held) / sum(t.numel() for t in held)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything that the network holds."""
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


class Log:
    """Goes between a procedure and the loop: the network before and after each phase, its units, its rates."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.phases: list[Phase] = []
        self.before, self.after, self.kept, self.rates = [], [], [], []

    def through(self, phases: Iterator[Phase]) -> Iterator[Phase]:
        for phase in phases:
            self.phases.append(phase)
            self.kept.append(dict(self.run.kept))
            self.before.append(tensors(self.run.model))
            self.rates.append([])
            yield phase
            self.after.append(tensors(self.run.model))

    def backward(self, model: nn.Module, batch, number: int) -> float:
        self.rates[-1].append(self.run.optimizer.param_groups[0]["lr"] / RATE)
        return backward(model, batch, number)
