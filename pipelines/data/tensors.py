"""Tensors in memory as samples: any inputs and targets, of one size each, without augmentation."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from prunefront.pipelines.data.samples import Batch, Inputs, map_tensors
from prunefront.pipelines.data.splits import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Tensors:
    """A part whose inputs and targets are tensors with one row a sample (`samples.Samples`).

    targets: any structure of tensors; None = no labels. Raises DataError where the numbers of rows differ.
    """

    inputs: Inputs
    targets: Any = None

    def __post_init__(self) -> None:
        counts = {len(t) for t in self._tensors()}
        if len(counts) != 1:
            raise DataError(f"inputs and targets must have one row a sample each, got {sorted(counts)} rows")

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self._tensors()[0])

    def batches(
        self,
        size: int,
        *,
        rng: np.random.Generator | None = None,
        device: str | torch.device = "cpu",
        smallest: int = 1,
    ) -> Iterator[Batch]:
        """Yields every sample once, shuffled by rng; a rest smaller than `smallest` joins the batch before."""
        order = torch.arange(self.count) if rng is None else torch.from_numpy(rng.permutation(self.count))
        starts = list(range(0, self.count, size))
        if len(starts) > 1 and self.count - starts[-1] < smallest:
            starts.pop()
        for start, end in zip(starts, [*starts[1:], self.count], strict=True):
            rows = order[start:end]
            yield self._taken(rows, device)

    def first(self, count: int) -> "Tensors":
        """Returns the first samples."""
        batch = self._taken(torch.arange(min(count, self.count)), "cpu")
        return Tensors(batch.inputs, batch.targets)

    def fingerprint(self) -> str:
        """Returns a digest of inputs and targets."""
        digest = blake2b(digest_size=16)
        for tensor in self._tensors():
            digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()

    def _tensors(self) -> list[Tensor]:
        leaves = _pytree.tree_leaves(self.targets)
        return [*self.inputs.tensors(), *(t for t in leaves if isinstance(t, Tensor))]

    def _taken(self, rows: Tensor, device: str | torch.device) -> Batch:
        def taken(tensor: Tensor) -> Tensor:
            return tensor[rows].to(device)

        return Batch(self.inputs.map(taken), map_tensors(taken, self.targets), len(rows))
