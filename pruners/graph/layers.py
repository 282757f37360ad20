"""Single layers and stacks of blocks, which are pruned besides channels. Names and integers only, no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer, as a granularity within single layers sees it.

    name: name of its weight in the state dict. module: its path. shape: shape of the weight, [C_out, C_in / groups, kH,
    kW] or [out, in]. positions: output positions per sample, over all of its uses. groups: number of conv groups.
    stride: of the kernel, (1, 1) for a linear layer. bias: whether it has one. norm: path of the batch norm that is the
    only reader of its output, "" if there is none. reads, writes: whether its input or output is a stream that several
    layers write.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    positions: int
    groups: int = 1
    stride: tuple[int, int] = (1, 1)
    bias: bool = False
    norm: str = ""
    reads: bool = False
    writes: bool = False

    @property
    def kind(self) -> Literal["conv2d", "linear"]:
        return "conv2d" if len(self.shape) == 4 else "linear"

    @property
    def outputs(self) -> int:
        return self.shape[0]

    @property
    def inputs(self) -> int:
        """Input channels, of all conv groups together."""
        return self.shape[1] * self.groups

    @property
    def taps(self) -> int:
        """Kernel positions kH·kW; 1 for a linear layer."""
        return prod(self.shape[2:])

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample."""
        return self.size * self.positions

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        return {**data, "shape": list(self.shape), "stride": list(self.stride)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Layer":
        """Reads untrusted data. Raises TypeError or KeyError for anything that `to_json` does not make."""
        layer = cls(**{**data, "shape": tuple(data["shape"]), "stride": tuple(data["stride"])})
        numbers = (*layer.shape, *layer.stride, layer.positions, layer.groups)
        if not all(type(n) is int and n > 0 for n in numbers) or len(layer.shape) not in (2, 4):
            raise TypeError("sizes of a layer must be positive integers")
        if not all(isinstance(text, str) for text in (layer.name, layer.module, layer.norm)):
            raise TypeError("names of a layer must be text")
        return layer


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks of one residual stream, each of which can be dropped whole and leaves the identity.

    blocks: paths of the modules, in the order of the forward pass.
    """

    name: str
    blocks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a network as it is stored.

    shape: in memory. kind: `value` (takes the layer's bit width), `float` (stored as it is, whatever its number
    type), `integer` (counts such as a batch norm's, likewise) or `index` (integers in [0, below), packed into as few
    bits as those need). width: bytes of an element in memory. kept: number of values that are stored: all, or those
    that a sparse form leaves. form: `dense` stores all of them. `mask` stores the kept values and a bit for each
    position, or less. `n_of_m` stores the kept values of every `team` consecutive positions of `axis`, and their places
    in the team. bits: bit width of the values, 32 = float32. levels: name of the quantiser whose codes stand for
    values below 32 bits; its scale is a tensor of its own.
    """

    shape: tuple[int, ...]
    kind: Literal["value", "float", "integer", "index"] = "value"
    below: int = 0
    form: Literal["dense", "mask", "n_of_m"] = "dense"
    kept: int = -1
    team: int = 0
    axis: int = 1
    bits: int = 32
    levels: str = ""
    width: int = 4

    def __post_init__(self) -> None:
        if self.kept < 0:
            object.__setattr__(self, "kept", prod(self.shape))

    @property
    def size(self) -> int:
        """Number of elements in memory."""
        return prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Part":
        return cls(**{**data, "shape": tuple(data["shape"])})
