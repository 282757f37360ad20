"""At least as many groups as torch-pruning 1.6.1 finds, on families that it cuts without an error."""

import copy

import pytest
import torch_pruning as tp
from torch import nn

from prunefront.pruners.trace.tracer import trace
from tests.corpus.chain import outputs
from tests.corpus.networks import FAMILIES

NAMES = [
    "vgg_bn",
    "resnet_bottleneck",
    "mobilenet_v3",
    "densenet",
    "repvgg",
    "squeezenet",
    "preactivated_resnet",
    "xception",
    "selective_kernels",
    "hrnet",
    "deep_layer_aggregation",
    "efficientnet_v2",
    "unet",
    "deeplab",
    "convolutional_autoencoder",
]


def theirs(name: str, held: set[str]) -> int:
    """Returns how many groups torch-pruning cuts a unit of, so that the network still runs and gives the same shapes.

    held: layers that make the output, which it leaves to its caller not to cut.
    """
    model, inputs = FAMILIES[name].make()
    shapes = [t.shape for t in outputs(model, inputs)]
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
    names = {module: path for path, module in model.named_modules()}
    roots = []
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        made = {
            names.get(d.target.module)
            for d, _ in group
            if graph.is_out_channel_pruning_fn(d.handler)
            and isinstance(d.target.module, nn.Conv2d | nn.Linear)
        }
        if not made & held:
            roots.append(names[group[0].dep.target.module])
    good = 0
    for root in roots:
        cut = copy.deepcopy(model)
        again = tp.DependencyGraph().build_dependency(cut, example_inputs=inputs)
        layer = cut.get_submodule(root)
        group = again.get_pruning_group(layer, again.get_pruner_of_module(layer).prune_out_channels, idxs=[0])
        try:
            group.prune()
            good += [t.shape for t in outputs(cut, inputs)] == shapes
        except (RuntimeError, ValueError, IndexError):
            continue
    return good


@pytest.mark.parametrize("name", NAMES)
def test_as_many_groups(name: str) -> None:
    graph = trace(*FAMILIES[name].make())
    other = theirs(name, {f.name for f in graph.frozen})
    assert len(graph.groups) >= other >= 1
