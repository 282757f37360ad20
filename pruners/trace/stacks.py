"""Search by trial for blocks that can go as a whole: with zero parameters, such a block passes its input on."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call
from torch.utils import _pytree

from prunefront.errors import NotTraceable
from prunefront.pruners.cut.blocks import block_tensors, zero_block
from prunefront.pruners.cut.surgery import deep_copy
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.layers import Stack
from prunefront.pruners.trace.arguments import Inputs, tensors_of
from prunefront.pruners.trace.held import Held, own_chance

_TOLERANCE = 1e-3
"""Largest difference between outputs that count as equal, as a share of the largest output.

Another memory layout may choose another kernel; a lost block makes a far larger difference.
"""


_NARROW = (torch.float16, torch.bfloat16)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _NARROW else tensor


def find_stacks(
    model: nn.Module,
    graph: ChannelGraph,
    example: Inputs,
    frozen: Sequence[str] = (),
    *,
    seed: int = 0,
) -> tuple[tuple[Stack, ...], dict[str, str]]:
    """Returns the stacks of blocks, and the reasons why other modules cannot go.

    A block is a submodule with a convolution or linear layer. It is called once, maps one tensor to one of the same
    shape, and gives exactly its input when all of its parameters are zero; of nested ones, the innermost counts. Blocks
    are of one stack where each reads the output of the one before. Reasons, which follow the path, are given for the
    outermost modules that hold no block and lie in none. Both results are in the order of the forward pass.

    The network runs with random signs and a little noise on its scales and shifts. So a block whose last scale is still
    zero has an effect, and an input has no negative numbers only behind a ReLU. Blocks are compared bit for bit: adding
    zero is exact in every number type.
    """
    paths = _candidates(model, graph)
    trial, names = _Trial(model, example, paths, seed), _names(model)
    why = {path: _why_not(path, passage, names, frozen) for path, passage in trial.passages.items()}
    accepted: list[str] = []
    for path in sorted(why, key=lambda path: -path.count(".")):
        if any(_inside(block, path) for block in accepted):
            del why[path]
        elif why[path] is None:
            why[path] = trial.why_not(path)
            if why[path] is None:
                accepted.append(path)
    why.update(trial.check(accepted))
    reasons = {path: reason for path, reason in why.items() if reason is not None}
    blocks = [path for path, reason in why.items() if reason is None]
    taken = {*graph.shapes, *(group.name for group in graph.groups)}
    unstacked = {
        path: reason
        for path, reason in reasons.items()
        if not any(_inside(path, other) for other in (*reasons, *blocks) if other != path)
    }
    return _name_stacks(_chain_blocks(blocks, trial.passages), taken), unstacked


def _candidates(model: nn.Module, graph: ChannelGraph) -> set[str]:
    """Returns the user's own modules and containers that hold a weight, the network itself left out."""
    found: set[str] = set()
    for op in graph.ops:
        owner, _, _ = op.weight.rpartition(".")
        if owner and not type(model.get_submodule(owner)).__module__.startswith("torch.nn."):
            found.add(owner)
        while owner := owner.rpartition(".")[0]:
            found.add(owner)
    return found


@dataclass(slots=True)
class _Passage:
    """Tensors that went through a module. x, y: copies of its only input and output tensor, of the first call."""

    calls: int = 0
    x: Tensor | None = None
    y: Tensor | None = None


def _why_not(
    path: str, passage: _Passage, names: Sequence[Sequence[str]], frozen: Sequence[str]
) -> str | None:
    """Returns the objection to a block before it is tried. names: all names of each tensor that has several."""
    for held in frozen:
        if _inside(path, held):
            return f"is inside {held}, which is frozen"
        if _inside(held, path):
            return f"holds {held}, which is frozen"
    if passage.calls > 1:
        return f"is called {passage.calls} times"
    if passage.x is None or passage.y is None:
        return "takes or gives something other than one tensor"
    if passage.x.shape != passage.y.shape or passage.x.dtype != passage.y.dtype:
        return "changes the shape of its input"
    for several in names:
        within = [name for name in several if _inside(name, path)]
        if 0 < len(within) < len(several):
            return f"shares {within[0]} with the rest of the network"
    return None


