"""Outputs of the dense network, kept: what networks are compared with by a task without labels."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor
from torch.utils import _pytree

from prunefront.atomic import write_whole
from prunefront.errors import PrunefrontError
from prunefront.pipelines.data.samples import Inputs, Samples
from prunefront.reading import LARGEST_WEIGHTS, check_regular

MOST_BYTES = 256 << 20
"""Most bytes of outputs that are kept: every process of a machine may hold them."""

Place = tuple[int, int]
"""A batch of a part: its first sample, and its number of samples."""


@dataclass(frozen=True, slots=True, eq=False)
class DenseOutputs:
    """Outputs by batch: the tensors among the leaves of what the dense network returned, in their order.

    By batch, since outputs of padded samples have a length that follows from the whole batch.
    """

    batches: Mapping[Place, tuple[NDArray[np.generic], ...]]

    @classmethod
    def of(
        cls,
        parts: Iterable[Samples],
        call: Callable[[Inputs], Any],
        *,
        size: int,
        most: int = MOST_BYTES,
        device: str = "cpu",
    ) -> Self:
        """Returns the outputs on parts that begin alike, in batches of `size`; without those after `most` bytes."""
        held: dict[Place, tuple[NDArray[np.generic], ...]] = {}
        left = most
        for part in parts:
            start = 0
            for batch in part.batches(size, device=device):
                place = start, batch.count
                if place not in held:
                    arrays = _arrays(call(batch.inputs))
                    left -= sum(array.nbytes for array in arrays)
                    if left < 0:
                        return cls(held)
                    held[place] = arrays
                start += batch.count
        return cls(held)

    @property
    def samples(self) -> int:
        """Number of samples, from the first on, whose outputs are kept."""
        return max((start + count for start, count in self.batches), default=0)

    def beside(self, outputs: Any, start: int, count: int) -> Any | None:
        """Returns what the dense network made of a batch, in the form in which another network's outputs came.

        None where it is not kept, or those outputs hold another number of tensors.
        """
        arrays = self.batches.get((start, count))
        leaves, spec = _pytree.tree_flatten(outputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if arrays is None or len(arrays) != len(tensors):
            return None
        # copied: what Ray's object store returns is read-only, which torch must not be handed
        rest = iter([torch.from_numpy(a.copy()).to(t.device) for a, t in zip(arrays, tensors, strict=True)])
        return _pytree.tree_unflatten(
            [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec
        )

    def write(self, file: Path, of: Mapping[str, str]) -> None:
        """Writes a safetensors file in one go. of: digests of what the outputs follow from."""
        flat = {f"{a}:{n}/{i}": v for (a, n), arrays in self.batches.items() for i, v in enumerate(arrays)}
        content = save(flat, {**of, "content": _digest(flat)})
        write_whole(file, lambda out: out.write(content))

    @classmethod
    def read(cls, file: Path, of: Mapping[str, str]) -> Self:
        """Reads what `write` wrote. Raises PrunefrontError with a reason for a damaged file and one of another `of`."""
        try:
            check_regular(file, limit=LARGEST_WEIGHTS)
            with safe_open(file, "np") as opened:
                known = opened.metadata() or {}
                flat = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise PrunefrontError(f"no outputs of a network can be read: {error!s:.120}") from None
        for name, digest in {**of, "content": _digest(flat)}.items():
            if known.get(name) != digest:
                raise PrunefrontError(
                    f"its digest of {name} is {known.get(name, 'missing'):.12}, not {digest:.12}"
                )
        held: dict[Place, dict[int, NDArray[np.generic]]] = {}
        try:
            for name, array in flat.items():
                place, _, leaf = name.partition("/")
                start, count = map(int, place.split(":"))
                if not array.ndim or len(array) != count:
                    raise ValueError(f"{name} has {array.shape[:1]} rows")
                held.setdefault((start, count), {})[int(leaf)] = array
            return cls(
                {p: tuple(leaves[i] for i in range(len(leaves))) for p, leaves in sorted(held.items())}
            )
        except (ValueError, KeyError) as error:
            raise PrunefrontError(f"an entry is none of a batch: {error!s:.120}") from None


def _arrays(outputs: Any) -> tuple[NDArray[np.generic], ...]:
    leaves: Sequence[Any] = _pytree.tree_leaves(outputs)
    tensors = [leaf.detach().cpu() for leaf in leaves if isinstance(leaf, Tensor)]
    return tuple((t.float() if t.is_floating_point() else t).contiguous().numpy() for t in tensors)


def _digest(flat: Mapping[str, NDArray[np.generic]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(flat):
        digest.update(f"{name} {flat[name].dtype} {flat[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(flat[name]).data)
    return digest.hexdigest()
