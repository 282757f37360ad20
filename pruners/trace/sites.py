"""Search for the layers that another module can replace; granularities within single layers are offered for these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import nn

from prunefront.pruners.cut.surgery import norm_width
from prunefront.pruners.graph.channel_graph import SizeAttribute
from prunefront.pruners.graph.layers import Layer
from prunefront.pruners.trace.labels import Ledger


def find_layers(
    model: nn.Module, ledger: Ledger, names: Mapping[str, str], frozen: Sequence[str] = ()
) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """Returns the layers, and for every other weight of a convolution or product the reason why it is none.

    A layer is an nn.Conv2d or nn.Linear itself, called any number of times, which alone uses its weight and bias. Both
    results are in the order of the forward pass; a reason follows the weight's name.

    ledger: after the walk over the forward pass. names: state-dict name -> first name of the same tensor. frozen: paths
    of modules that stay as they are.
    """
    positions: dict[str, int] = {}
    for op in ledger.ops:
        positions[op.weight] = positions.get(op.weight, 0) + op.positions
    sites = _Sites(model, ledger, names, frozen)
    streams = _streams(ledger)
    layers: list[Layer] = []
    unlayered: dict[str, str] = {}
    for name, count in positions.items():
        why = sites.why_not(name)
        if why is None:
            layers.append(_layer(sites, name, count, streams))
        else:
            unlayered[name] = why
    return tuple(layers), unlayered


@dataclass(frozen=True, slots=True)
class _Sites:
    """Facts about the modules that own weights."""

    model: nn.Module
    ledger: Ledger
    names: Mapping[str, str]
    frozen: Sequence[str]

    def module(self, name: str) -> nn.Module:
        return self.model.get_submodule(name.rpartition(".")[0])

    def why_not(self, name: str) -> str | None:
        """Returns why the module of a weight cannot be replaced; None where it can."""
        path, _, last = name.rpartition(".")
        held = self.holder(path)
        if held is not None:
            return f"is inside {held}, which is frozen"
        module = self.module(name)
        if not path or last != "weight" or type(module) not in (nn.Conv2d, nn.Linear):
            return f"belongs to a {type(module).__name__}; an nn.Conv2d or nn.Linear inside the network can be replaced"
        own = [name, *([f"{path}.bias"] if module.bias is not None else [])]
        for tensor in own:
            if why := self.shared(tensor):
                return why if tensor == name else f"has a bias that {why}"
        return None

    def holder(self, path: str) -> str | None:
        """Returns the frozen module that a path lies in."""
        return next((f for f in self.frozen if path == f or path.startswith(f"{f}.")), None)

    def shared(self, name: str) -> str | None:
        """Returns who else uses a tensor beside the module that it is named after; None for nobody."""
        aliases = [n for n, first in self.names.items() if first == self.names[name]]
        if len(aliases) > 1:
            return f"goes by several names: {', '.join(aliases)}"
        path = name.rpartition(".")[0]
        strays = [use.module for use in self.ledger.uses.get(name, ()) if use.module != path]
        return (
            f"is also used outside of its module, in {strays[0] or 'the network itself'}" if strays else None
        )

    def norm(self, name: str) -> str:
        """Returns the path of the batch norm that reads every use of a convolution's output and only that; or ""."""
        uses = self.ledger.uses[name]
        path = uses[0].norm
        if not path or any(use.norm != path for use in uses) or self.holder(path) is not None:
            return ""
        module = self.model.get_submodule(path)
        if type(module) is not nn.BatchNorm2d or not (module.affine and module.track_running_stats):
            return ""
        own = [f"{path}.{last}" for last in ("weight", "bias", "running_mean", "running_var")]
        alone = not any(map(self.shared, own)) and len(self.ledger.uses[own[0]]) == len(uses)
        return path if alone else ""


def _layer(sites: _Sites, name: str, positions: int, streams: set[tuple[str, int]]) -> Layer:
    module, ledger = sites.module(name), sites.ledger
    assert isinstance(module, nn.Conv2d | nn.Linear)
    conv = module if isinstance(module, nn.Conv2d) else None
    writes = (name, 0) in streams
    return Layer(
        name,
        name.rpartition(".")[0],
        tuple(module.weight.shape),
        positions,
        groups=conv.groups if conv else 1,
        stride=cast(tuple[int, int], conv.stride) if conv else (1, 1),
        bias=module.bias is not None,
        norm=sites.norm(name) if conv else "",
        reads=writes if name in ledger.depthwise else (name, 1) in streams,
        writes=writes,
    )


def norm_widths(model: nn.Module, ledger: Ledger) -> tuple[SizeAttribute, ...]:
    """Returns the widths that norms keep without a tensor of it, where a single weight makes all of their channels."""
    roots = ledger.roots()
    made = {
        roots[first : first + size].tobytes(): (name, dim)
        for name, dim, first, size in ledger.axes
        if (name, dim) in ledger.producers
    }
    found = []
    for path, labels in ledger.normed.items():
        axis, name = made.get(roots[labels].tobytes()), norm_width(model.get_submodule(path))
        if axis is not None and name is not None and getattr(model.get_submodule(path), name) == len(labels):
            found.append(SizeAttribute(path, name, -1, len(labels), *axis))
    return tuple(found)


def _streams(ledger: Ledger) -> set[tuple[str, int]]:
    """Returns the axes with a channel that several layers write.

    A depthwise layer passes on the channels that it reads.
    """
    roots = ledger.roots()
    nodes = {(name, dim): roots[first : first + size] for name, dim, first, size in ledger.axes}
    writers = np.zeros(len(roots), np.int64)
    for key in ledger.producers:
        if key[0] not in ledger.depthwise:
            writers[np.unique(nodes[key])] += 1
    return {key for key, held in nodes.items() if (writers[held] > 1).any()}
