"""Tracing of a module with an example input: `torch.export`, then a walk over the operators on labels."""

import logging
import operator
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from prunefront.errors import NotTraceable, UnknownName, UnsupportedOp
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, Frozen, TensorSlice
from prunefront.pruners.trace import probe, sites, stacks
from prunefront.pruners.trace.labels import IntArray, Labels, Ledger, Stored, Use, blank
from prunefront.pruners.trace.rules import RULES, Call, Value, is_tensor
from prunefront.pruners.units.eval_mode import eval_mode
from prunefront.text import did_you_mean, first_line


def trace(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    *,
    frozen: Sequence[str] = (),
    verify: bool = True,
) -> ChannelGraph:
    """Returns the channel graph of a model in eval mode; the model is left as it was.

    example: one input, or a tuple of positional inputs; axis 0 is the batch. frozen: paths of modules that shall stay
    as they are; operators without a rule are allowed inside. verify: cut every group once on the example and freeze
    those whose forward pass does not take it (sizes written into `forward`). Raises NotTraceable where `torch.export`
    fails, UnsupportedOp for an operator without a channel rule, UnknownName for a frozen path that the model lacks.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> [(group.name, group.units) for group in pf.trace(net, torch.randn(2, 8)).groups]
    [('0', 16)]
    """
    _check_frozen(model, frozen)
    inputs = example if isinstance(example, tuple) else (example,)
    program = _export(model, inputs)
    tensors = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    first_names: dict[int, str] = {}
    for name, tensor in tensors.items():
        first_names.setdefault(id(tensor), name)
    own = {name: t for name, t in tensors.items() if first_names[id(t)] == name}
    names = {name: first_names[id(t)] for name, t in tensors.items()}
    ledger = Ledger(_batch(inputs))
    _walk(program, names, ledger, frozen)
    groups, held = _collect_groups(ledger)
    layers, unlayered = sites.find_layers(model, ledger, names, frozen)
    graph = ChannelGraph(
        groups=groups,
        frozen=held,
        ops=tuple(ledger.ops),
        shapes={name: tuple(t.shape) for name, t in own.items()},
        parameters=tuple(name for name, t in own.items() if isinstance(t, nn.Parameter)),
        inexact=_groups_with(ledger, groups, ledger.inexact),
        rectified=_groups_with(ledger, groups, ledger.rectified),
        depthwise=tuple(ledger.depthwise),
        element_bytes={name: t.element_size() for name, t in own.items() if t.element_size() != 4},
        layers=layers,
        unlayered=unlayered,
    )
    found, unstacked = stacks.find_stacks(model, graph, inputs, frozen)
    graph = replace(graph, stacks=found, unstacked=unstacked)
    return probe.verify(model, graph, inputs) if verify else graph


def _check_frozen(model: nn.Module, frozen: Sequence[str]) -> None:
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for name in frozen:
        if name not in known:
            raise UnknownName(
                f"frozen names module {name!r}, which the model does not have; {did_you_mean(name, known)}"
                f"there are: {', '.join(known[:8])} …"
            )


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keeps attention from the fused operator, which hides where the channels go."""
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _export(model: nn.Module, inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    with eval_mode(model), _plain_attention(), _quiet():
        try:
            return torch.export.export(model, inputs)
        except Exception as error:  # a model may fail in any way: the error is reported
            line = first_line(error).rstrip(".")
            where = _user_frame(error)
            raise NotTraceable(
                f"torch.export cannot turn {type(model).__name__} into a graph{where}: "
                f"{type(error).__name__}: {line}. Change that line, or give an example input that fits"
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses what torch prints and logs about an export that fails: the error says it in one line."""
    shapes = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = shapes.level
    shapes.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            yield
    finally:
        shapes.setLevel(level)


def _user_frame(error: BaseException) -> str:
    """Returns ` (file.py:12)` for the innermost frame outside torch, Python and this file; "" where there is none."""
    found, frame = "", error.__traceback__
    standard = sysconfig.get_paths()["stdlib"]
    torch_itself = str(Path(torch.__file__).parent)
    while frame is not None:
        name = frame.tb_frame.f_code.co_filename
        library = name.startswith(standard) and "site-packages" not in name
        if not (library or name.startswith((torch_itself, "<")) or name == __file__):
            found = f" ({Path(name).name}:{frame.tb_lineno})"
        frame = frame.tb_next
    return found


def _batch(inputs: tuple[Any, ...]) -> int:
    leaves = torch.utils._pytree.tree_leaves(inputs)
    return next((int(t.shape[0]) for t in leaves if isinstance(t, Tensor) and t.dim() and t.shape[0]), 1)


# ---- the walk ----------------------------------------------------------------------------------------------------


