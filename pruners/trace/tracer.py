"""Tracing of a module with an example input: `torch.export`, then a walk over the operators on labels."""

import functools
import gc
import logging
import operator
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from prunefront.errors import NotTraceable, UnknownName, UnsupportedOp
from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.trace import check_cuts, handwritten, sites, stacks
from prunefront.pruners.trace.arguments import Inputs, state_of, tensors_of
from prunefront.pruners.trace.fake import Rehearsal, quiet_about_sizes, rehearse, watch_calls
from prunefront.pruners.trace.groups import collect_groups, groups_with, merge_by_hand
from prunefront.pruners.trace.held import own_chance
from prunefront.pruners.trace.labels import Labels, Ledger, Stored, Use, blank
from prunefront.pruners.trace.refusals import refuse
from prunefront.pruners.trace.rules import RULES, Call, Value, is_tensor
from prunefront.pruners.trace.rules.joining import write_part
from prunefront.pruners.units.attention import spelled
from prunefront.pruners.units.eval_mode import eval_mode, training_mode
from prunefront.text import did_you_mean, first_line


def trace(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    *,
    kwargs: Mapping[str, Any] | None = None,
    frozen: Sequence[str] = (),
    merged: Sequence[Sequence[str]] = (),
    verify: bool = True,
    strict: bool = False,
) -> ChannelGraph:
    """Returns the channel graph of a model in eval mode; the model is left as it was.

    example: one input, or a tuple of positional inputs; axis 0 is the batch. kwargs: inputs by keyword. frozen: paths
    of modules that shall stay as they are, or patterns like `layer4.*`. merged: sets of groups that shall lose the same
    units. verify: cut every group once on the example and freeze those whose forward pass does not take it (sizes
    written into `forward`). An operator without a channel rule freezes the channels that reach it; with `strict` it is
    an error. Raises NotTraceable where `torch.export` fails, UnknownName for a frozen path or a merged group that the
    model lacks, PrunefrontError for groups that cannot be merged, and UnsupportedOp under `strict`.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> [(group.name, group.units) for group in pf.trace(net, torch.randn(2, 8)).groups]
    [('0', 16)]
    """
    frozen = frozen_modules(model, frozen)
    refuse(model)
    inputs = Inputs.of(example, kwargs)
    with _collector_paused():
        graph, rehearsal = _read(model, inputs, _Policy(frozen, strict))
    graph = merge_by_hand(graph, merged)
    found, unstacked = stacks.find_stacks(model, graph, rehearsal.example, frozen)
    graph = replace(graph, stacks=found, unstacked=unstacked)
    return check_cuts.verify(model, graph, inputs, rehearsal) if verify else graph


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keeps Python from looking for cycles meanwhile: the many small objects of a graph would call for it often.

    In the end it looks once, among the objects that were made meanwhile alone.
    """
    enabled, untouched = gc.isenabled(), gc.get_freeze_count() == 0
    gc.disable()
    if untouched:
        gc.freeze()
    try:
        yield
    finally:
        if untouched:
            gc.collect()
            gc.unfreeze()
        if enabled:
            gc.enable()


def _read(model: nn.Module, inputs: Inputs, policy: "_Policy") -> tuple[ChannelGraph, Rehearsal]:
    """Returns the channel graph without stacks, before any cut is tried, and the first runs of the network."""
    _fill_caches(model, inputs)
    with watch_calls(model) as calls:
        program, state = _export(model, inputs)
    tensors = {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    first_names: dict[int, str] = {}
    for name, tensor in tensors.items():
        first_names.setdefault(id(tensor), name)
    own = {name: t for name, t in tensors.items() if first_names[id(t)] == name}
    names = {name: first_names[id(t)] for name, t in tensors.items()}
    ledger = Ledger(_batch(inputs))
    _walk(program, names, ledger, policy)
    macs = ledger.batch * sum(op.positions * ledger.elements(op.weight) for op in ledger.ops)
    rehearsal = rehearse(model, inputs, calls, len(_output_tensors(program)), macs)
    if rehearsal.trains and not rehearsal.trains_alike:
        # a branch that cannot be walked is left to the trial, which freezes what it reads
        with ledger.only_ties("in training mode"), suppress(NotTraceable, UnsupportedOp):
            _walk(_export(model, inputs, training=True)[0], names, ledger, policy)
    groups, held = collect_groups(ledger)
    layers, unlayered = sites.find_layers(model, ledger, names, policy.frozen)
    graph = ChannelGraph(
        groups=groups,
        frozen=held,
        ops=tuple(ledger.ops),
        shapes={name: tuple(t.shape) for name, t in own.items()},
        parameters=tuple(name for name, t in own.items() if isinstance(t, nn.Parameter)),
        inexact=groups_with(ledger, groups, ledger.inexact),
        rectified=groups_with(ledger, groups, ledger.rectified),
        depthwise=tuple(ledger.depthwise),
        element_bytes={name: t.element_size() for name, t in own.items() if t.element_size() != 4},
        layers=layers,
        unlayered=unlayered,
        notes=tuple(map(_STATE.format, state)),
        attributes=sites.norm_widths(model, ledger),
    )
    return graph, rehearsal


def _fill_caches(model: nn.Module, inputs: Inputs) -> None:
    """Runs a model once whose code keeps results (`functools.lru_cache`): the export would keep tensors without values.

    A model that does not run is left to the export, which says why.
    """
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    files = {k.__module__ for k in kinds if not k.__module__.startswith(("torch.", "builtins"))}
    places = [*kinds, *(sys.modules[name] for name in files if name in sys.modules)]
    if any(
        isinstance(held, functools._lru_cache_wrapper) for place in places for held in vars(place).values()
    ):
        with (
            torch.no_grad(),
            own_chance(),
            suppress(Exception),
        ):  # whatever forward raises: the export says it
            copied = surgery.rebuilt(model, {}, lambda _, tensor: tensor.clone())
            copied.eval()
            torch.utils._pytree.tree_map_only(Tensor, torch.clone, inputs).call(copied)


def frozen_modules(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Returns the paths of the modules that names or patterns like `layer4.*` mean.

    Raises UnknownName for one that means no module.
    """
    known = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    found: dict[str, None] = {}
    for pattern in patterns:
        meant = [pattern] if pattern in known else [name for name in known if fnmatchcase(name, pattern)]
        if not meant:
            raise UnknownName(
                f"frozen names module {pattern!r}, which the model does not have; {did_you_mean(pattern, known)}"
                f"there are: {', '.join(known[:8])} …"
            )
        found.update(dict.fromkeys(meant))
    return tuple(found)


