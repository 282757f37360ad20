"""Training with compact layers and quantised weights: every procedure ends with the network of the plan."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunefront.choice import GroupChoice, Quantisation
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan, without_channels
from prunefront.pruners.plan.cost import layout
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.plan.layer_parts import parameter_bit_widths
from prunefront.pruners.procedures import Phase, procedures
from prunefront.pruners.procedures.loop import fit
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.saved import pack_network, plan_document, rebuild
from prunefront.pruners.scoring import score
from tests.pruners.cut.test_compact import tower

OVER_CHANNELS = sorted(n for n in procedures if procedures[n].over == "channels")
OVER_WEIGHTS = sorted(n for n in procedures if procedures[n].over == "weights")


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 3, 8, 8, generator=generator), torch.randint(0, 5, (6,), generator=generator))
        for _ in range(3)
    ]


def everything(
    graph: ChannelGraph, model: nn.Module, *, layers: bool = True, quantisation: Quantisation
) -> PruningPlan:
    """Half of the channels, a block less, a granularity after the other within layers, 4 bits in every second one."""
    scores = {"l1": dict(score(model, graph, ["l1"])["l1"])}
    scores["l1"] |= {s.name: torch.arange(len(s.blocks)).double().numpy() for s in graph.stacks}
    choices = {g.name: GroupChoice("l1", 0.5) for g in graph.groups}
    kinds = ("gather", "kernel", "element", "low_rank", "n_of_m")
    if layers:
        choices |= {s.name: GroupChoice("l1", 0.34) for s in graph.stacks}
    for number, layer in enumerate(x for x in graph.layers if x.inputs == 16 and x.taps > 1):
        ratio = 0.5 if layers else 0.0
        choices[layer.name] = GroupChoice("l2", ratio, kinds[number % 5], (32, 4)[number % 2])
    return plan(graph, choices, scores, quantisation=quantisation)


def fitted(
    name: str, steps: int, *, layers: bool = True, quantisation: Quantisation
) -> tuple[Run, nn.Module, ChannelGraph]:
    model, _, graph = tower()
    run = Run(
        copy.deepcopy(model),
        graph,
        everything(graph, model, layers=layers, quantisation=quantisation),
        steps=steps,
        per_epoch=3,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.02, momentum=0.9, weight_decay=1e-3),
        calibration=batches(),
    )

    def backward(network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> float:
        loss = F.cross_entropy(network(batch[0]), batch[1])
        loss.backward()
        return loss.item()

    def stream():
        while True:
            yield from batches()

    for _ in fit(
        run, procedures[name](run), stream(), backward, learning_rate=0.02, schedule=lambda done: 1.0 - done
    ):
        assert not run.model.training
    return run, model, graph


@pytest.mark.parametrize("steps", [0, 7])
@pytest.mark.parametrize("name", OVER_CHANNELS)
def test_the_network_is_that_of_the_plan_and_can_be_stored(name: str, steps: int, tmp_path: Path) -> None:
    run, dense, graph = fitted(name, steps, quantisation=Quantisation(activations="fixed_point"))
    aim = run.plan()
    assert (aim.layers, aim.stacks) == (run.goal.layers, run.goal.stacks)
    parts = layout(graph, aim)
    assert {n: tuple(t.shape) for n, t in run.model.state_dict().items()} == {
        n: p.shape for n, p in parts.items()
    }
    assert any(p.bits == 4 for p in parts.values())
    pack_network(run.model, graph, aim, tmp_path / "w")  # refuses values that are not on their levels
    again = rebuild(
        dense, aim, tuple(json.loads(json.dumps(plan_document(graph, aim)))["removed"]), tmp_path / "w"
    )
    x = batches()[0][0]
    with torch.no_grad():
        assert torch.equal(again(x), run.model(x))


@pytest.mark.parametrize("name", OVER_WEIGHTS)
def test_procedures_over_weights_go_with_short_words(name: str, tmp_path: Path) -> None:
    run, _, graph = fitted(name, 7, layers=False, quantisation=Quantisation())
    pack_network(run.model, graph, run.plan(), tmp_path / "w")
    bits = parameter_bit_widths(run.plan())
    assert bits
    for parameter in bits:
        values = run.model.get_parameter(parameter).detach()
        assert max(len(row.unique()) for row in values.flatten(1)) <= 15


def test_training_moves_masters_and_not_only_levels() -> None:
    """At 4 bits most steps are smaller than a level: without float masters nothing would ever change."""
    short, _, _ = fitted("one_shot", 9, layers=False, quantisation=Quantisation())
    none, _, _ = fitted("one_shot", 0, layers=False, quantisation=Quantisation())
    moved = [
        not torch.equal(short.model.get_parameter(p), none.model.get_parameter(p))
        for p in parameter_bit_widths(short.plan())
    ]
    assert all(moved)


def test_what_the_channels_leave_is_all_that_a_plan_without_them_changes() -> None:
    model, _, graph = tower()
    aim = everything(graph, model, quantisation=Quantisation())
    rest = without_channels(aim)
    assert (rest.layers, rest.groups) == (aim.layers, ())


def test_a_procedure_that_never_arrives_is_a_bug_that_shows() -> None:
    model, _, graph = tower()
    run = Run(
        copy.deepcopy(model),
        graph,
        everything(graph, model, quantisation=Quantisation()),
        steps=0,
        per_epoch=3,
        optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.02),
    )
    with pytest.raises(ValueError, match="before the last channels were removed"):
        list(fit(run, iter([Phase(0)]), iter([]), lambda *_: 0.0, learning_rate=0.1, schedule=lambda _: 1.0))