def _walk(
    program: torch.export.ExportedProgram, names: Mapping[str, str], ledger: Ledger, frozen: Sequence[str]
) -> None:
    """Runs the exported operators on labels."""
    signature = program.graph_signature
    stored_as = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    stored: dict[str, Stored] = {}
    inputs: list[Value] = []
    for node in program.graph.find_nodes(op="placeholder"):
        meta = node.meta.get("val")
        name = names.get(stored_as.get(node.name, ""))
        if name is not None:
            if name not in stored:
                stored[name] = ledger.store(name, tuple(meta.shape))
            inputs.append(stored[name])
        else:  # an input, a constant, or a buffer that is not saved: nothing here can be cut
            inputs.append(blank(meta.shape) if isinstance(meta, Tensor) else meta)
    for value in _leaves(_run(program.graph, inputs, ledger, frozen)):
        if is_tensor(value):
            if isinstance(value, Stored):
                ledger.uses.setdefault(value.name, []).append(Use(""))
            for labels in (value,) if isinstance(value, Labels) else value.at:
                ledger.freeze(labels.data, "reaches the output")


def _leaves(value: Value) -> list[Value]:
    return [leaf for v in value for leaf in _leaves(v)] if isinstance(value, list | tuple) else [value]


def _run(graph: Graph, inputs: Sequence[Value], ledger: Ledger, frozen: Sequence[str]) -> Value:
    """Returns the labels of a graph's outputs."""
    values: dict[Node, Value] = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=True))

    def value_of(argument: Any) -> Any:
        if isinstance(argument, Node):
            return values[argument]
        if isinstance(argument, list | tuple):
            return [value_of(a) for a in argument]
        return argument

    for node in graph.nodes:
        if node.op == "get_attr":  # the body of a block under no_grad or autocast
            values[node] = getattr(graph.owning_module, str(node.target))
        elif node.op == "call_function" and _name(node) in (
            "wrap_with_set_grad_enabled",
            "wrap_with_autocast",
        ):
            given = [value_of(a) for a in node.args]
            at = next(i for i, v in enumerate(given) if isinstance(v, GraphModule))
            values[node] = _run(given[at].graph, given[at + 1 :], ledger, frozen)
        elif node.op == "call_function":
            values[node] = _apply_rule(node, value_of, ledger, frozen)
            if _name(node).endswith("_") and isinstance(node.args[0], Node) and is_tensor(values[node]):
                values[node.args[0]] = values[node]
        elif node.op == "output":
            return value_of(node.args[0])
    return None


def _name(node: Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).split("::")[-1]
    return getattr(target, "__name__", str(target))


def _apply_rule(node: Node, value_of: Any, ledger: Ledger, frozen: Sequence[str]) -> Value:
    """Returns the labels of one operator's result."""
    op = _name(node)
    op = op if op.startswith("_") and op.endswith("__") else op.rstrip("_")
    shapes = [
        tuple(v.shape) for v in torch.utils._pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)
    ]
    call = Call(op, _bind(node, value_of), shapes[0] if shapes else ())
    _note_uses(node, call, ledger)
    tensors = call.tensors()
    held = next((name for name in frozen if _inside(node, name)), None)
    unlabelled = all(isinstance(t, Labels) and not t.labelled() for t in tensors)
    if held is None and unlabelled and op not in RULES:
        return _blanks(node)  # it works on inputs and constants only
    if held is not None:
        for tensor in tensors:
            if isinstance(tensor, Labels):
                ledger.freeze(tensor.data, f"is inside {held}, which is frozen")
    try:
        if op not in RULES:
            raise UnsupportedOp("")
        result = RULES[op](ledger, call)
        _check_shapes(result, node)
    except UnsupportedOp as error:
        if held is None and unlabelled:
            return _blanks(node)
        if held is None:
            raise UnsupportedOp(_refusal(node, str(error))) from None
        for tensor in tensors:
            ledger.freeze(ledger.as_data(tensor).data, f"is inside {held}, which is frozen")
        return _blanks(node)
    if held is not None:
        for value in result if isinstance(result, list) else [result]:
            if isinstance(value, Labels):
                ledger.freeze(value.data, f"is inside {held}, which is frozen")
    return result


def _note_uses(node: Node, call: Call, ledger: Ledger) -> None:
    """Records which stored tensors an operator takes, and where."""
    for tensor in call.tensors():
        if isinstance(tensor, Stored):
            ledger.uses.setdefault(tensor.name, []).append(Use(_innermost(node), _norm_behind(node)))


def _norm_behind(node: Node) -> str:
    """Returns the path of the module around the batch norm that is the only reader of an operator's result."""
    readers = list(node.users)
    return _innermost(readers[0]) if len(readers) == 1 and _name(readers[0]) == "batch_norm" else ""


def _bind(node: Node, value_of: Any) -> dict[str, Any]:
    """Returns the arguments by name, defaults filled in."""
    if node.target is operator.getitem:
        return {"a": value_of(node.args[0]), "b": node.args[1]}
    given = [value_of(a) for a in node.args]
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): v for i, v in enumerate([*given, *(value_of(v) for v in node.kwargs.values())])}
    schema = node.target._schema.arguments
    bound = {a.name: a.default_value for a in schema if a.has_default_value()}
    named = {a.name: v for a, v in zip(schema, given, strict=False)}
    named.update({k: value_of(v) for k, v in node.kwargs.items()})
    return {a.name: named.get(a.name, bound.get(a.name)) for a in schema}


