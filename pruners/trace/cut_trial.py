"""Trial of cuts on numbers: the cut network and the masked one run on an example, and their outputs are compared."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from prunefront.choice import GroupChoice
from prunefront.errors import NotTraceable
from prunefront.pruners.cut import surgery
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup
from prunefront.pruners.graph.pruning_plan import GroupPlan, PruningPlan
from prunefront.pruners.graph.shapes import changed_attributes, shapes
from prunefront.pruners.trace.arguments import Inputs, tensors_of
from prunefront.pruners.trace.compare import FIRST_LOOK, FLOAT32, FLOAT64, NARROW, Bounds, compare
from prunefront.pruners.trace.held import Held, Record, WidthError, own_chance
from prunefront.pruners.units.attention import spell
from prunefront.pruners.units.eval_mode import train_but_norms
from prunefront.text import first_line

FEW, HALF = 0, 1
"""Cuts that are tried: one unit of every group, and about half of them."""

FIXED = "forward fixes its size: "
"""Beginning of the reason where a cut network does not run, or gives tensors of other shapes."""

Drops = Mapping[str, Sequence[Sequence[int]]]
"""group -> units that go in each of these cuts, the first one's among those of the second."""


def plan_of(graph: ChannelGraph, groups: Sequence[ChannelGroup], drops: Drops, size: int) -> PruningPlan:
    """Returns the plan of cut number `size` of some groups; all others stay dense."""
    names = {g.name for g in groups}
    plans = []
    for g in graph.groups:
        gone = set(drops[g.name][size]) if g.name in names else set()
        kept = tuple(u for u in range(g.units) if u not in gone)
        plans.append(GroupPlan(g.name, GroupChoice("none"), g.units, kept, 0.0))
    return PruningPlan(tuple(plans))


def over_channels(graph: ChannelGraph, groups: Sequence[ChannelGroup], replayed: Sequence[str]) -> str | None:
    """Returns the objection to a norm, or to attention, whose width changed though all of the groups are exact."""
    if not replayed or any(g.name in graph.inexact for g in groups):
        return None
    return f"forward computes with its size: {replayed[0]} runs over its channels"


Look = tuple[torch.dtype | None, Bounds]
"""Precision of a look, None for the network's own number types, and what counts as rounding in it."""


