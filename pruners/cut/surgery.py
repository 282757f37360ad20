"""Cutting channels: a new, smaller, ordinary module from a plan, the same by zeroing, the same from stored weights."""

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import chain
from operator import itemgetter
from types import BuiltinFunctionType, CellType, FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, SizeAttribute, TensorSlice
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.graph.shapes import changed_attributes, reduced_layer, shapes
from prunefront.pruners.units.attention import fit_widths
from prunefront.pruners.units.eval_mode import eval_mode

RemovedPositions = dict[str, dict[int, list[int]]]
"""tensor -> axis -> positions that are dropped."""


def removed_positions(graph: ChannelGraph, plan: PruningPlan) -> RemovedPositions:
    """Returns the positions that a plan drops. Raises PrunefrontError for a group that the graph lacks."""
    groups = {g.name: g for g in graph.groups}
    going: RemovedPositions = {}
    for choice in plan.groups:
        if choice.name not in groups:
            raise PrunefrontError(
                f"the plan cuts channel group {choice.name!r}, which this graph does not have; "
                f"it has: {', '.join(groups) or 'none'}"
            )
        group = groups[choice.name]
        kept = set(choice.kept)
        units = [u for u in range(group.units) if u not in kept]
        if not units:
            continue
        for member in group.members:
            positions = going.setdefault(member.tensor, {}).setdefault(member.dim, [])
            positions.extend(chain.from_iterable(itemgetter(*units, units[0])(member.index)[:-1]))
    return going


def left_positions(graph: ChannelGraph, going: RemovedPositions, name: str, axis: int) -> list[int]:
    """Returns the positions of a tensor's axis that are left, ascending. going: of a plan for this graph."""
    gone = set(going.get(name, {}).get(axis, ()))
    return [i for i in range(graph.shapes[name][axis]) if i not in gone]


