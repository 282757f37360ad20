"""Recognition of norms that are written out in a forward pass: RMS norm, layer norm, response norm, unit length."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from torch.fx import Graph, Node

Kind = Literal["", "sum", "mean"]
"""Part that a reduction over channels plays.

"": not known to be part of a norm. "sum": zeros add nothing to it, so a cut network equals the masked one. "mean": a
statistic of a norm, which changes with the number of channels.
"""

_SCALING = frozenset(
    {
        "add",
        "sqrt",
        "rsqrt",
        "pow",
        "reciprocal",
        "clamp",
        "clamp_min",
        "maximum",
        "to",
        "_to_copy",
        "mul",
        "type_as",
    }
    | {
        "div",
        "expand",
        "expand_as",
        "view",
        "reshape",
        "unsqueeze",
        "contiguous",
        "clone",
        "float",
        "getitem",
        "neg",
    }
)
"""Operators between a statistic and the place where it is used."""

_CASTS = frozenset(
    {"to", "_to_copy", "float", "clone", "contiguous", "type_as", "detach", "alias", "dropout"}
)


def statistics(graph: Graph) -> dict[Node, Kind]:
    """Returns the reductions that are part of a norm, with their kind; whatever axes they run over."""
    found: dict[Node, Kind] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.args and isinstance(node.args[0], Node):
            kind = _kind(node, node.args[0])
            if kind:
                found[node] = kind
    return found


def name(node: Node) -> str:
    """Returns an operator's ATen name, without overload."""
    schema = getattr(node.target, "_schema", None)
    plain = str(schema.name).split("::")[-1] if schema is not None else getattr(node.target, "__name__", "")
    return plain if plain.startswith("_") and plain.endswith("__") else plain.rstrip("_")


def _kind(node: Node, source: Node) -> Kind:
    op = name(node)
    if op in ("linalg_vector_norm", "norm"):
        order = node.args[1] if len(node.args) > 1 else node.kwargs.get("ord", node.kwargs.get("p", 2))
        return "sum" if isinstance(order, int | float) and 0 < order < float("inf") else ""
    if op == "sum":
        return "sum" if name(source) in ("mul", "square", "pow", "abs") else ""
    if op == "mean":
        if _is_square(source) or name(source) == "abs":
            return "mean" if _scales(node) else ""
        return "mean" if _centres(node, source) or _divides(node, source) else ""
    if op in ("var", "std", "var_mean", "std_mean"):
        return "mean" if _scales(node, root=op.startswith("var")) else ""
    return ""


def _is_square(node: Node) -> bool:
    node = _origin(node)
    if name(node) == "pow":
        return bool(node.args[1] == 2)
    return name(node) == "square" or (name(node) == "mul" and _origin(node.args[0]) is _origin(node.args[1]))


def _origin(value: Any) -> Any:
    """Returns the node before any change of number type."""
    while isinstance(value, Node) and name(value) in _CASTS and isinstance(value.args[0], Node):
        value = value.args[0]
    return value


def _scales(node: Node, *, root: bool = True) -> bool:
    """Says whether something is divided by a statistic, or its root. A statistic that is only given out is no norm."""
    chain = {node, *_behind(node)}
    powers = {n: n.args[1] for n in chain if name(n) == "pow"}
    roots = [n for n in chain if name(n) in ("sqrt", "rsqrt") or powers.get(n) in (0.5, -0.5)]
    inverse = [n for n in chain if name(n) in ("rsqrt", "reciprocal") or powers.get(n) in (-0.5, -1)]
    divides = any(name(user) == "div" and user.args[1] in chain for n in chain for user in n.users)
    multiplies = any(name(user) == "mul" for n in inverse for user in _users_through_casts(n))
    return (bool(roots) or not root) and (divides or multiplies)


def _divides(node: Node, source: Node) -> bool:
    """Says whether what was averaged is divided by its average (response norm)."""
    chain = {node, *_behind(node)}
    return any(
        name(user) == "div" and user.args[1] in chain and _origin(user.args[0]) is _origin(source)
        for n in chain
        for user in n.users
    )


def _centres(node: Node, source: Node) -> bool:
    """Says whether a mean is taken off what it is the mean of, and the rest is scaled by its own spread."""
    for user in _users_through_casts(node):
        if name(user) != "sub" or _origin(user.args[0]) is not _origin(source):
            continue
        spread = [
            n
            for n in (*_reductions(_users_through_casts(user)), *_reductions(_users_through_casts(source)))
            if n is not node
        ]
        if any(_kind(n, n.args[0]) for n in spread if isinstance(n.args[0], Node)):
            return True
    return False


def _reductions(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yields reductions of nodes, or of their squares."""
    for node in nodes:
        if name(node) in ("var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm"):
            yield node
        elif _is_square(node):
            yield from (n for n in _users_through_casts(node) if name(n) == "mean")


def _users_through_casts(node: Node) -> list[Node]:
    found = []
    for user in node.users:
        found += [user, *(_users_through_casts(user) if name(user) in _CASTS else [])]
    return found


def _behind(node: Node, depth: int = 6) -> list[Node]:
    """Returns the operators that a statistic goes through before it is used."""
    found: list[Node] = []
    for user in node.users if depth else ():
        if name(user) in _SCALING:
            found += [user, *_behind(user, depth - 1)]
    return found
