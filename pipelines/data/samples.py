"""Samples in batches: one part of a data set as stages see it, whether it lies in memory or is read as a stream."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from prunefront.errors import PrunefrontError

Part = Literal["train", "calibration", "validation", "test"]
"""Name of a part. Calibration is the training part unless the data bring their own; the search never sees `test`."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The arguments of one forward: a network is called as `model(*args, **kwargs)`.

    Each is any structure (pytree) of tensors whose first axis counts samples; None and plain values are handed on.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def call(self, model: Callable[..., Any]) -> Any:
        """Returns what the network makes of the inputs."""
        return model(*self.args, **self.kwargs)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Inputs":
        """Returns the inputs with a function applied to each tensor."""
        return Inputs(map_tensors(function, self.args), map_tensors(function, dict(self.kwargs)))

    def tensors(self) -> list[Tensor]:
        """Returns the tensors, in the order of the arguments."""
        leaves = _pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Samples that go through the network together.

    targets: any structure of tensors whose first axis counts samples, or a list with one entry a sample; None where the
    data have no labels. count: number of samples.
    """

    inputs: Inputs
    targets: Any
    count: int

    def to(self, device: str | torch.device) -> "Batch":
        """Returns the batch with its tensors on a device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        return replace(self, inputs=self.inputs.map(moved), targets=map_tensors(moved, self.targets))


class Samples(Protocol):
    """One part of a data set.

    Picklable: every worker has its own copy. `Arrays` is the form for data in memory.
    """

    @property
    def count(self) -> int | None:
        """Number of samples in a pass; None where only a whole pass would tell."""
        ...

    def batches(
        self,
        size: int,
        *,
        rng: np.random.Generator | None = None,
        device: str | torch.device = "cpu",
        smallest: int = 1,
    ) -> Iterator[Batch]:
        """Yields every sample once, on a device.

        rng: shuffles and augments; None = in order and plain. Nothing else may decide on what is drawn: a generator in
        the same state gives the same batches, whatever the number of loader processes. A part that loads in other
        processes draws one number from it at the start of the pass, and seeds each sample by that number and the
        sample's index. smallest: least number of samples in the last batch; a smaller rest joins the batch before or is
        left out (batch norm cannot train on one sample).
        """
        ...

    def first(self, count: int) -> "Samples":
        """Returns the part's first samples in order; all of them where it has no more."""
        ...

    def fingerprint(self) -> str:
        """Returns a digest that changes when the samples do, for a study that is resumed."""
        ...


class DataSet(Protocol):
    """A data set with three or four parts. classes, input_shape: None where the data have none of their own."""

    @property
    def classes(self) -> int | None: ...

    @property
    def input_shape(self) -> tuple[int, ...] | None: ...

    def part(self, name: Part) -> Samples:
        """Returns a part. Raises PrunefrontError for one that it does not hold."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """A data set of any kind. test: None where this is what the search sees. calibration: None = the training part."""

    train: Samples
    validation: Samples
    test: Samples | None
    classes: int | None = None
    input_shape: tuple[int, ...] | None = None
    calibration: Samples | None = None

    def part(self, name: Part) -> Samples:
        """Returns a part. Raises PrunefrontError for one that it does not hold."""
        found: Samples | None = getattr(self, name)
        if found is None and name == "calibration":
            found = self.train
        if found is None:
            raise PrunefrontError("the search sees no test data: only the last stage of a study does")
        return found

    def for_search(self) -> "Parts":
        """Returns all but the test part."""
        return replace(self, test=None)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Returns a structure with a function applied to each of its tensors; other leaves stay."""
    return _pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, value)


def laid_out_inputs(inputs: Inputs, channels_last: bool) -> Inputs:
    """Returns the inputs, with the channels of batches of images last in memory where that is asked."""
    if not channels_last:
        return inputs
    return inputs.map(lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t)


def positional(model: Any, inputs: Inputs) -> Any:
    """Returns the inputs by place, as tracing and statistics take them: a tensor, or a tuple where there are several.

    Keyword arguments get the place that the network's `forward` gives them, with defaults in between. Raises
    PrunefrontError, one line, for arguments that `forward` does not take.
    """
    args = inputs.args
    if inputs.kwargs:
        try:
            bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
        except TypeError as error:
            raise PrunefrontError(f"the network's forward does not take the example input: {error}") from None
        names = [n for n in bound.signature.parameters if n in bound.arguments]
        last = names[-1]
        bound.apply_defaults()
        if bound.kwargs:
            raise PrunefrontError(
                f"the network's forward takes {', '.join(bound.kwargs)} by keyword alone; give it a place among its "
                "parameters"
            )
        args = bound.args[: list(bound.signature.parameters).index(last) + 1]
    return args[0] if len(args) == 1 and isinstance(args[0], Tensor) else tuple(args)


def example_of(samples: Samples, count: int) -> Inputs:
    """Returns the inputs of the part's first samples, plain, on the CPU; they repeat where there are fewer.

    Raises PrunefrontError where the part gives no batch.
    """
    batch = next(iter(samples.first(count).batches(count)), None)
    if batch is None:
        raise PrunefrontError("the data gave no sample to show to the network")
    rows = torch.arange(count) % batch.count
    return batch.inputs.map(lambda t: t[rows] if t.ndim else t)