_STATE = "the tensors in a {} that forward gives are not held fixed: a cut network fills it with its own"


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keeps attention from the fused operator, which hides where the channels go."""
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _export(
    model: nn.Module, inputs: Inputs, *, training: bool = False
) -> tuple[torch.export.ExportedProgram, tuple[str, ...]]:
    """Returns the operators of a network, and the types of what it gives that is state rather than output."""
    mode = training_mode(model) if training else eval_mode(model)
    with mode, _plain_attention(), spelled(model), _bare_outputs(model) as state, _quiet():
        try:
            return torch.export.export(model, inputs.args, dict(inputs.kwargs)), tuple(state)
        except Exception as error:  # a model may fail in any way: the error is reported
            line = first_line(error).rstrip(".")
            where = _user_frame(error)
            raise NotTraceable(
                f"torch.export cannot turn {type(model).__name__} into a graph{where}: "
                f"{type(error).__name__}: {line}. Change that line, or give an example input that fits"
            ) from error


@contextmanager
def _bare_outputs(model: nn.Module) -> Iterator[dict[str, None]]:
    """Lets a network give its tensors alone, whatever holds them; notes the types of objects that are its state."""
    state: dict[str, None] = {}

    def bare(module: nn.Module, args: Any, output: Any) -> tuple[Tensor, ...]:
        state.update(dict.fromkeys(state_of(output)))
        return tuple(tensors_of(output))

    hook = model.register_forward_hook(bare)
    try:
        yield state
    finally:
        hook.remove()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses what torch prints and logs about an export that fails: the error says it in one line."""
    shapes = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = shapes.level
    shapes.setLevel(logging.CRITICAL)
    try:
        silent = redirect_stderr(StringIO()), redirect_stdout(StringIO())
        with warnings.catch_warnings(), quiet_about_sizes(), silent[0], silent[1]:
            warnings.simplefilter("ignore")  # what a module assigns in its forward is its own affair
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


def _output_tensors(program: torch.export.ExportedProgram) -> list[str]:
    """Returns the names of the tensors that the network gives, a tensor that it gives twice with both places."""
    return [name for name in program.graph_signature.user_outputs if isinstance(name, str)]


def _batch(inputs: Inputs) -> int:
    leaves = torch.utils._pytree.tree_leaves(inputs)
    return next((int(t.shape[0]) for t in leaves if isinstance(t, Tensor) and t.dim() and t.shape[0]), 1)


# ---- the walk ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Policy:
    """The walk's treatment of modules and operators. frozen: paths that stay. strict: refuse unknown operators."""

    frozen: tuple[str, ...]
    strict: bool