class Trial:
    """A network on which cuts are tried, in eval or in training mode.

    It is looked at in float32 first; float64 decides where the outputs differ by more than rounding there. A network
    that insists on its own number types is looked at in these alone. Raises NotTraceable if it does not run at all.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        example: Inputs,
        drops: Drops,
        *,
        training: bool = False,
        seed: int = 0,
    ) -> None:
        self.model, self.graph, self.example, self.drops = model, graph, example, drops
        self.training, self.seed = training, seed
        # masks the readers of a channel, not its producers: the same where every reader is a weight
        reading = [replace(g, members=tuple(m for m in g.members if m.role == "in")) for g in graph.groups]
        self._unread = replace(graph, groups=tuple(reading))
        self._base: tuple[torch.dtype | None, dict[str, set[int]], nn.Module] | None = None
        self._other: dict[torch.dtype | None, tuple[list[Tensor], Record]] = {}
        self._cut: tuple[PruningPlan, nn.Module] | None = None
        self._errors: dict[torch.dtype | None, str] = {}

    def failure(self, groups: Sequence[ChannelGroup], sizes: Sequence[int] = (FEW, HALF)) -> str | None:
        """Returns why these groups cannot be cut together; None if they can."""
        for size in sizes:
            why = self._look(groups, size, *self.first)
            if why is not None and self.last is not None:
                why = self._look(groups, size, *self.last)
            if why is not None:
                return why
        return None

    def go_on(self, example: Inputs) -> None:
        """Takes another example from now on, with the networks as they are."""
        self.example = example

    def close(self) -> None:
        """Gives up the copies of the network."""
        self._base = self._cut = None

    def drawn(self) -> tuple[str, ...]:
        """Returns the names of the operators that draw random numbers in the dense network."""
        return tuple(self._other[self.first[0]][1].drawn)

    @cached_property
    def first(self) -> "Look":
        """The first look: float32 where the network takes it."""
        kinds = {
            t.dtype
            for t in (*self.model.state_dict().values(), *_pytree.tree_leaves(self.example))
            if isinstance(t, Tensor) and t.is_floating_point()
        }
        double = torch.float64 in kinds
        if not double and self._runs(torch.float32):
            return torch.float32, FIRST_LOOK
        if self._runs(torch.float64):
            return torch.float64, FLOAT64
        if not self._runs(None):
            mode = "training" if self.training else "eval"
            raise NotTraceable(
                f"{type(self.model).__name__} cannot run on the example in {mode} mode: {self._errors[None]}. "
                "Give an example input that fits"
            )
        return None, NARROW if kinds & {torch.float16, torch.bfloat16} else FLOAT32

    @cached_property
    def last(self) -> "Look | None":
        """The look that decides where the first one leaves a doubt; None where that decides by itself."""
        if self.first != (torch.float32, FIRST_LOOK):
            return None
        return (torch.float64, FLOAT64) if self._runs(torch.float64) else (torch.float32, FLOAT32)

    def _runs(self, precision: torch.dtype | None) -> bool:
        """Says whether the dense network runs in a precision. None: the network's own.

        It runs with other weights, so that the places of its outputs that are no constants are known.
        """
        if precision in self._other:
            return True
        try:
            network = self._fresh(precision, {})
            self._other[precision] = self._run(network, precision)[:2]
            _rescale(network, self.seed)
        except Exception as error:  # a forward with hard-coded number types may raise anything  # noqa: BLE001
            self._errors[precision] = first_line(error)
            self._base = None
            return False
        return True

    def _fresh(self, precision: torch.dtype | None, gone: dict[str, set[int]]) -> nn.Module:
        """Returns a copy of the model whose masked units are all among `gone`, to be masked further."""
        if self._base is not None:
            kind, masked, network = self._base
            if kind == precision and all(u <= gone.get(g, set()) for g, u in masked.items()):
                self._base = (precision, gone, network)
                return network
        self._base = self._cut = None  # the old copy goes before the new one comes
        network = surgery.rebuilt(self.model, {}, lambda _, tensor: _as(tensor, precision))
        spell(network)  # as the cut one is: their statistics are compared one by one
        network.eval()
        if self.training:
            train_but_norms(network)
        _perturb(network, self.seed)
        self._base = (precision, gone, network)
        return network

    def _look(
        self, groups: Sequence[ChannelGroup], size: int, precision: torch.dtype | None, bounds: Bounds
    ) -> str | None:
        plan = plan_of(self.graph, groups, self.drops, size)
        gone = {g.name: set(self.drops[g.name][size]) for g in groups}
        masked = self._fresh(precision, gone)
        going = surgery.removed_positions(self.graph, plan)
        hollow = (
            size == FEW
        )  # the cut network is as large as the masked one, so each tensor goes from one to the other
        cut = _hollow(masked, self.graph, plan, going) if hollow else self._apply(masked, plan)
        surgery.mask_in_place(masked, going)
        true, record, _ = self._run(masked, precision)
        if not all(bool(t.isfinite().all()) for t in true):
            # a channel of zeros may be divided by, or its log taken
            self._base = None
            masked = self._fresh(precision, gone)
            cut = self._apply(masked, plan)
            surgery.mask_in_place(masked, surgery.removed_positions(self._unread, plan))
            true, record, _ = self._run(masked, precision)
            self._base = None  # what is masked in it is not what `gone` says
        elif hollow:
            _fill(cut, masked, going)
            self._base = None
        try:
            made, observed, replayed = self._run(cut, precision, record, self._kept(going))
        except WidthError as error:
            return f"forward computes with its size: {error}"
        except Exception as error:  # the user's forward may raise anything on the cut network  # noqa: BLE001
            return f"{FIXED}{first_line(error)}"
        if [t.shape for t in self._other[precision][0]] != [t.shape for t in true]:
            del self._other[precision]  # those on the first example
            self._base = None
            if not self._runs(precision):
                raise NotTraceable(f"{type(self.model).__name__} cannot run on the example")
        if (why := over_channels(self.graph, groups, replayed)) is not None:
            return why
        return self._judge((made, observed), (true, record), self._other[precision], bounds)

    def _kept(self, going: surgery.RemovedPositions) -> list[tuple[int, tuple[int, ...]]]:
        """Returns size and positions left of every axis that is cut, each once."""
        found = {
            (self.graph.shapes[name][axis], tuple(surgery.left_positions(self.graph, going, name, axis)))
            for name, axes in going.items()
            for axis in axes
        }
        return sorted(found)

    def _apply(self, network: nn.Module, plan: PruningPlan) -> nn.Module:
        """Returns the cut network, the one of the last look if that had the same plan and the same weights."""
        if self._cut is None or self._cut[0] != plan:
            self._cut = None  # the old one goes before the new one comes
            self._cut = plan, surgery.apply(network, self.graph, plan)
        return self._cut[1]

    def _judge(
        self,
        made: tuple[list[Tensor], Record],
        true: tuple[list[Tensor], Record],
        other: tuple[list[Tensor], Record],
        bounds: Bounds,
    ) -> str | None:
        if len(made[0]) != len(true[0]):
            return f"{FIXED}it gives {len(made[0])} tensors instead of {len(true[0])}"
        for one, two in zip(made[0], true[0], strict=True):
            if one.shape != two.shape:
                return f"{FIXED}an output becomes {tuple(one.shape)} instead of {tuple(two.shape)}"
            if two.numel() and bool(two.isnan().all()):
                return "cannot be checked: an output on the example is not a number; give another example"
        real = [i for i, t in enumerate(true[0]) if t.is_floating_point() or t.is_complex()]
        mine, right, rest = ([side[0][i] for i in real] for side in (made, true, other))
        verdict = compare(mine, right, rest, bounds)
        if verdict != "different" and (verdict == "unseen" or len(real) < len(true[0])):
            # the last numbers before they were rounded to indices or truth values
            before = [
                (m, t, o)
                for m, t, o in zip(*(reversed(side[1].rounded) for side in (made, true, other)), strict=False)
                if m.shape == t.shape == o.shape
            ]
            inner = compare(
                [m for m, _, _ in before], [t for _, t, _ in before], [o for *_, o in before], bounds
            )
            verdict = inner if inner != "unseen" else verdict
            whole = [i for i in range(len(true[0])) if i not in real]
            if any(not torch.equal(made[0][i], true[0][i]) for i in whole):
                verdict = "different"
        if verdict == "unseen":
            return "cannot be checked: no output on the example depends on the weights; give another example"
        if verdict == "different":
            return "forward computes with its size: the cut network differs from the masked one"
        return None

    def _run(
        self,
        network: nn.Module,
        precision: torch.dtype | None,
        earlier: Record | None = None,
        kept: Sequence[tuple[int, Sequence[int]]] = (),
    ) -> tuple[list[Tensor], Record, tuple[str, ...]]:
        inputs = _pytree.tree_map(
            lambda value: _as(value, precision), self.example
        )  # a forward may work in place
        held = Held(earlier, kept)
        with torch.no_grad(), own_chance(), held:
            outputs = inputs.call(network)
        return tensors_of(outputs), held.record, tuple(held.replayed)


def _hollow(
    network: nn.Module, graph: ChannelGraph, plan: PruningPlan, going: surgery.RemovedPositions
) -> nn.Module:
    """Returns the cut network with parameters of the right shapes that take no memory."""
    sizes = shapes(graph, plan)
    parameters = {id(p) for p in network.parameters()}
    stored = network.state_dict(keep_vars=True)

    def made(name: str, tensor: Tensor) -> Tensor:
        if id(stored[name]) in parameters:
            return tensor.new_empty(()).expand(sizes[name])
        return surgery.cut_tensor(going, name, tensor)

    cut = surgery.rebuilt(network, going, made)
    surgery.set_attributes(cut, changed_attributes(graph, sizes))
    return cut


def _fill(cut: nn.Module, network: nn.Module, going: surgery.RemovedPositions) -> None:
    """Moves the parameters of a network into a hollow one, *in place*: the network has none afterwards."""
    names, filled = surgery.first_names(network), cut.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in network.state_dict(keep_vars=True).items():
            if isinstance(tensor, nn.Parameter) and names[name] == name:
                filled[name].data = surgery.smaller(tensor.data, going.get(name, {}))
                tensor.data = tensor.data.new_empty(0)


def _as(value: Any, precision: torch.dtype | None) -> Any:
    """Returns a copy of a tensor, floating-point numbers in the given precision; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    if precision is not None and value.is_floating_point():
        return value.to(precision, copy=True)
    return value.clone()


def _perturb(network: nn.Module, seed: int) -> None:
    """Adds noise to scales, shifts, and weights that are all close to zero: errors would hide behind them."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            low, high = torch.aminmax(parameter)
            if parameter.dim() == 1 or max(-float(low), float(high)) <= 1e-3:
                noise = torch.randn(parameter.shape, generator=generator, device="cpu", dtype=torch.float32)
                parameter.add_(noise.to(parameter), alpha=0.1)


def _rescale(network: nn.Module, seed: int) -> nn.Module:
    """Scales every parameter by another number between 0.7 and 1.3, *in place*, and returns the network."""
    generator = torch.Generator("cpu").manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.mul_(0.7 + 0.6 * float(torch.rand((), generator=generator, device="cpu")))
    return network