def apply(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
    """Returns a new module without the dropped units; the input is untouched, gradients are not carried over.

    graph: graph of this model. plan: made for this graph. Weights outside all groups are copied as they are.
    """
    going = removed_positions(graph, plan)
    made = rebuilt(
        model, going, lambda name, tensor: smaller(tensor, going[name]) if name in going else tensor.clone()
    )
    set_attributes(made, changed_attributes(graph, shapes(graph, plan)))
    return made


def set_attributes(model: nn.Module, attributes: Iterable[SizeAttribute]) -> None:
    """Sets numbers that modules keep to their values, *in place*.

    Raises PrunefrontError for a module or attribute that is not there, or that does not hold a larger whole number.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for a in attributes:
        module = modules.get(a.module)
        held = vars(module).get(a.name) if module is not None and not a.name.startswith("_") else None
        number = held
        if isinstance(held, tuple) and a.place in range(len(held)):
            number = held[a.place]
        elif a.place != -1:
            number = None
        own = not type(module).__module__.startswith("torch.") or norm_width(module) == a.name
        if type(number) is not int or not 0 < a.value <= number or not own:
            raise PrunefrontError(
                f"{a.name!r:.60} of module {a.module!r:.60} cannot be set to {a.value!r:.20}: it is no larger whole "
                "number of the network; load the weights into the network they were cut from"
            )
        if isinstance(held, tuple):
            setattr(module, a.name, (*held[: a.place], a.value, *held[a.place + 1 :]))
        else:
            setattr(module, a.name, a.value)


def norm_width(module: nn.Module | None) -> str | None:
    """Returns the name of the width that one of torch's norms keeps without a tensor of it; None for other modules."""
    if not isinstance(module, nn.modules.batchnorm._NormBase):
        return None
    return None if module.affine or module.track_running_stats else "num_features"


def rebuilt(
    model: nn.Module, going: RemovedPositions, function: Callable[[str, Tensor], Tensor]
) -> nn.Module:
    """Returns a deep copy whose stored tensors are `function(name, tensor)`, with sizes kept as attributes set to them.

    going: the positions that the tensors lack.
    """
    cut = _map_tensors(model, function)
    _sync(cut, going)
    return cut


def cut_tensor(going: RemovedPositions, name: str, tensor: Tensor) -> Tensor:
    """Returns the part of a tensor that is left, as a copy. tensor: of the dense shape of the state dict's `name`."""
    return smaller(tensor, going.get(name, {})).clone()


def smaller(tensor: Tensor, going: Mapping[int, list[int]]) -> Tensor:
    """Returns the part of a tensor that is left; the tensor itself if nothing goes. going: axis -> positions."""
    if len(going) < 2:
        for dim, positions in going.items():
            tensor = tensor.index_select(dim, _kept(tensor, dim, positions))
        return tensor
    shape = [n - len(set(going.get(dim, ()))) for dim, n in enumerate(tensor.shape)]
    made = tensor.new_empty(shape)
    _copy_cut(made, tensor, going)
    return made


_AT_ONCE = 1 << 22
"""Elements that are cut at once: along the second axis no copy of the whole tensor is made."""


def _copy_cut(made: Tensor, tensor: Tensor, going: Mapping[int, list[int]]) -> None:
    """Writes what is left of a tensor into `made`, *in place*, a few rows at a time. going: axis -> positions."""
    if not tensor.dim():
        made.copy_(tensor)
        return
    rows = _kept(tensor, 0, going.get(0, []))
    step = max(1, _AT_ONCE // max(1, tensor[:1].numel()))
    for start in range(0, len(rows), step):
        part = tensor.index_select(0, rows[start : start + step])
        for dim, positions in going.items():
            if dim:
                part = part.index_select(dim, _kept(tensor, dim, positions))
        made[start : start + step].copy_(part)


def _kept(tensor: Tensor, dim: int, positions: list[int]) -> Tensor:
    """Returns the positions along an axis that stay."""
    return torch.from_numpy(np.flatnonzero(_stays(tensor.shape[dim], positions))).to(tensor.device)


def _stays(size: int, positions: list[int]) -> NDArray[np.bool_]:
    """Returns a mask over an axis, False at the dropped positions."""
    stays = np.ones(size, dtype=bool)
    stays[positions] = False
    return stays


def reduced_graph(graph: ChannelGraph, plan: PruningPlan) -> ChannelGraph:
    """Returns the channel graph of `apply(model, graph, plan)`: fewer units, new positions."""
    going, sizes, kept = removed_positions(graph, plan), shapes(graph, plan), plan.kept_units()
    changed = changed_attributes(graph, sizes)
    places = {
        (name, dim): np.cumsum(_stays(graph.shapes[name][dim], positions)) - 1
        for name, axes in going.items()
        for dim, positions in axes.items()
    }

    def moved(member: TensorSlice, units: tuple[int, ...]) -> TensorSlice:
        place = places.get((member.tensor, member.dim))
        index = tuple(
            member.index[u] if place is None else tuple(int(place[p]) for p in member.index[u]) for u in units
        )
        return replace(member, index=index)

    return replace(
        graph,
        groups=tuple(
            ChannelGroup(g.name, len(kept[g.name]), tuple(moved(m, kept[g.name]) for m in g.members))
            for g in graph.groups
        ),
        shapes=sizes,
        attributes=tuple(
            {**{_key(a): a for a in graph.attributes}, **{_key(a): a for a in changed}}.values()
        ),
        layers=tuple(reduced_layer(graph, layer, sizes[layer.name]) for layer in graph.layers),
    )


def _key(attribute: SizeAttribute) -> tuple[str, str, int]:
    return attribute.module, attribute.name, attribute.place


def mask(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> nn.Module:
    """Returns a new module of the dense size with every dropped slice set to zero (the oracle of `apply`)."""
    going = _zeros(removed_positions(graph, plan))

    return _map_tensors(model, lambda name, tensor: _zeroed(tensor.clone(), going.get(name, {})))


def mask_in_place(model: nn.Module, going: RemovedPositions) -> None:
    """Sets the dropped slices of a module to zero, *in place*."""
    going = _zeros(going)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in going:
                _zeroed(tensor, going[name])


_GAINS = {"original1": "original0", "weight_v": "weight_g"}
"""Last names of a direction, which weight norm divides by its length, and of its gain."""


def _zeros(going: RemovedPositions) -> RemovedPositions:
    """Returns the positions that are zero in a masked network: a gain of zero stands for a direction of zeros.

    A direction of zeros has no length to be divided by.
    """

    def gained(name: str, dim: int) -> bool:
        stem, dot, last = name.rpartition(".")
        return last in _GAINS and dim in going.get(f"{stem}{dot}{_GAINS[last]}", {})

    return {
        name: {dim: positions for dim, positions in axes.items() if not gained(name, dim)}
        for name, axes in going.items()
    }


def _zeroed(tensor: Tensor, going: Mapping[int, list[int]]) -> Tensor:
    for dim, positions in going.items():
        tensor.index_fill_(dim, torch.tensor(positions, device=tensor.device), 0)
    return tensor


def load(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Returns a pruned network from the dense module of its factory and the smaller tensors alone.

    state: a tensor for every name of `model.state_dict()`, none larger than the dense one; a tensor with two names
    needs one of them. Raises PrunefrontError if names, ranks, sizes or number types do not fit.
    """
    names = first_names(model)
    dense = model.state_dict()
    given: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name not in dense:
            raise PrunefrontError(
                f"the weights hold {name!r}, which {type(model).__name__} does not have: "
                "load them into the network they were cut from"
            )
        _check_fits(name, dense[name], tensor)
        given.setdefault(names[name], tensor)
    missing = [name for name, first in names.items() if first not in given]
    if missing:
        raise PrunefrontError(
            f"the weights lack {missing[0]!r} and {len(missing) - 1} other tensors of {type(model).__name__}: "
            "load them into the network they were cut from"
        )
    loaded = _map_tensors(model, lambda name, tensor: given[name].to(tensor.device).clone())
    _sync(loaded, {})
    return loaded


def _check_fits(name: str, dense: Tensor, tensor: Tensor) -> None:
    fits = dense.dim() == tensor.dim() and all(
        0 < n <= d for n, d in zip(tensor.shape, dense.shape, strict=True)
    )
    if not fits:
        raise PrunefrontError(
            f"{name!r} has shape {tuple(tensor.shape)}, which cannot be cut from the dense {tuple(dense.shape)}"
        )
    if dense.is_floating_point() != tensor.is_floating_point():
        raise PrunefrontError(f"{name!r} holds {tensor.dtype} where the dense network has {dense.dtype}")


def first_names(model: nn.Module) -> dict[str, str]:
    """Returns state-dict name -> the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(t), name) for name, t in model.state_dict(keep_vars=True).items()}


def _map_tensors(model: nn.Module, function: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """Returns a deep copy of the module with `function(name, tensor)` for each stored tensor; shared ones stay shared.

    Raises PrunefrontError for a module that torch cannot copy.
    """
    memo: dict[int, Any] = {}
    keep = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in keep.items():
            if not isinstance(tensor, Tensor) or id(tensor) in memo:
                continue
            made = function(name, tensor.detach())
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = made
        for buffer in model.buffers():  # those that are not saved
            if id(buffer) not in memo:
                memo[id(buffer)] = buffer.detach().clone()
    return deep_copy(model, memo)


def _computed_weights(model: nn.Module) -> list[tuple[Any, str, nn.Module]]:
    """Returns hook, attribute and module of the weights that torch's older weight and spectral norm compute."""
    return [
        (hook, hook.name, module)
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, WeightNorm | SpectralNorm)
    ]


def _compute_weight(hook: Any, name: str, module: nn.Module) -> None:
    """Computes such a weight anew, of the size of what it is computed from."""
    with torch.no_grad():
        if isinstance(hook, WeightNorm):
            setattr(module, name, hook.compute_weight(module))
        else:
            setattr(module, name, hook.compute_weight(module, do_power_iteration=False))


def deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Returns a deep copy. memo: id of a part -> its replacement. Raises PrunefrontError if torch cannot copy it."""
    for _, name, module in _computed_weights(model):
        memo.setdefault(id(getattr(module, name)), getattr(module, name).detach())
    try:
        copied: nn.Module = _copied(_with_modules(model, memo), memo)
    except RuntimeError as error:  # torch refuses tensors with a history
        raise PrunefrontError(
            f"{type(model).__name__} cannot be copied, as it holds a tensor that was computed with gradients: take it "
            "off the module first, make it a parameter or buffer, or, where forward keeps it, run the network once "
            "under torch.no_grad()"
        ) from error
    for hook, name, module in _computed_weights(copied):
        _compute_weight(hook, name, module)
    _rebind_hooks(copied, {id(module): memo.get(id(module), module) for module in model.modules()})
    return copied


_ATOMS = frozenset(
    {bool, int, float, complex, str, bytes, type(None), type, FunctionType, BuiltinFunctionType}
)
_OWN_WAYS = (
    "__deepcopy__", "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__getnewargs__",
    "__getnewargs_ex__", "__slots__",
)  # fmt: skip


def _with_modules(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Adds copies of a model's modules to the memo, but of those that are copied in a way of their own.

    `copy.deepcopy` does the same, in several times the time. Returns the model itself.
    """
    plain: dict[type, bool] = {}
    made: list[tuple[nn.Module, nn.Module]] = []
    for module in model.modules():
        kind = type(module)
        if kind not in plain:
            classes = [k for k in kind.__mro__ if k not in (object, nn.Module)]
            plain[kind] = not any(vars(k).get(name) for k in classes for name in _OWN_WAYS)
        if plain[kind] and id(module) not in memo:
            memo[id(module)] = kind.__new__(kind)
            made.append((module, memo[id(module)]))
    for module, copied in made:
        vars(copied).update(
            (name, held if type(held) in _ATOMS else _copied(held, memo))
            for name, held in vars(module).items()
        )
    return model


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Returns a deep copy; most of a module are small containers, which `copy.deepcopy` is slow at."""
    if id(value) in memo:
        return memo[id(value)]
    kind = type(value)
    if kind in (tuple, set) and all(type(held) in _ATOMS for held in value):
        return value if kind is tuple else memo.setdefault(id(value), set(value))
    if kind in (dict, OrderedDict) and all(type(key) in _ATOMS for key in value):
        made = memo[id(value)] = kind()
        for key, held in value.items():
            made[key] = held if type(held) in _ATOMS else _copied(held, memo)
        return made
    return copy.deepcopy(value, memo)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _rebind_hooks(model: nn.Module, copies: Mapping[int, nn.Module]) -> None:
    """Lets hooks that are functions hold the copies of the modules that they hold: deepcopy shares functions.

    copies: id of a module of the original -> its copy.
    """
    for module in model.modules():
        for kind in _HOOKS:
            hooks = getattr(module, kind)
            hooks.update({key: _rebound(hook, copies) for key, hook in hooks.items()})


def _rebound(hook: Any, copies: Mapping[int, nn.Module]) -> Any:
    """Returns a hook whose closure holds the copies; anything but a function as it is."""
    if not isinstance(hook, FunctionType) or not hook.__closure__:
        return hook
    held = [_content(cell) for cell in hook.__closure__]
    if not any(id(value) in copies for value in held):
        return hook
    cells = tuple(CellType(copies.get(id(value), value)) for value in held)
    made = FunctionType(hook.__code__, hook.__globals__, hook.__name__, hook.__defaults__, cells)
    made.__kwdefaults__ = hook.__kwdefaults__
    return made


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is assigned later
        return None


def _sync(model: nn.Module, going: RemovedPositions) -> None:
    """Sets the sizes that modules keep as attributes to those of their weights. going: the dropped positions."""
    names = first_names(model)
    fit_widths(model)
    for path, module in model.named_modules():
        _sync_one(
            module, next((going[name].get(0, []) for name in _weights(path, names) if name in going), [])
        )


def _weights(path: str, names: Mapping[str, str]) -> list[str]:
    """Returns the names under which a module may store its weight: as it is, or what it is computed from."""
    ends = (
        "weight",
        "parametrizations.weight.original",
        "parametrizations.weight.original1",
        "weight_v",
        "weight_orig",
    )
    return [names[name] for end in ends if (name := f"{path}.{end}".lstrip(".")) in names]


_SIZED = (
    nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm,
    nn.PReLU, nn.Embedding,
)  # fmt: skip
"""Modules that keep sizes of their weight as attributes."""


def _sync_one(module: nn.Module, rows: list[int]) -> None:
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        suffix = "_l0" if isinstance(module, nn.RNNBase) else ""
        inner, recurrent = (getattr(module, f"weight_{kind}{suffix}") for kind in ("ih", "hh"))
        module.input_size, module.hidden_size = inner.shape[1], recurrent.shape[1]
    if not isinstance(module, _SIZED):
        return
    weight = module._parameters.get("weight")
    if weight is None:
        with eval_mode(module):  # a computed weight may change what it is computed from, in training mode
            weight = getattr(module, "weight", None)
    if weight is None:  # a batch norm without scale still knows its width
        weight = getattr(module, "running_mean", None)
    if not isinstance(weight, Tensor):
        return
    shape = weight.shape
    if isinstance(module, nn.modules.conv._ConvNd):
        _sync_conv(module, shape, rows)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = shape[0]
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels:  # one norm group per channel
            module.num_groups = shape[0]
        module.num_channels = shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape


def _sync_conv(module: nn.modules.conv._ConvNd, shape: torch.Size, rows: list[int]) -> None:
    depthwise = module.groups > 1 and module.in_channels == module.groups and _cuts_whole_groups(module, rows)
    if module.transposed:
        if depthwise:
            module.groups = shape[0]
        module.in_channels, module.out_channels = shape[0], shape[1] * module.groups
    else:
        if depthwise:
            module.groups = shape[0] * module.groups // module.out_channels
        module.in_channels, module.out_channels = shape[1] * module.groups, shape[0]


def _cuts_whole_groups(module: nn.modules.conv._ConvNd, rows: list[int]) -> bool:
    """Returns whether the dropped rows are all rows of their conv groups.

    If not, the conv groups stay: an earlier cut has left a grouped convolution one input channel in each.
    """
    each = module.out_channels // module.groups
    return all(count == each for count in Counter(row // each for row in rows).values())