def _walk(
    program: torch.export.ExportedProgram, names: Mapping[str, str], ledger: Ledger, policy: _Policy
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
    for value in _leaves(_run(program.graph, inputs, ledger, policy)):
        if is_tensor(value):
            if isinstance(value, Stored):
                ledger.uses.setdefault(value.name, []).append(Use(""))
            for labels in (value,) if isinstance(value, Labels) else value.at:
                ledger.freeze(labels.data, "reaches the output")


def _leaves(value: Value) -> list[Value]:
    return [leaf for v in value for leaf in _leaves(v)] if isinstance(value, list | tuple) else [value]


def _run(graph: Graph, inputs: Sequence[Value], ledger: Ledger, policy: _Policy) -> Value:
    """Returns the labels of a graph's outputs."""
    values: dict[Node, Value] = dict(zip(graph.find_nodes(op="placeholder"), inputs, strict=True))
    norms, live = handwritten.statistics(graph), _live(graph)

    def value_of(argument: Any) -> Any:
        if isinstance(argument, Node):
            return values[argument]
        if isinstance(argument, list | tuple):
            return [value_of(a) for a in argument]
        return argument

    for node in graph.nodes:
        if node.op == "get_attr":  # the body of a block under no_grad or autocast
            values[node] = getattr(graph.owning_module, str(node.target))
        elif node.op == "call_function" and node not in live:
            values[node] = _blanks(node)
        elif node.op == "call_function" and _name(node) in (
            "wrap_with_set_grad_enabled",
            "wrap_with_autocast",
        ):
            given = [value_of(a) for a in node.args]
            at = next(i for i, v in enumerate(given) if isinstance(v, GraphModule))
            values[node] = _run(given[at].graph, given[at + 1 :], ledger, policy)
        elif node.op == "call_function":
            values[node] = _apply_rule(node, value_of, ledger, policy, norms.get(node, ""))
            if _name(node).endswith("_") and isinstance(node.args[0], Node) and is_tensor(values[node]):
                _write_through(node, values, ledger)
        elif node.op == "output":
            return value_of(node.args[0])
    return None


def _live(graph: Graph) -> set[Node]:
    """Returns all operators but checks and views that are asked for a size alone.

    Others whose results nobody takes are run all the same, so their inputs must fit after a cut, too.
    """
    live: set[Node] = set()
    for node in reversed(graph.nodes):
        checks = node.op == "call_function" and _name(node).startswith("_assert")
        works = node.op != "call_function" or _name(node) not in _VIEWS
        if not checks and (works or node.users.keys() & live):
            live.add(node)
    return live


_VIEWS = frozenset(
    {
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "permute",
        "transpose",
        "t",
        "expand",
        "detach",
    }
    | {
        "expand_as",
        "view_as",
        "movedim",
        "narrow",
        "slice",
        "select",
        "getitem",
        "alias",
        "unfold",
        "diagonal",
    }
)
"""Operators whose result shares memory with their first argument."""


def _write_through(node: Node, values: dict[Node, Value], ledger: Ledger) -> None:
    """Gives the result of an operator that works in place to its argument, and to what that is a view of."""
    part, result = node.args[0], values[node]
    assert isinstance(part, Node)
    values[part] = result
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    while _name(part) in _VIEWS and isinstance(part.args[0], Node) and is_tensor(values[part.args[0]]):
        base = part.args[0]
        if all(order[user] <= order[node] for user in base.users):
            return  # nobody looks at it again
        held = ledger.as_data(values[base])
        if _name(part) in ("slice", "narrow", "select") and isinstance(result, Labels):
            result = write_part(ledger, held, result, _bind(part, lambda a: values.get(a, a)), _name(part))
        else:
            for labels in (held, *((result,) if isinstance(result, Labels) else result.at)):
                ledger.freeze(labels.data, "is written in place through a view")
            result = blank(held.shape)
        values[base] = result
        part = base


def _name(node: Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).split("::")[-1]
    return getattr(target, "__name__", str(target))


def _apply_rule(node: Node, value_of: Any, ledger: Ledger, policy: _Policy, statistic: str) -> Value:
    """Returns the labels of one operator's result.

    An operator without a rule, or whose rule does not cover the call, gets all that reaches it frozen: then its result
    is the same in the cut network, and counts as a constant.
    """
    op = _name(node)
    op = op if op.startswith("_") and op.endswith("__") else op.rstrip("_")
    shapes = [
        tuple(v.shape) for v in torch.utils._pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)
    ]
    call = Call(op, _bind(node, value_of), shapes[0] if shapes else (), statistic)
    _note_uses(node, call, ledger)
    tensors = [leaf for leaf in _leaves(list(call.given.values())) if is_tensor(leaf)]
    held = next((name for name in policy.frozen if _inside(node, name)), None)
    unlabelled = all(isinstance(t, Labels) and not t.labelled() for t in tensors)
    if held is not None:
        for tensor in tensors:
            if isinstance(tensor, Labels):
                ledger.freeze(tensor.data, f"is inside {held}, which is frozen")
    elif unlabelled and op not in RULES:
        return _blanks(node)  # it works on inputs and constants only
    try:
        result = _by_rule(ledger, call, node)
    except UnsupportedOp as error:
        if held is None and not unlabelled and policy.strict:
            raise UnsupportedOp(_refusal(node, str(error))) from None
        why = _unknown(node, str(error)) if held is None else f"is inside {held}, which is frozen"
        for tensor in tensors:
            for labels in (tensor,) if isinstance(tensor, Labels) else tensor.at:
                ledger.freeze(labels.data, why)
        return _blanks(node)
    if held is not None:
        for value in result if isinstance(result, list) else [result]:
            if isinstance(value, Labels):
                ledger.freeze(value.data, f"is inside {held}, which is frozen")
    return result


