"""Channel labels, and the union-find ledger that records which channels go together.

A label says which producer made an element of an activation: it is the number of one *node*, one position on one axis
of one stored tensor. Label 0 means "no channel, or one that can never go". A label tensor is small: it has size 1 along
every axis on which its labels do not change.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunefront.pruners.graph.channel_graph import MacOp, Role

IntArray = NDArray[np.int64]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of a tensor of shape `shape`. data: same rank; each axis has size 1 (uniform) or the true size.

    uniform: the tensor is one number everywhere, whatever its size, like the zeros that a state starts with. stretched:
    axes, counted from the end, along which one entry was repeated to some width (`expand_as`).
    """

    data: IntArray
    shape: Shape
    uniform: bool = False
    stretched: frozenset[int] = frozenset()

    def varies(self, axis: int) -> bool:
        """Says whether labels change along the axis."""
        return bool(self.data.shape[axis] > 1)

    def varying(self) -> tuple[int, ...]:
        """Returns the axes along which labels change, ascending."""
        return tuple(i for i, n in enumerate(self.data.shape) if n > 1)

    def labelled(self) -> bool:
        """Says whether any element has a label."""
        return bool(self.data.any())

    def vector(self, axis: int) -> IntArray:
        """Returns the labels along one axis, in its true length, for a tensor uniform on all other axes."""
        return np.broadcast_to(self.data.reshape(-1), (self.shape[axis],))


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored tensor (parameter or buffer), perhaps rearranged. at[d]: for each element, its node on axis d."""

    name: str
    at: tuple[Labels, ...]
    shape: Shape

    def along(self, axes: Iterable[int]) -> "Stored":
        """Returns the tensor with only those of its nodes that change along `axes` alone."""
        allowed = set(axes)
        return Stored(
            self.name,
            tuple(at if set(at.varying()) <= allowed else blank(at.shape) for at in self.at),
            self.shape,
        )

    def axis_nodes(self, axis: int) -> IntArray | None:
        """Returns the nodes along one axis of the rearranged tensor; None where it mixes several stored axes."""
        found = [a for a in self.at if a.varying() == (axis,)]
        if (
            not found and self.shape[axis] == 1
        ):  # a single node varies nowhere: prefer the axis at its own place
            in_place = [self.at[axis]] if axis < len(self.at) else []
            found = [a for a in (*in_place, *self.at) if not a.varying()]
        return found[0].vector(axis) if found else None


def blank(shape: Sequence[int]) -> Labels:
    """Returns a tensor without labels."""
    return Labels(np.zeros((1,) * len(shape), np.int64), tuple(shape))


def along(vector: IntArray, axis: int, shape: Sequence[int]) -> Labels:
    """Returns a tensor whose labels change along one axis only."""
    size = [1] * len(shape)
    size[axis] = len(vector)
    return squash(np.asarray(vector).reshape(size), shape)


def squash(data: IntArray, shape: Sequence[int]) -> Labels:
    """Reduces every uniform axis of `data` to size 1."""
    for axis, size in enumerate(data.shape):
        if size > 1:
            first = data.take([0], axis)
            if (data == first).all():
                data = first
    return Labels(data, tuple(shape))


def spread(labels: Labels, axes: Iterable[int]) -> IntArray:
    """Returns the label data expanded to their true size along `axes`."""
    size = list(labels.data.shape)
    for axis in axes:
        size[axis] = labels.shape[axis]
    return np.broadcast_to(labels.data, size)


def move(value: "Labels | Stored", function: Callable[[Labels], Labels]) -> "Labels | Stored":
    """Applies a data movement to labels, or to every axis' nodes of a stored tensor."""
    if isinstance(value, Labels):
        return function(value)
    at = tuple(function(a) for a in value.at)
    return Stored(value.name, at, at[0].shape if at else value.shape)


def lift(labels: Labels, rank: int) -> Labels:
    """Returns the same labels with axes of size 1 in front, as broadcasting adds them."""
    extra = (1,) * (rank - len(labels.shape))
    return Labels(
        labels.data.reshape(extra + labels.data.shape), extra + labels.shape, labels.uniform, labels.stretched
    )


