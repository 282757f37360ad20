"""Access to inputs and outputs of every conv, linear and matmul call, by the name of its weight."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prunefront.errors import PrunefrontError

CONVOLUTIONS = frozenset({torch.conv1d, torch.conv2d, torch.conv3d})
PRODUCTS = frozenset(
    {F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.Tensor.mm}
)
TRANSPOSED = frozenset({torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d})

_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "output_padding",
    "groups",
    "dilation",
)


@dataclass(frozen=True, slots=True)
class Product:
    """One call. name: of the weight in the state dict. x: the other operand. options: stride, padding … by name."""

    name: str
    x: Tensor
    weight: Tensor
    func: Any
    options: Mapping[str, Any]

    def inputs(self, images: int) -> Float[Tensor, "images positions space"]:
        """Returns x with the positions of the weight's consuming axis in the middle.

        In a grouped convolution weight[:, i] meets channel i of every conv group; these lie side by side in space.
        Raises PrunefrontError if the rows of x cannot be assigned to images.
        """
        width = self.x.shape[-1]
        if self.func in CONVOLUTIONS:
            width = self.weight.shape[1]
        elif self.func in TRANSPOSED:
            width = self.weight.shape[0]
        return self._arranged(self.x, width, images)

    def outputs(self, y: Tensor, images: int) -> Float[Tensor, "images positions space"]:
        """Returns y, the result of the call, with the weight's producing axis in the middle. Raises as `inputs`."""
        width = y.shape[-1]
        if self.func in CONVOLUTIONS:
            width = self.weight.shape[0]
        elif self.func in TRANSPOSED:
            width = self.weight.shape[1]
        return self._arranged(y, width, images)

    def _arranged(self, tensor: Tensor, width: int, images: int) -> Tensor:
        if tensor.ndim == 0 or len(tensor) % images:
            raise PrunefrontError(
                f"weight {self.name!r} sees {len(tensor) if tensor.ndim else 0} rows for {images} images, so they "
                "cannot be assigned to images; choose a criterion that does not need it"
            )
        if self.func in PRODUCTS:
            return tensor.reshape(images, -1, width).transpose(1, 2)
        calls = tensor.reshape(images, -1, tensor.shape[1] // width, width, *tensor.shape[2:]).flatten(4)
        return calls.movedim(3, 1).flatten(2)


OnInput = Callable[[Product], Tensor | None]
"""Callback before a product; a tensor that it returns replaces x."""

OnOutput = Callable[[Product, Tensor], Tensor | None]
"""Callback with the result of a product; a tensor that it returns replaces the result."""


def _memory(weight: Tensor) -> tuple[int, ...]:
    """Returns a key that is equal for a weight and its transpose, and differs for a part or another shape of it."""
    return (weight.data_ptr(), *sorted(weight.shape))


class Watch(TorchFunctionMode):
    """Context that calls back at every product with one of the given weights.

    weights: state-dict name -> the tensor that the network holds. Weights are recognised by their memory, which finds
    modules, functional calls, transposed views and weights used several times; hooks would see modules only.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        on_input: OnInput | None = None,
        on_output: OnOutput | None = None,
    ) -> None:
        super().__init__()
        self._names = {_memory(tensor): name for name, tensor in weights.items()}
        self._on_input = on_input
        self._on_output = on_output

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if not (func in PRODUCTS or func in CONVOLUTIONS or func in TRANSPOSED):
            return func(*args, **given)
        x = args[0] if args else given["input"]
        weight = (
            args[1] if len(args) > 1 else next(given[k] for k in ("weight", "other", "mat2") if k in given)
        )
        name = self._names.get(_memory(weight))
        if name is None:
            return func(*args, **given)
        names = _TRANSPOSED_ARGUMENTS if func in TRANSPOSED else _ARGUMENTS
        options = {**dict(zip(names[2:], args[2:], strict=False)), **given}
        product = Product(name, x, weight, func, options)
        if self._on_input is not None:
            other = self._on_input(product)
            if other is not None and args:
                args = (other, *args[1:])
            elif other is not None:
                given["input"] = other
        y = func(*args, **given)
        if self._on_output is not None:
            other = self._on_output(product, y)
            y = y if other is None else other
        return y


class Outputs:
    """Collects the outputs of watched products, so that gradients can be taken there.

    The network goes on with a copy, so that an operator in place does not change the collected outputs.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Product, Tensor]] = []

    def __call__(self, product: Product, y: Tensor) -> Tensor:
        if not y.requires_grad:
            y.requires_grad_()
        self.calls.append((product, y))
        return y.clone()

    def slopes(self, objective: Tensor) -> Sequence[Tensor | None]:
        """Returns ∂objective/∂y of each call, None for an independent y. It may be called repeatedly."""
        outputs = [y for _, y in self.calls]
        if not objective.requires_grad or not outputs:
            return [None] * len(outputs)
        return torch.autograd.grad(objective, outputs, retain_graph=True, allow_unused=True)
