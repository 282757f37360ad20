"""Couplings agree with those of torch-pruning 1.6.1 on the nets that it handles rightly."""

import pytest
import torch
import torch_pruning as tp
from torch import nn

from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import ChannelGraph
from tests.nets import NETS
from tests.pruners.plans import keeping, traced

Side = tuple[str, str]  # module, "out" or "in"


def ours(graph: ChannelGraph) -> set[frozenset[Side]]:
    """Each group as the sides of modules that it cuts; a norm is cut on its out side."""
    return {
        frozenset((m.tensor.rpartition(".")[0], "in" if m.role == "in" else "out") for m in g.members)
        for g in graph.groups
    }


def theirs(model: nn.Module, example: tuple[object, ...]) -> set[frozenset[Side]]:
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=example[0])
    names = {module: name for name, module in model.named_modules()}
    found = set()
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        sides = set()
        for dependency, _ in group:
            if dependency.target.module in names:
                out = graph.is_out_channel_pruning_fn(dependency.handler)
                sides.add((names[dependency.target.module], "out" if out else "in"))
        found.add(frozenset(sides))
    return found


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("Plain", {"fc"}),
        ("VggBn", {"classifier.4"}),
        ("ResNetProjection", {"fc"}),
        ("DenseNet", {"fc"}),
        ("MobileNet", {"fc"}),
        ("GroupedConv", {"head"}),
    ],
)
def test_same_sides_go_together(name: str, outputs: set[str]) -> None:
    model, example = NETS[name]()
    # torch-pruning leaves it to its caller not to cut what the network returns
    free = {g for g in theirs(model, example) if not any((o, "out") in g for o in outputs)}
    assert ours(traced(name)) == free


def test_squeeze_excite_goes_together_and_its_spatial_gate_stays() -> None:
    """torch-pruning couples the one-channel gate, which is broadcast, with every channel that it scales."""
    model, example = NETS["SqueezeExcite"]()
    gate = {("spatial", "out")}
    free = {g - gate for g in theirs(model, example) if ("head", "out") not in g and g != gate}
    assert ours(traced("SqueezeExcite")) == free


def test_option_a_shortcut_is_cut_rightly_where_torch_pruning_crashes() -> None:
    """The reason for a graph of our own (docs/decisions/0001-channel-graph.md)."""
    model, example = NETS["ResNetOptionA"]()
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=example[0])
    group = graph.get_pruning_group(model.stem[0], tp.prune_conv_out_channels, idxs=[0])
    assert graph.check_pruning_group(group)
    group.prune()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(*example)
    model, example = NETS["ResNetOptionA"]()
    mine = traced("ResNetOptionA")
    plan = keeping(mine, [range(1, g.units) for g in mine.groups])
    torch.testing.assert_close(
        surgery.apply(model, mine, plan)(*example),
        surgery.mask(model, mine, plan)(*example),
        rtol=1e-4,
        atol=1e-5,
    )