def _blanks(node: Node) -> Value:
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return [blank(v.shape) if isinstance(v, Tensor) else v for v in value]
    return blank(value.shape) if isinstance(value, Tensor) else value


def _check_shapes(result: Value, node: Node) -> None:
    """Raises UnsupportedOp for a rule with a wrong shape: that is a bug, and must not become a wrong cut."""
    made = [v.shape for v in (result if isinstance(result, list) else [result]) if is_tensor(v)]
    true = [
        tuple(v.shape) for v in torch.utils._pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)
    ]
    if made and made != true[: len(made)]:
        raise UnsupportedOp(f"its channel rule expects shape {made[0]} where the network has {true[:1]}")


def _modules(node: Node) -> list[str]:
    """Returns the paths of the modules around an operator, outermost first."""
    return [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]


def _innermost(node: Node) -> str:
    return (_modules(node) or [""])[-1]


def _inside(node: Node, name: str) -> bool:
    return any(path == name or path.startswith(f"{name}.") for path in _modules(node))


def _refusal(node: Node, detail: str) -> str:
    full = (
        str(node.target._schema.name).replace("::", ".") if hasattr(node.target, "_schema") else _name(node)
    )
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(f, n) for f, n in frames if "torch/nn/" not in f.replace("\\", "/")] or frames
    where = f" ({Path(own[-1][0]).name}:{own[-1][1]})" if own else ""
    what = f"{full} at node {node.name!r}{where} has no channel rule" + (f" here: {detail}" if detail else "")
    around = _modules(node)
    instead = "Write it with matmul" if "einsum" in full else "Write it with other operators"
    freeze = f'freeze it: frozen = ["{around[-1]}"]' if around else "put it into a submodule and freeze that"
    return f"{what}. {instead}, add a rule in pruners/trace/rules/, or {freeze}."


# ---- from the ledger to groups -----------------------------------------------------------------------------------


def _collect_groups(ledger: Ledger) -> tuple[tuple[ChannelGroup, ...], tuple[Frozen, ...]]:
    """Returns a group for each set of classes with the same axes, and every other produced channel with its reason."""
    reasons: dict[int, str] = {}
    for nodes, reason in ledger.frozen:
        for root in np.unique(ledger.find(nodes)).tolist():
            reasons.setdefault(root, reason)
    produced: dict[tuple[str, int], IntArray] = {}
    order: dict[int, None] = {}
    sizes = {(name, dim): (first, size) for name, dim, first, size in ledger.axes}
    for key in ledger.producers:
        first, size = sizes[key]
        produced[key] = ledger.find(np.arange(first, first + size))
        order.update(dict.fromkeys(produced[key].tolist()))
    classes: dict[int, dict[tuple[str, int], list[int]]] = {root: {} for root in order if root not in reasons}
    for name, dim, first, size in ledger.axes:
        for position, root in enumerate(ledger.find(np.arange(first, first + size)).tolist()):
            if root in classes:
                classes[root].setdefault((name, dim), []).append(position)
    alike: dict[tuple[tuple[tuple[str, int], int], ...], list[int]] = {}
    for root, places in classes.items():
        alike.setdefault(tuple((key, len(at)) for key, at in places.items()), []).append(root)
    groups: list[ChannelGroup] = []
    taken: dict[str, int] = {}
    for signature, roots in alike.items():
        if len(roots) == 1:
            reasons[roots[0]] = "can only be removed as a whole"
            continue
        axes = [key for key, _ in signature]
        first_producer = next(key for key in ledger.producers if key in axes)
        axes.sort(key=lambda key: (key != first_producer, ledger.roles.get(key, "other") != "out"))
        name = probe.module_of(first_producer[0])
        taken[name] = taken.get(name, 0) + 1
        groups.append(
            ChannelGroup(
                name if taken[name] == 1 else f"{name}:{taken[name]}",
                len(roots),
                tuple(
                    TensorSlice(
                        tensor,
                        dim,
                        ledger.roles.get((tensor, dim), "other"),
                        tuple(tuple(classes[root][tensor, dim]) for root in roots),
                    )
                    for tensor, dim in axes
                ),
            )
        )
    held: dict[tuple[str, str], int] = {}
    for (tensor, _), roots_of in produced.items():
        for root in roots_of.tolist():
            if root in reasons:
                line = (probe.module_of(tensor), reasons[root])
                held[line] = held.get(line, 0) + 1
    return tuple(groups), tuple(Frozen(name, n, reason) for (name, reason), n in held.items())


def _groups_with(ledger: Ledger, groups: tuple[ChannelGroup, ...], noted: list[IntArray]) -> tuple[str, ...]:
    """Returns the names of the groups that hold one of the noted labels."""
    if not noted:
        return ()
    touched = set(np.unique(ledger.find(np.concatenate(noted))).tolist())
    first_node = {(name, dim): first for name, dim, first, _ in ledger.axes}
    return tuple(
        g.name
        for g in groups
        if any(
            int(ledger.find(np.array([first_node[m.tensor, m.dim] + index[0]]))[0]) in touched
            for m in g.members[:1]
            for index in m.index
        )
    )