def reshape_runs(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Splits a reshape into the smallest runs of input axes and output axes that hold the same elements."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        if i < len(before) and before[i] == 1:
            found.append(([i], []))
            i += 1
            continue
        if j < len(after) and after[j] == 1:
            found.append(([], [j]))
            j += 1
            continue
        ins, outs, left, right = [i], [j], before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                ins.append(i)
                left, i = left * before[i], i + 1
            else:
                outs.append(j)
                right, j = right * after[j], j + 1
        found.append((ins, outs))
    return found


@dataclass(frozen=True, slots=True)
class Use:
    """One operator that takes a stored tensor.

    module: path of the innermost module around it. norm: path of the module around the batch norm that is the only
    reader of the result, "" where there is none.
    """

    module: str
    norm: str = ""


_STRENGTH: tuple[Role, ...] = ("out", "in", "norm", "other")


class Ledger:
    """Record of the walk over the forward pass: nodes, their unions, frozen nodes with reasons, and MACs.

    batch: samples in the example, by which output positions are divided.
    """

    def __init__(self, batch: int = 1) -> None:
        self.batch = batch
        self.axes: list[tuple[str, int, int, int]] = []  # tensor, axis, first node, size
        self.roles: dict[tuple[str, int], Role] = {}
        self.producers: dict[tuple[str, int], None] = {}  # in the order of the forward pass
        self.frozen: list[tuple[IntArray, str]] = []
        self.inexact: list[IntArray] = []
        self.rectified: list[IntArray] = []
        self.depthwise: dict[str, None] = {}
        self.ops: list[MacOp] = []
        self.uses: dict[str, list[Use]] = {}
        self.normed: dict[str, IntArray] = {}  # path of a module -> channels that its norm gets first
        self._parent: IntArray = np.zeros(1, np.int64)
        self._starts: list[int] = []
        self._stored: dict[str, Stored] = {}

    def store(self, name: str, shape: Shape) -> Stored:
        """Returns a stored tensor with a node for every position on every axis, the same ones each time."""
        if name in self._stored:
            return self._stored[name]
        at = []
        for dim, size in enumerate(shape):
            first = len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(first, first + size)])
            self.axes.append((name, dim, first, size))
            self._starts.append(first)
            at.append(along(np.arange(first, first + size), dim, shape))
        self._stored[name] = Stored(name, tuple(at), shape)
        return self._stored[name]

    def elements(self, name: str) -> int:
        """Returns the number of elements of a stored tensor as a whole."""
        return int(np.prod(self._stored[name].shape))

    def axis_of(self, node: int) -> tuple[str, int]:
        """Returns the tensor and axis on which a node lies."""
        name, dim, _, _ = self.axes[int(np.searchsorted(self._starts, node, side="right")) - 1]
        return name, dim

    def claim(self, nodes: IntArray, role: Role, *, producer: bool = False) -> None:
        """Records the use of an axis; a producing role outweighs the others."""
        key = self.axis_of(int(nodes[0]))
        known = self.roles.get(key)
        if known is None or _STRENGTH.index(role) < _STRENGTH.index(known):
            self.roles[key] = role
        if producer:
            self.producers.setdefault(key)

    def find(self, labels: IntArray) -> IntArray:
        """Returns the representative of each label's class."""
        root = self._parent[labels]
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                break
            root = above
        self._parent[labels] = root
        return root

    @contextmanager
    def only_ties(self, where: str) -> Iterator[None]:
        """Lets a further walk tie and freeze channels, and record nothing else. where: the end of its reasons."""
        recorded = (list(self.ops), {k: list(v) for k, v in self.uses.items()}, dict(self.producers))
        rectified, frozen = list(self.rectified), len(self.frozen)
        try:
            yield
        finally:
            self.ops, self.uses, self.producers = recorded
            self.rectified = rectified
            self.frozen[frozen:] = [(nodes, f"{reason} {where}") for nodes, reason in self.frozen[frozen:]]

    def roots(self) -> IntArray:
        """Returns the representative of every node's class, by number of the node."""
        return self.find(np.arange(len(self._parent)))

    def unite(self, left: IntArray, right: IntArray) -> None:
        """Puts labels that meet at the same place into one class; both non-zero, shapes broadcast."""
        left, right = np.broadcast_arrays(left, right)
        a, b = left.reshape(-1), right.reshape(-1)
        while True:
            a, b = self.find(a), self.find(b)
            apart = a != b
            if not apart.any():
                return
            a, b = a[apart], b[apart]
            # the larger root goes below the smaller: no cycles. Of several writes one wins; the loop does the rest
            self._parent[np.maximum(a, b)] = np.minimum(a, b)

    def freeze(self, labels: IntArray, reason: str) -> None:
        """Records that these labels can never go."""
        held = labels[labels != 0]
        if held.size:
            self.frozen.append((held.reshape(-1), reason))

    def drop(self, labels: Labels, reason: str) -> Labels:
        """Freezes all labels of a tensor and returns it without any."""
        self.freeze(labels.data, reason)
        return blank(labels.shape)

    def canon(self, labels: Labels) -> Labels:
        """Returns the same tensor with every label replaced by its representative."""
        found = squash(self.find(labels.data), labels.shape)
        return Labels(found.data, found.shape, labels.uniform, labels.stretched)

    def tie(self, labels: Labels, axis: int) -> Labels:
        """Unites labels along an axis. Places without a label freeze those that they would be tied to."""
        if not labels.varies(axis):
            return labels
        moved = np.moveaxis(labels.data, axis, 0)
        flat = moved.reshape(moved.shape[0], -1)
        fixed = (flat == 0).any(axis=0)
        self.freeze(flat[:, fixed], "is tied to channels of fixed width")
        free = flat[:, ~fixed]
        self.unite(free[:1], free)
        return self.canon(labels)

    def tie_parts(self, labels: Labels, axis: int, parts: int) -> Labels:
        """Unites position p of each of `parts` equal parts of an axis."""
        if not labels.varies(axis):
            return labels
        data, size = labels.data, labels.shape[axis]
        split = data.reshape((*data.shape[:axis], parts, size // parts, *data.shape[axis + 1 :]))
        self.tie(squash(split, split.shape), axis)
        return self.canon(labels)

    def require_axes(self, labels: Labels, axes: Iterable[int], reason: str) -> Labels:
        """Returns the labels if they change along `axes` only; else freezes them all."""
        return labels if set(labels.varying()) <= set(axes) else self.drop(labels, reason)

    def join(self, nodes: IntArray, labels: IntArray, reason: str) -> None:
        """Unites nodes with the labels that they meet; a node that meets label 0 is frozen with the reason."""
        met = labels != 0
        self.unite(nodes[met], labels[met])
        self.freeze(nodes[~met], reason)

    def as_data(self, value: "Labels | Stored") -> Labels:
        """Returns a stored tensor that flows through the network like an activation; its width is frozen."""
        if isinstance(value, Labels):
            return value
        for at in value.at:
            self.freeze(at.data, f"{value.name} is used as data")
        return blank(value.shape)

    def meet(self, left: "Labels | Stored", right: "Labels | Stored") -> "Labels | Stored":
        """Does an element-wise operation of two tensors: labels at the same place unite."""
        if isinstance(left, Stored) and isinstance(right, Stored):
            return self._meet_stored(left, right)
        if isinstance(left, Stored):
            assert isinstance(right, Labels)
            return self._meet_one_stored(right, left)
        if isinstance(right, Stored):
            return self._meet_one_stored(left, right)
        return self.meet_labels(left, right)

    def meet_labels(self, left: Labels, right: Labels) -> Labels:
        """Does `meet` for two activations."""
        shape = np.broadcast_shapes(left.shape, right.shape)
        if left.uniform or right.uniform:  # one number everywhere takes any width
            kept = lift(self.canon(right if left.uniform else left), len(shape))
            grown = frozenset(
                len(shape) - i for i, (n, m) in enumerate(zip(kept.shape, shape, strict=True)) if n == 1 != m
            )
            return Labels(kept.data, shape, left.uniform and right.uniform, kept.stretched | grown)
        a, b = (self.canon(lift(x, len(shape))) for x in (left, right))
        spread_a = any(b.varies(i) and not a.varies(i) for i in range(len(shape)))
        spread_b = any(a.varies(i) and not b.varies(i) for i in range(len(shape)))
        if (
            spread_a and spread_b and a.labelled() and b.labelled()
        ):  # an outer product: the wider one stays free
            narrow_a = len(np.unique(a.data)) < len(np.unique(b.data))
            spread_a, spread_b = narrow_a, not narrow_a
        if spread_a and a.labelled():
            a = self.drop(a, "is broadcast over other channels")
        if spread_b and b.labelled():
            b = self.drop(b, "is broadcast over other channels")
        x, y = np.broadcast_arrays(a.data, b.data)
        both = (x != 0) & (y != 0)
        self.unite(x[both], y[both])
        fixed = [{i for i, n in enumerate(v.shape) if n != 1} for v in (a, b)]
        for axes, given in zip(fixed, (left, right), strict=True):
            axes -= {len(shape) - back for back in given.stretched}
        for one, axes, mine, theirs in ((a, fixed[1], x, y), (b, fixed[0], y, x)):
            if axes & set(one.varying()):
                self.freeze(
                    mine[theirs == 0], "meets channels of fixed width (model input, padding or a constant)"
                )
        return squash(np.where(x != 0, x, y), shape)

    def _meet_one_stored(self, labels: Labels, stored: Stored) -> "Labels | Stored":
        shape = np.broadcast_shapes(labels.shape, stored.shape)
        single = not labels.labelled() and all(n == 1 for n in labels.shape)
        if (single or labels.uniform) and shape == stored.shape:
            return stored  # a scalar changes values, not places
        if not labels.varying():
            made = self._spread_over(labels, stored, shape)
            return self.meet_labels(labels, self.as_data(stored)) if made is None else made
        held = lift(labels, len(shape))
        aligned = False
        for at in stored.at:
            nodes = lift(at, len(shape))
            if not set(nodes.varying()) & set(held.varying()):
                continue
            x, y = np.broadcast_arrays(nodes.data, self.canon(held).data)
            pairs = np.unique(np.stack([x.reshape(-1), y.reshape(-1)]), axis=1)
            if len(np.unique(pairs[0])) == pairs.shape[1]:  # the position decides the channel
                self.join(pairs[0], pairs[1], f"{stored.name} meets channels of fixed width")
                self.claim(pairs[0], "other")
                aligned = True
        whole = lift(blank(stored.shape), len(shape))
        if not aligned and any(whole.shape[i] != 1 for i in held.varying()):
            self.as_data(stored)
            self.freeze(held.data, f"meets {stored.name} in a layout that cannot be cut")
        return Labels(held.data, shape)

    def _spread_over(self, labels: Labels, stored: Stored, shape: Shape) -> Labels | None:
        """Returns a tensor whose channels a stored one makes: along an axis where the other one has a single entry.

        None where it makes none, or several.
        """
        single = [i for i, n in enumerate(lift(labels, len(shape)).shape) if n == 1 != shape[i]]
        if labels.labelled() or len(single) != 1:
            return None
        made = [at for at in stored.at if lift(at, len(shape)).varying() == (single[0],)]
        if len(made) != 1:
            return None
        for at in stored.at:
            if at is not made[0]:
                self.freeze(at.data, f"{stored.name} meets channels of fixed width")
        nodes = made[0].data.reshape(-1)
        self.claim(nodes, "out", producer=True)
        return along(nodes, single[0], shape)

    def _meet_stored(self, left: Stored, right: Stored) -> Stored:
        rank = max(len(left.shape), len(right.shape))
        small, large = sorted((left, right), key=self._standing)
        met: set[int] = set()
        for own, a in enumerate(small.at):
            x = lift(a, rank)
            if not x.varying():
                continue
            # the same axis first: rearranged axes of one tensor may vary along the same axis
            for d in sorted(range(len(large.at)), key=lambda d: d != own):
                y = lift(large.at[d], rank)
                if d not in met and x.varying() == y.varying():
                    self.unite(x.data, y.data)
                    self.claim(x.data.reshape(-1), "other")
                    met.add(d)
                    break
            else:
                self.freeze(a.data, f"{small.name} meets {large.name} in a layout that cannot be cut")
        shape = np.broadcast_shapes(left.shape, right.shape)
        return Stored(
            large.name, tuple(Labels(lift(a, len(shape)).data, shape) for a in large.at), tuple(shape)
        )

    def _standing(self, stored: Stored) -> tuple[int, int, int, bool]:
        """Returns what decides which of two tensors a product of both is named after: the weight, not its scale."""
        sizes = [size for name, _, _, size in self.axes if name == stored.name]
        elements = int(np.prod(stored.shape))
        axes = sum(bool(at.varying()) for at in stored.at)
        return len(stored.shape), elements, axes, int(np.prod(sizes)) == elements

    def reduce_stored(self, stored: Stored, over: Iterable[int], keepdim: bool) -> Stored:
        """Returns a stored tensor reduced over axes: it forgets the nodes of these axes, and keeps the others."""
        gone = set(over)
        shape = tuple(1 if i in gone else n for i, n in enumerate(stored.shape))
        stay = [i for i in range(len(shape)) if keepdim or i not in gone]

        def reduced(at: Labels) -> Labels:
            lost = set(at.varying()) & gone
            if lost and set(at.varying()) - gone:
                self.freeze(at.data, f"{stored.name} is reduced in a layout that cannot be cut")
            data = np.zeros([1] * len(shape), np.int64) if lost else at.data
            return Labels(data.reshape([data.shape[i] for i in stay]), tuple(shape[i] for i in stay))

        return Stored(stored.name, tuple(map(reduced, stored.at)), tuple(shape[i] for i in stay))