def _by_rule(ledger: Ledger, call: Call, node: Node) -> Value:
    """Returns what the operator's rule makes of its arguments. Raises UnsupportedOp where there is none that fits."""
    if _is_complex(node):
        raise UnsupportedOp("complex numbers, as of Fourier transforms, are not followed")
    if call.op not in RULES:
        raise UnsupportedOp("")
    try:
        result = RULES[call.op](ledger, call)
    except UnsupportedOp:
        raise
    except Exception as error:  # arguments that the rule's author did not think of: reported as such, by name
        raise UnsupportedOp(f"its rule fails with {type(error).__name__}: {first_line(error)}") from error
    _check_shapes(result, node)
    given = call.tensors()
    if call.op in _KEEPS_NUMBERS and given and all(isinstance(t, Labels) and t.uniform for t in given):
        assert isinstance(result, Labels)
        return replace(result, uniform=True)
    return result


def _is_complex(node: Node) -> bool:
    """Tells whether an operator takes or gives complex numbers: how weights of these rank and repair is not defined."""
    held = [one.meta.get("val") for one in (node, *node.all_input_nodes)]
    leaves = torch.utils._pytree.tree_leaves(held)
    return any(isinstance(leaf, Tensor) and leaf.is_complex() for leaf in leaves)


_KEEPS_NUMBERS = frozenset(
    {
        "view",
        "reshape",
        "expand",
        "expand_as",
        "permute",
        "transpose",
        "unsqueeze",
        "squeeze",
        "slice",
        "select",
        "flatten",
    }
    | {
        "contiguous",
        "clone",
        "to",
        "_to_copy",
        "detach",
        "repeat",
        "zero",
        "fill",
        "mul",
        "add",
        "neg",
        "type_as",
    }
)
"""Operators whose result is one number everywhere if their arguments are."""


def _note_uses(node: Node, call: Call, ledger: Ledger) -> None:
    """Records which stored tensors an operator takes, and where, and which channels a norm gets."""
    normed = call["input"] if call.op in ("batch_norm", "instance_norm") else None
    if isinstance(normed, Labels) and normed.varying() == (1,):
        ledger.normed.setdefault(_innermost(node), normed.vector(1))
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


def _operator(node: Node) -> str:
    """Returns the operator's full name."""
    if hasattr(node.target, "_schema"):
        return str(node.target._schema.name).replace("::", ".")
    return _name(node)


def _line(node: Node) -> str:
    """Returns ` (file.py:12)` for the line of the network's own source that calls an operator; "" if unknown."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(f, n) for f, n in frames if "torch/nn/" not in f.replace("\\", "/")] or frames
    return f" ({Path(own[-1][0]).name}:{own[-1][1]})" if own else ""


def _unknown(node: Node, detail: str) -> str:
    """Returns the reason of channels that reach an operator which has no rule, or none for this call."""
    rule = f"has no channel rule here: {detail}" if detail else "has no channel rule"
    return f"reaches {_operator(node)}{_line(node)}, which {rule}"


def _refusal(node: Node, detail: str) -> str:
    full = _operator(node)
    what = f"{full} at node {node.name!r}{_line(node)} has no channel rule"
    what += f" here: {detail}" if detail else ""
    around = _modules(node)
    instead = "Write it with matmul" if "einsum" in full else "Write it with other operators"
    freeze = f'freeze it: frozen = ["{around[-1]}"]' if around else "trace it without strict"
    return f"{what}. {instead}, add a rule of your own (docs/add-an-operator.md), or {freeze}."
