"""Layers with quantised inputs: module, calibration, and the parts that they add to a stored network."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.layers import Part
from prunefront.pruners.quantisers.fixed_point import least_squares_step, top_level
from prunefront.pruners.statistics import Batch
from prunefront.pruners.units.eval_mode import eval_mode

Kind = Literal["fixed_point", "dorefa", "xnor"]

INPUT_BITS: Mapping[str, range] = {"fixed_point": range(2, 17), "dorefa": range(1, 9), "xnor": range(1, 2)}
"""Input quantiser -> the bit widths that it takes."""

SAMPLE = 1 << 16
"""Number of values of a layer's input that its step is fitted to."""


def check_inputs(kind: str, bits: int) -> None:
    """Raises PrunefrontError for an unknown input quantiser, or a bit width that it does not take."""
    if kind not in INPUT_BITS:
        raise PrunefrontError(f"no input quantiser is called {kind!r}; known: {', '.join(INPUT_BITS)}")
    if bits not in (takes := INPUT_BITS[kind]):
        raise PrunefrontError(f"input quantiser {kind!r} takes {takes[0]} to {takes[-1]} bits, not {bits}")


def input_parts(kind: str) -> Mapping[str, Part]:
    """Returns the tensors that a `QuantisedInput` stores besides its layer, by their names there."""
    return {"scale": Part((), "float"), "signed": Part((), "float")} if kind == "fixed_point" else {}


class QuantisedInput(nn.Module):
    """A layer with a quantised input. The gradient goes straight through, within the range that the levels cover.

    `fixed_point`: 0 … 2^bits − 1 times the buffer `scale`, or −K … K times it with K = 2^(bits − 1) − 1 if the buffer
    `signed` is 1. Half way between two levels, the even one is taken. The input stays float until `calibrate_inputs` or
    a state dict gives a scale above 0.
    `dorefa`: 2^bits even levels of [0, 1] (1606.06160).
    `xnor`: signs, 0 counting as positive, and the layer's outputs times the mean size of the inputs that they see
    (1603.05279). For an nn.Linear, the mean is over all features; for an nn.Conv2d, over all channels of the conv group
    under the kernel, padding included.

    active: whether the input is quantised.
    """

    scale: Tensor
    signed: Tensor

    def __init__(self, layer: nn.Module, kind: Kind, bits: int) -> None:
        """layer: an nn.Conv2d or nn.Linear for `xnor`; any module of one input otherwise.

        Raises PrunefrontError if the kind does not fit the layer or the bit width.
        """
        check_inputs(kind, bits)
        if kind == "xnor" and not isinstance(layer, nn.Conv2d | nn.Linear):
            raise PrunefrontError(
                f"xnor inputs need an nn.Conv2d or nn.Linear, not {type(layer).__name__}; choose fixed_point"
            )
        super().__init__()
        self.layer, self.kind, self.bits = layer, kind, bits
        self.active = kind != "fixed_point"
        if kind == "fixed_point":
            device = next((p.device for p in layer.parameters()), None)
            self.register_buffer("scale", torch.zeros((), device=device))
            self.register_buffer("signed", torch.zeros((), device=device))
            self.register_load_state_dict_post_hook(_activate)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            through: Tensor = self.layer(x)
            return through
        if self.kind == "xnor":
            return _xnor(self.layer, x)
        if self.kind == "dorefa":
            out: Tensor = self.layer(_dorefa(x, self.bits))
        else:
            out = self.layer(_fixed_point(x, self.scale, self.signed, self.bits))
        return out

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, bits={self.bits}"


