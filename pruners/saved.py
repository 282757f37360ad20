"""A pruned network as two files, weights.safetensors and plan.json, and back. It needs torch and safetensors only.

    from prunefront.pruners.saved import load_network
    network = load_network(make_network(), Path("best"))   # an ordinary nn.Module in eval mode

The file of weights holds the tensors of `cost.layout`, packed (`pruners.storage`); the plan says what they belong to.
Neither file is trusted: every size is checked against the dense network before anything is allocated.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from prunefront.atomic import write_whole
from prunefront.errors import PrunefrontError
from prunefront.pruners.bits.bit_width import WRAPPED_PREFIX, wrap
from prunefront.pruners.cut.blocks import without_blocks
from prunefront.pruners.cut.compact import restore
from prunefront.pruners.cut.surgery import load as load_channels
from prunefront.pruners.cut.surgery import set_attributes
from prunefront.pruners.granularities import layer_granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph, SizeAttribute
from prunefront.pruners.graph.layers import Layer, Part
from prunefront.pruners.graph.pruning_plan import LayerPlan, PruningPlan, inside, removed_blocks
from prunefront.pruners.graph.shapes import changed_attributes, shapes
from prunefront.pruners.plan.cost import layout, trained_scalars
from prunefront.pruners.plan.layer_parts import layer_parts
from prunefront.pruners.quantisers import quantisers
from prunefront.pruners.storage import file as storage
from prunefront.pruners.storage.sizes import Counts
from prunefront.pruners.storage.streams import FLOATS, Codec, QuantiserTensors
from prunefront.reading import LARGEST_WEIGHTS, check_regular, open_regular, read_bytes, read_json

_Made = TypeVar("_Made")

WEIGHTS, PLAN, MANIFEST = "weights.safetensors", "plan.json", "manifest.json"

PLAN_LIMIT, MANIFEST_LIMIT = 64 << 20, 64 << 10
"""Largest plan and manifest that are read, in bytes."""

GROWTH = 4
"""Largest number of stored elements, relative to the dense network: gates and scales come on top of weights."""


def pack_network(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, path: Path, *, entropy: bool = False
) -> dict[str, Counts]:
    """Writes the packed weights of a plan's network, and returns the counts of each part that decide the file's size.

    entropy: Huffman-code the codes of quantised weights if that is shorter. Raises PrunefrontError for a network that
    the plan does not make of its dense one.
    """
    parts = layout(graph, plan)
    state = {name: t.contiguous() for name, t in model.state_dict().items() if name in parts}
    return storage.save(path, state, parts, CODEC, entropy=entropy)


def save_network(model: nn.Module, graph: ChannelGraph, plan: PruningPlan, folder: Path) -> None:
    """Writes a network that a plan made as a folder that `load_network` reads: packed weights, plan, digests.

    Files of these names that are there are replaced. Raises PrunefrontError for a network that the plan does not make
    of its dense one, OSError where the folder cannot be written.

    >>> import torch
    >>> from pathlib import Path
    >>> dense = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> inputs = torch.randn(4, 8)
    >>> small = pf.shrink(dense, [(inputs, torch.tensor([0, 1, 0, 1]))], kept_macs=0.5, criterion="l1")
    >>> pf.save_network(small.model, small.graph, small.plan, Path("best"))
    >>> again = pf.load_network(dense, Path("best"))
    >>> torch.equal(again(inputs), small.model(inputs))
    True
    """
    folder.mkdir(parents=True, exist_ok=True)
    pack_network(model, graph, plan, folder / WEIGHTS)
    plan_text = json.dumps(plan_document(graph, plan)).encode()
    write_whole(folder / PLAN, lambda file: file.write(plan_text))
    digests = {
        name: {"sha256": hashlib.sha256(read_bytes(folder / name, limit=LARGEST_WEIGHTS)).hexdigest()}
        for name in (WEIGHTS, PLAN)
    }
    manifest = json.dumps({"files": digests}).encode()
    write_whole(folder / MANIFEST, lambda file: file.write(manifest))


def plan_document(graph: ChannelGraph, plan: PruningPlan) -> dict[str, Any]:
    """Returns the content of plan.json from which the network can be rebuilt, given the dense one."""
    removed = removed_blocks(graph, plan.stacks)
    changed = changed_attributes(graph, shapes(graph, plan))
    return {
        "plan": plan.to_json(),
        "removed": sorted(removed),
        "attributes": [
            {"module": a.module, "name": a.name, "place": a.place, "value": a.value}
            for a in changed
            if not inside(a.module, removed)
        ],
    }


def attributes_of(document: Mapping[str, Any]) -> tuple[SizeAttribute, ...]:
    """Returns the numbers in modules that a plan.json sets. Raises TypeError, ValueError or KeyError for others."""
    found = []
    for a in document.get("attributes", ()):
        made = SizeAttribute(a["module"], a["name"], a["place"], a["value"], "", 0)
        if not (isinstance(made.module, str) and isinstance(made.name, str)):
            raise TypeError("an attribute and its module have names")
        if type(made.value) is not int or type(made.place) is not int:
            raise TypeError("an attribute is a whole number")
        found.append(made)
    return tuple(found)


def load_network(dense: nn.Module, folder: Path) -> nn.Module:
    """Returns the network of a fetched artifact in eval mode, on the CPU, bit for bit as it was saved.

    dense: from the factory of the network that was pruned, whatever its weights; it stays as it is. folder: holds
    weights.safetensors, plan.json and the manifest.json with their digests. Raises PrunefrontError if a file differs
    from its digest, or if the files do not fit each other or the network. See `save_network` for an example.
    """
    check_digests(folder)
    plan, removed = read_plan(folder / PLAN)
    return rebuild(dense, plan, removed, folder / WEIGHTS, read_attributes(folder / PLAN))


def check_digests(folder: Path) -> None:
    """Raises PrunefrontError unless weights and plan match the digests in the manifest beside them."""
    manifest = _read_json(folder / MANIFEST, MANIFEST_LIMIT)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    for name in (WEIGHTS, PLAN):
        record = files.get(name) if isinstance(files, dict) else None
        said = record.get("sha256") if isinstance(record, dict) else None
        try:
            with open_regular(folder / name) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise PrunefrontError(f"{folder / name} cannot be read: {error.strerror}") from None
        if digest != said:
            raise PrunefrontError(
                f"{folder / name} does not match {MANIFEST}: it was damaged or changed; fetch the artifact again"
            )


def read_plan(path: Path) -> tuple[PruningPlan, tuple[str, ...]]:
    """Returns the plan in a plan.json, and the paths of its dropped blocks. Raises PrunefrontError."""
    return _checked(
        path,
        lambda data: (
            PruningPlan.from_json(data["plan"]),
            tuple(str(block) for block in data.get("removed", ())),
        ),
    )


def read_attributes(path: Path) -> tuple[SizeAttribute, ...]:
    """Returns the numbers in modules that a plan.json sets. Raises PrunefrontError."""
    return _checked(path, attributes_of)


def _checked(path: Path, make: Callable[[Any], _Made]) -> _Made:
    data = _read_json(path, PLAN_LIMIT)
    try:
        return make(data)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # errors of plain code about JSON of the wrong form
        raise PrunefrontError(
            f"{path} is no plan of a pruned network ({type(error).__name__}: {error!s:.80})"
        ) from None


def _read_json(path: Path, limit: int) -> Any:
    try:
        return read_json(path, limit=limit)
    except OSError as error:
        raise PrunefrontError(f"{path} cannot be read: {error.strerror}") from None


def rebuild(
    dense: nn.Module,
    plan: PruningPlan,
    removed: tuple[str, ...],
    weights: Path,
    attributes: Sequence[SizeAttribute] = (),
) -> nn.Module:
    """Returns the network as `load_network`, from a plan that was read before.

    removed: paths of dropped blocks. attributes: numbers in modules that the plan sets.
    """
    model = without_blocks(dense, removed) if removed else dense
    limit = GROWTH * sum(t.numel() for t in dense.state_dict().values())
    changed = {p.layer.module: p for p in plan.layers}
    check_layers(model, plan)
    parts: dict[str, Part] = {}
    for path, layer_plan in changed.items():
        parts |= {f"{path}.{name}": part for name, part in layer_parts(layer_plan, plan.quantisation).items()}
    state = storage.load(weights, {**_raw(weights, model, changed, plan), **parts}, CODEC, limit=limit)
    cut = load_channels(model, _as_dense(model, state, plan))
    set_attributes(cut, attributes)
    for path, layer_plan in changed.items():
        _put(
            cut,
            layer_plan,
            plan,
            {n: state[f"{path}.{n}"] for n in layer_parts(layer_plan, plan.quantisation)},
        )
    return cut.eval()


def count_trained(model: nn.Module, plan: PruningPlan) -> int:
    """Returns the number of trained scalars that a network stores; dropped ones do not count.

    model: the network of the plan.
    """
    changed = [p.layer.module for p in plan.layers] + _fused(plan)
    whole = sum(p.numel() for name, p in model.named_parameters() if not inside(name, changed))
    return whole + sum(trained_scalars(layer_parts(p, plan.quantisation)) for p in plan.layers)


def check_layers(model: nn.Module, plan: PruningPlan) -> None:
    """Raises PrunefrontError for layers of a plan that the network lacks, or that cannot be cut as planned."""
    modules = dict(model.named_modules())
    for p in plan.layers:
        layer, module = p.layer, modules.get(p.layer.module)
        if not isinstance(module, nn.Conv2d | nn.Linear) or layer.name != f"{layer.module}.weight".lstrip(
            "."
        ):
            raise PrunefrontError(
                f"the plan changes layer {layer.module!r:.80}, which the network does not have"
            )
        weight = module.weight
        fits = len(layer.shape) == weight.dim() and all(
            type(mine) is int and 0 < mine <= whole
            for mine, whole in zip(layer.shape, weight.shape, strict=True)
        )
        if not fits or layer.bias != (module.bias is not None) or not _groups_fit(layer, module):
            raise PrunefrontError(
                f"layer {layer.module!r:.80} has a weight of shape {tuple(weight.shape)}, from which the plan's "
                f"{layer.shape} cannot be cut"
            )
        if p.count is None:
            continue
        granularity = layer_granularities[p.choice.granularity]
        if granularity.fuses_norm and not isinstance(modules.get(layer.norm), nn.BatchNorm2d):
            raise PrunefrontError(f"layer {layer.module!r:.80} has no batch norm at {layer.norm!r:.80}")
        if granularity.why_not(layer) is not None or p.count not in granularity.counts(layer):
            raise PrunefrontError(
                f"layer {layer.module!r:.80} cannot have {p.count!r:.40} units of granularity {p.choice.granularity!r}"
            )


def _groups_fit(layer: Layer, module: nn.Module) -> bool:
    """Returns whether the conv groups fit: they stay, but a depthwise convolution has as many as channels."""
    whole = module.groups if isinstance(module, nn.Conv2d) else 1
    if isinstance(module, nn.Conv2d) and 1 < whole == module.in_channels:
        return layer.groups * module.out_channels == layer.outputs * whole
    return layer.groups == whole


def _raw(
    weights: Path, model: nn.Module, changed: Mapping[str, LayerPlan], plan: PruningPlan
) -> dict[str, Part]:
    """Returns the parts of the dense network's own tensors, cut or not, as the file's header has them."""
    known = model.state_dict()
    paths = (*changed, *_fused(plan))
    parts = {}
    try:
        check_regular(weights)
        with safe_open(weights, "pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no mapping
                if name in known and not inside(name, paths):
                    held = file.get_slice(name)
                    floating = held.get_dtype() in FLOATS.values()
                    parts[name] = Part(tuple(held.get_shape()), "float" if floating else "integer")
    except (SafetensorError, OSError) as error:
        raise PrunefrontError(f"{weights} cannot be read as safetensors: {error}") from None
    return parts


def _fused(plan: PruningPlan) -> list[str]:
    """Returns the paths of the norms that compact layers contain."""
    return [
        p.layer.norm
        for p in plan.layers
        if p.count is not None and layer_granularities[p.choice.granularity].fuses_norm
    ]


def _as_dense(model: nn.Module, state: Mapping[str, Tensor], plan: PruningPlan) -> dict[str, Tensor]:
    """Returns the state of the network with only its channels cut; changed layers are zeros of the right shape."""
    known = model.state_dict()
    paths = (*(p.layer.module for p in plan.layers), *_fused(plan))
    given = {name: t for name, t in state.items() if name in known and not inside(name, paths)}
    for p in plan.layers:
        given[p.layer.name] = torch.zeros(p.layer.shape, dtype=known[p.layer.name].dtype)
        if p.layer.bias:
            bias = f"{p.layer.module}.bias".lstrip(".")
            given[bias] = torch.zeros(p.layer.outputs, dtype=known[bias].dtype)
        if p.layer.norm in _fused(plan):
            for name, tensor in known.items():
                if inside(name, (p.layer.norm,)):
                    given[name] = tensor[: p.layer.outputs] if tensor.dim() else tensor
    return given


def _put(model: nn.Module, layer_plan: LayerPlan, plan: PruningPlan, tensors: Mapping[str, Tensor]) -> None:
    """Rebuilds a changed layer from its tensors, *in place*."""
    path = layer_plan.layer.module
    wrapped = layer_plan.choice.bits < 32 and plan.quantisation.activations != "none"
    inner = {
        name.removeprefix(WRAPPED_PREFIX) if wrapped else name: tensor
        for name, tensor in tensors.items()
        if not wrapped or name.startswith(WRAPPED_PREFIX)
    }
    if layer_plan.count is not None:
        scales = {n: t for n, t in inner.items() if _is_quantiser_tensor(n, inner)}
        restore(model, layer_plan, {n: t for n, t in inner.items() if n not in scales})
        module = model.get_submodule(path)
    else:
        module = model.get_submodule(path)
        scales = {n: t for n, t in inner.items() if _is_quantiser_tensor(n, inner)}
        module.load_state_dict({n: t for n, t in inner.items() if n not in scales})
    for name, tensor in scales.items():
        owner, _, buffer = name.rpartition(".")
        module.get_submodule(owner).register_buffer(buffer, tensor)
    if wrapped:
        wrap(model, [layer_plan.name], plan.quantisation)
        model.get_submodule(path).load_state_dict(tensors)


def _is_quantiser_tensor(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Returns whether a tensor is the scale or offset that a quantiser stores for another one."""
    return any(name == f"{other}_{suffix}" for other in tensors for suffix in storage.QUANTISER_SUFFIXES)


def _encode(values: Tensor, part: Part, levels: QuantiserTensors) -> Tensor:
    return quantisers[part.levels].codes(values, levels["scale"], levels.get("offset"), part.bits)


def _decode(codes: Tensor, part: Part, levels: QuantiserTensors) -> Tensor:
    return quantisers[part.levels].decoded(codes, levels["scale"], levels.get("offset"), part.bits)


CODEC = Codec(_encode, _decode)
"""Conversion between values and codes in a file, by the part's quantiser."""
