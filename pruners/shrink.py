"""Pruning of one network in one call, without a search: for notebooks, and to try a single method."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError
from prunefront.pruners.allocators import SCORES, Terms, allocators
from prunefront.pruners.criteria import criteria
from prunefront.pruners.cut.refit import Refit
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.cost import macs
from prunefront.pruners.plan.decide import keep_counts, plan
from prunefront.pruners.procedures import procedures
from prunefront.pruners.procedures.loop import fit
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.scoring import available, rank
from prunefront.pruners.statistics import Batch, Loss, collect
from prunefront.pruners.trace.tracer import trace


@dataclass(frozen=True, slots=True)
class PrunedNetwork:
    """A smaller network in eval mode, its plan, and the channel graph of the dense network."""

    model: nn.Module
    plan: PruningPlan
    graph: ChannelGraph

    @property
    def kept_macs(self) -> float:
        """Share of the dense network's MACs."""
        return macs(self.graph, self.plan) / macs(self.graph)


def shrink(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    kept_macs: float = 0.5,
    criterion: str = "taylor",
    allocator: str = "uniform",
    procedure: str = "one_shot",
    epochs: int = 0,
    learning_rate: float = 0.01,
    weight_decay: float = 5e-4,
    max_ratio: float = 0.9,
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    repaired: Literal["moments", "criterion", "none"] = "moments",
    **options: Any,
) -> PrunedNetwork:
    """Returns a copy of the network that keeps at most `kept_macs` of its MACs; the model itself stays as it is.

    batches: (inputs, labels) on the model's device. They serve to score units, to estimate batch norms again, and to
    train, each once an epoch, by SGD with Nesterov momentum 0.9 and a learning rate that falls as half a cosine.
    repaired: what the weights that read cut groups are fitted by: moments of the batches, the criterion's own repair,
    or nothing. options: options of the procedure. Groups that the criterion does not fit stay dense. Raises
    PrunefrontError if the network cannot be traced, if the criterion fits no group, and if the MACs are out of reach.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> batches = [(torch.randn(4, 8), torch.tensor([0, 1, 0, 1]))]
    >>> small = pf.shrink(net, batches, kept_macs=0.5)
    >>> small.model[0].out_features, small.kept_macs
    (8, 0.5)
    """
    if not batches:
        raise PrunefrontError("shrink needs at least one batch of (inputs, labels)")
    chosen, share = criteria[criterion], allocators[allocator]
    procedures[procedure].check(options)
    inputs = batches[0][0]
    graph = trace(model, tuple(x[:2] for x in inputs) if isinstance(inputs, tuple) else inputs[:2])
    fitting = [g for g in graph.groups if criterion in available(graph)[g.name]]
    if not fitting:
        raise PrunefrontError(
            f"criterion {criterion!r} fits none of the {len(graph.groups)} channel groups; these fit some: "
            f"{', '.join(sorted(set().union(*available(graph).values()))) or 'none'}"
        )
    statistics = collect(model, graph, batches, chosen.needs | (share.needs - {SCORES}), loss)
    scores = rank(model, graph, [criterion], statistics)
    terms = Terms(
        graph,
        kept_macs,
        {g.name: keep_counts(g, max_ratio) for g in fitting},
        scores[criterion],
        chosen.comparable,
        {name: {g: t.numpy() for g, t in groups.items()} for name, groups in statistics.values.items()},
        seed,
    )
    units = terms.units()
    choices = {
        name: GroupChoice(criterion, 1.0 - count / units[name]) for name, count in share(terms).items()
    }
    run = Run(
        copy.deepcopy(model),  # a procedure may train it before it cuts
        graph,
        plan(graph, choices, scores),
        steps=epochs * len(batches),
        per_epoch=len(batches),
        optimizer=lambda network: torch.optim.SGD(
            network.parameters(), learning_rate, momentum=0.9, weight_decay=weight_decay, nesterov=True
        ),
        calibration=batches,
        loss=loss,
        seed=seed,
        repaired=Refit.of(model, graph, batches) if repaired == "moments" else repaired,
    )
    for _ in fit(
        run,
        procedures[procedure](run, **options),
        _endless(batches, run),
        lambda network, batch, step: _backward(network, batch, loss, (seed << 32) + step),
        learning_rate=learning_rate,
        schedule=lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    ):
        continue
    return PrunedNetwork(run.model.eval(), run.plan(), graph)


def _endless(batches: Sequence[Batch], run: Run) -> Iterator[Batch]:
    """Yields the batches again and again, in another order each time."""
    while True:
        for number in run.rng.permutation(len(batches)):
            yield batches[number]


def _backward(network: nn.Module, batch: Batch, loss: Loss, seed: int) -> float:
    """Adds the gradients of one batch, and returns its loss."""
    inputs, target = batch
    with torch.random.fork_rng(devices=[p.device for p in network.parameters() if p.is_cuda][:1]):
        torch.manual_seed(seed)  # dropout draws from torch's global generator
        output = network(*inputs) if isinstance(inputs, tuple) else network(inputs)
    error = loss(output, target)
    torch.autograd.backward(error)
    return float(error.detach())