def _names(model: nn.Module) -> list[list[str]]:
    """Returns the names of each tensor that has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return [several for several in names.values() if len(several) > 1]


class _Trial:
    """A copy of the model on which blocks are tried one after the other."""

    def __init__(self, model: nn.Module, example: Inputs, paths: Collection[str], seed: int) -> None:
        self.example, self.model = example, _perturb(deep_copy(model, {}), seed)
        if any(p.dtype in _NARROW for p in model.parameters()):  # rounding hides much there
            wide = _pytree.tree_map_only(Tensor, _widened, example), deep_copy(self.model, {}).float()
            if _runs(*wide):
                self.example, self.model = wide
        self.passages = self._record(paths)

    def why_not(self, path: str) -> str | None:
        """Returns why a block is not the identity without its layers. Where it is: zeroes its tensors, returns None."""
        passage, block = self.passages[path], self.model.get_submodule(path)
        assert passage.x is not None
        assert passage.y is not None
        if _gives_constant(block):
            return "is not the identity without its layers"
        if torch.equal(passage.y, passage.x):
            return "gives its input as it is"
        zeros = {name: torch.zeros_like(tensor) for name, tensor in block_tensors(block).items()}
        try:
            with torch.no_grad(), own_chance(), Held():
                left = functional_call(block, zeros, (passage.x.clone(),))
        except Exception as error:  # the user's forward may raise anything  # noqa: BLE001
            return f"cannot be run by itself: {type(error).__name__}"
        if not (isinstance(left, Tensor) and _equal(left, passage.x)):
            return "is not the identity without its layers"
        zero_block(block)
        return None

    def check(self, blocks: Sequence[str]) -> dict[str, str]:
        """Returns path -> reason for blocks, all zero by now, that the network cannot go without.

        A call of such a block gives its input; what else the network does with it shows when the block is gone.
        """
        if not blocks:
            return {}
        for path in blocks:
            vars(self.model.get_submodule(path))["forward"] = _pass_on
        if self._goes_without(blocks, expected := self._run()):
            return {}
        held = [block for block in blocks if not self._goes_without([block], expected)]
        return dict.fromkeys(held, "is used by the rest of the network in other ways than being called")

    def _goes_without(self, blocks: Sequence[str], expected: list[Tensor]) -> bool:
        modules = {path: self.model.get_submodule(path) for path in blocks}
        for path in blocks:
            self.model.set_submodule(path, nn.Identity())
        try:
            made = self._run()
        except Exception:  # a user's forward that reaches into a block may raise anything  # noqa: BLE001
            return False
        finally:
            for path, module in modules.items():
                self.model.set_submodule(path, module)
        return len(made) == len(expected) and all(map(_close, made, expected))

    def _record(self, paths: Collection[str]) -> dict[str, _Passage]:
        """Returns the tensors that go through the modules, by path in the order of the first calls."""
        passages: dict[str, _Passage] = {}

        def before(path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            passage = passages.setdefault(path, _Passage())
            passage.calls += 1
            if passage.calls == 1 and len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
                passage.x = args[0].clone()

        def after(path: str, output: Any) -> None:
            if passages[path].calls == 1 and isinstance(output, Tensor):
                passages[path].y = output.clone()

        hooks = []
        for path in paths:
            module = self.model.get_submodule(path)
            hooks += [
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, path=path: before(path, args, kwargs), with_kwargs=True
                ),
                module.register_forward_hook(lambda _, args, output, path=path: after(path, output)),
            ]
        try:
            self._run()
        finally:
            for hook in hooks:
                hook.remove()
        return passages

    def _run(self) -> list[Tensor]:
        inputs = _pytree.tree_map_only(Tensor, torch.clone, self.example)  # a forward may work in place
        with torch.no_grad(), own_chance(), Held():
            outputs = tensors_of(inputs.call(self.model))
        if any(isinstance(t, FakeTensor) for t in outputs):
            raise NotTraceable(
                f"forward of {type(self.model).__name__} keeps a tensor outside of its modules, as functools.lru_cache "
                "does, and the export has put one without values there: run the network once on the example in a new "
                "process before it is traced"
            )
        return outputs


def _pass_on(x: Tensor) -> Tensor:
    return x


def _runs(example: Inputs, model: nn.Module) -> bool:
    """Says whether a model with other number types than its own runs on an example."""
    try:
        with torch.no_grad(), own_chance():
            _pytree.tree_map_only(Tensor, torch.clone, example).call(model)
    except Exception:  # a forward with hard-coded number types may raise anything  # noqa: BLE001
        return False
    return True


def _gives_constant(block: nn.Module) -> bool:
    """Says whether a block without its layers surely gives a constant: a plain chain through one needs no trial."""
    layers = (nn.modules.conv._ConvNd, nn.Linear)
    return type(block) is nn.Sequential and any(isinstance(child, layers) for child in block)


def _perturb(model: nn.Module, seed: int) -> nn.Module:
    """Puts random signs and noise on scales, shifts and zero weights; returns the module itself, in eval mode."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for parameter in model.parameters():
        value = parameter.detach()
        if value.dim() < 2 or _all_zero(value):
            noise = torch.randn(value.shape, generator=generator, device="cpu", dtype=torch.float32).to(value)
            value.mul_(noise.sign()).add_(noise, alpha=0.1)
    return model.eval()


def _all_zero(value: Tensor) -> bool:
    if value.is_floating_point() and value.numel():
        return not any(map(bool, torch.aminmax(value)))  # in a fifth of the time of any()
    return not bool(value.any())


def _close(made: Tensor, expected: Tensor) -> bool:
    """Says whether outputs are the same but for rounding."""
    if made.shape != expected.shape:
        return False
    left, right = made.double(), expected.double()
    finite = right[right.isfinite()]
    near = _TOLERANCE * float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(left, right, rtol=0.0, atol=near, equal_nan=True)


def _chain_blocks(blocks: Sequence[str], passages: Mapping[str, _Passage]) -> list[list[str]]:
    """Returns runs of blocks, each of which reads the output of the one before."""
    runs: list[list[str]] = []
    for block in blocks:
        x = passages[block].x
        before = next((run for run in reversed(runs) if _equal(passages[run[-1]].y, x)), None)
        if before is None:
            runs.append([block])
        else:
            before.append(block)
    return runs


def _equal(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None or left.device != right.device:
        return False
    return torch.equal(left, right)


def _name_stacks(runs: Sequence[Sequence[str]], taken: Collection[str]) -> tuple[Stack, ...]:
    """Returns stacks, each named after the module around its blocks; after its first block where others share it."""
    around = [_common_parent(run) for run in runs]
    return tuple(
        Stack(
            parent if parent and around.count(parent) == 1 and parent not in taken else f"{run[0]}:blocks",
            tuple(run),
        )
        for parent, run in zip(around, runs, strict=True)
    )


def _common_parent(paths: Sequence[str]) -> str:
    steps = zip(*(path.split(".")[:-1] for path in paths), strict=False)
    return ".".join(step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps))


def _inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")