def calibrate_inputs(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Sets the scales of all `fixed_point` inputs, *in place*, from one pass over the batches.

    Each scale is the step of least squared error for a sample of the layer's inputs; the sample is the same each time.
    Levels are unsigned if no input at all is negative. No input is quantised during the pass. A model without such
    inputs returns at once and reads no batch. Raises PrunefrontError if there is no batch, or a layer sees no input.
    """
    inputs = {n: m for n, m in model.named_modules() if isinstance(m, QuantisedInput)}
    seen = {name: _Sample() for name, m in inputs.items() if m.kind == "fixed_point"}
    if not seen:
        return
    empty = True
    with _watched(model, inputs, seen), torch.no_grad():
        for data, _ in batches:
            model(*data) if isinstance(data, tuple) else model(data)
            empty = False
    if empty:
        raise PrunefrontError("inputs cannot be calibrated without a batch: give at least one")
    for name, sample in seen.items():
        if not len(sample.values):
            raise PrunefrontError(
                f"layer {name!r} sees no input in the calibration batches: keep it in float"
            )
        module = inputs[name]
        signed = sample.least < 0
        top = top_level(module.bits) if signed else (1 << module.bits) - 1
        step = least_squares_step(sample.values.abs()[None], top)
        module.scale.fill_(float(step) or 1.0)
        module.signed.fill_(float(signed))
        module.active = True


def _activate(module: QuantisedInput, _: object) -> None:
    module.active = bool(module.scale > 0)


class _Sample:
    """At most SAMPLE values, drawn evenly from all values that were added, and the least of all."""

    def __init__(self) -> None:
        self.values, self._keys, self.least = torch.empty(0), torch.empty(0), 0.0
        self._generator = torch.Generator().manual_seed(0)

    def add(self, x: Tensor) -> None:
        flat = x.detach().flatten()
        self.least = min(self.least, float(flat.min()))
        if len(flat) > SAMPLE:
            chosen = torch.randint(len(flat), (SAMPLE,), generator=self._generator)
            flat = flat[chosen.to(flat.device)]
        # those with the largest random keys stay, which is an even draw over the batches
        keys = torch.cat([self._keys, torch.rand(len(flat), generator=self._generator)])
        self._keys, stay = keys.topk(min(SAMPLE, len(keys)))
        self.values = torch.cat([self.values, flat.float().cpu()])[stay]


@contextmanager
def _watched(
    model: nn.Module, inputs: Mapping[str, QuantisedInput], seen: Mapping[str, _Sample]
) -> Iterator[None]:
    """Eval mode with all inputs in float. seen: receives the inputs of the named layers."""
    active = {module: module.active for module in inputs.values()}
    handles = [
        inputs[name].register_forward_pre_hook(lambda _, args, sample=sample: sample.add(args[0]))
        for name, sample in seen.items()
    ]
    for module in active:
        module.active = False
    try:
        with eval_mode(model):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, was in active.items():
            module.active = was


def _straight_through(quantised: Tensor, x: Tensor, inside: Tensor) -> Tensor:
    """Returns the quantised input, exactly; its gradient goes to x where x lies inside."""
    return quantised.detach() + (x - x.detach()) * inside if x.requires_grad else quantised


def _fixed_point(x: Tensor, scale: Tensor, signed: Tensor, bits: int) -> Tensor:
    # no branch on `signed`, so that one graph serves both
    half, top = top_level(bits), (1 << bits) - 1
    low, high = -half * signed, top - (top - half) * signed
    quantised = (x / scale).round().clamp(low, high) * scale
    return _straight_through(quantised, x, (x >= low * scale) & (x <= high * scale))


def _dorefa(x: Tensor, bits: int) -> Tensor:
    top = (1 << bits) - 1
    return _straight_through((x.clamp(0.0, 1.0) * top).round() / top, x, (x >= 0) & (x <= 1))


def _xnor(layer: nn.Module, x: Tensor) -> Tensor:
    signs = _straight_through(torch.where(x >= 0, 1.0, -1.0).to(x.dtype), x, x.abs() < 1)
    out: Tensor
    if isinstance(layer, nn.Linear):
        out = F.linear(signs, layer.weight) * x.abs().mean(-1, keepdim=True)
        return out if layer.bias is None else out + layer.bias
    assert isinstance(layer, nn.Conv2d)
    size = x.abs().reshape(-1, layer.groups, x.shape[1] // layer.groups, *x.shape[2:]).mean(2)
    taps = layer.weight.shape[2] * layer.weight.shape[3]
    box = x.new_full((layer.groups, 1, *layer.weight.shape[2:]), 1 / taps)
    factor: Tensor = layer._conv_forward(size, box, None)
    if layer.groups > 1:
        factor = factor.repeat_interleave(layer.out_channels // layer.groups, dim=1)
    out = layer._conv_forward(signs, layer.weight, None) * factor
    return out if layer.bias is None else out + layer.bias[:, None, None]
