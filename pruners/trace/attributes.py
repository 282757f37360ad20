"""Search for the whole numbers in modules that a cut has to change: heads, widths, split sizes that `forward` uses."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup, SizeAttribute

Attributes = tuple[SizeAttribute, ...]
Failure = Callable[[Attributes, ChannelGroup], str | None]
"""Returns why a group cannot be cut with these attributes set after the cut; None if it can."""

_MULTIPLES = (1, 2, 3, 4)
"""Parts that are packed into one weight, and factors between widths: q, k and v, gates, the ratio of an MLP."""

_MOST_KINDS = 16
"""Most attributes, of one class of modules each, that are tried on their own."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """One attribute of one class of modules.

    options: by rank, the axis that it follows in each of these modules, None where it stays.
    """

    name: str
    options: tuple[tuple[SizeAttribute | None, ...], ...]


def find_attributes(
    model: nn.Module, graph: ChannelGraph, failing: Sequence[ChannelGroup], failure: Failure
) -> Attributes:
    """Returns attributes that make groups pass which fail without them; none where that does not help.

    Candidates hold the old size of an axis that a failing group cuts, its number of units, or a small multiple. All
    modules of a class are treated alike. Where an attribute could follow several axes, each is tried; a number that is
    the same by chance does not help, and stays. failing: groups that fail without any.
    """
    kinds = _kinds(model, graph, failing)[:_MOST_KINDS]
    samples = kinds_of(failing)
    chosen: list[int | None] = [0] * len(kinds)

    def passing() -> int:
        return sum(failure(_resolved(kinds, chosen), group) is None for group in samples)

    best = passing()
    for at, kind in enumerate(kinds):
        if best == len(samples):
            break
        for option in (None, *range(1, len(kind.options))):
            before, chosen[at] = chosen[at], option
            count = passing()
            if count > best:
                best = count
            else:
                chosen[at] = before
    for at in reversed(range(len(kinds))):  # the likeliest came first; what does not help is left alone
        before, chosen[at] = chosen[at], None
        if before is not None and passing() < best:
            chosen[at] = before
    return _resolved(kinds, chosen) if best else ()


def _resolved(kinds: Sequence[_Kind], chosen: Sequence[int | None]) -> Attributes:
    return tuple(
        a
        for kind, at in zip(kinds, chosen, strict=True)
        if at is not None
        for a in kind.options[at]
        if a is not None
    )


def kinds_of(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """Returns one of each kind of groups: those of equal blocks differ in their numbers alone."""
    found: dict[tuple[object, ...], ChannelGroup] = {}
    for group in groups:
        tensors = frozenset(re.sub(r"\d+", "#", m.tensor) for m in group.members)
        found.setdefault((group.units, tensors), group)
    return list(found.values())[:8]


def _kinds(model: nn.Module, graph: ChannelGraph, failing: Sequence[ChannelGroup]) -> list[_Kind]:
    names = {g.name for g in failing}
    found: dict[tuple[str, str, int], list[list[SizeAttribute | None]]] = {}
    for path, module in model.named_modules():
        for name, place, value in _numbers(module):
            options = list(_axes(graph, names, path, name, place, value))
            if any(options):
                found.setdefault((type(module).__qualname__, name, place), []).append(options)
    kinds = []
    for (_, name, _), modules in found.items():
        depth = max(map(len, modules))
        ranked = [tuple(options[min(at, len(options) - 1)] for options in modules) for at in range(depth)]
        kinds.append(_Kind(name, tuple(ranked)))
    return kinds


def _numbers(module: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Yields name, place and value of the whole numbers that a person's own module keeps."""
    if type(module).__module__.startswith("torch."):
        return  # their sizes follow their weights
    for name, held in vars(module).items():
        if name.startswith("_"):
            continue
        if type(held) is int and held > 1:
            yield name, -1, held
        elif isinstance(held, tuple) and held and all(type(n) is int for n in held):
            yield name, len(held) - 1, held[-1]


def _own_axes(graph: ChannelGraph, path: str) -> Iterator[tuple[str, int, int]]:
    """Yields tensor, axis and size of the tensors that a module itself holds."""
    for tensor, shape in graph.shapes.items():
        if path and tensor.rpartition(".")[0] == path:
            yield from ((tensor, dim, size) for dim, size in enumerate(shape))


def _axes(
    graph: ChannelGraph, failing: set[str], path: str, name: str, place: int, value: int
) -> Iterator[SizeAttribute | None]:
    """Yields what an attribute may follow, the likeliest first, one axis for each group; None for one that stays."""
    found: list[tuple[int, int, str, SizeAttribute | None]] = []
    cut = {(m.tensor, m.dim) for g in graph.groups if g.name in failing for m in g.members}
    if any((tensor, dim) not in cut and size == value for tensor, dim, size in _own_axes(graph, path)):
        found.append((1, 0, "", None))
    for group in graph.groups:
        if group.name not in failing:
            continue
        for member in group.members:
            if path and not member.tensor.startswith(f"{path}."):
                continue
            size = graph.shapes[member.tensor][member.dim]
            whole = sum(map(len, member.index)) == size
            produces = member.role == "out" and len(graph.shapes[member.tensor]) > 1
            if value == size:
                rank = 0 if produces else 2
            elif whole and value == group.units:
                rank = 1
            elif any(size == value * n or value == size * n for n in _MULTIPLES):
                rank = 3
            else:
                continue
            made = SizeAttribute(path, name, place, value, member.tensor, member.dim)
            found.append((rank, member.tensor.count("."), group.name, made))
    seen: set[str] = set()
    for _, _, group_name, size_attribute in sorted(found, key=lambda row: row[:2]):
        if group_name not in seen:
            seen.add(group_name)
            yield size_attribute
