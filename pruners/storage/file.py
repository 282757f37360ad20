"""A state dict as one safetensors file in which codes and indices are really packed, and back.

A stream of a tensor is named `tensor#stream`; `pruners/storage/streams.py` says which there are.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.layers import Part
from prunefront.pruners.storage.layout import check_layout
from prunefront.pruners.storage.sizes import SEPARATOR, Counts
from prunefront.pruners.storage.streams import DTYPES, Codec, Levels, Slot, pack_tensor, slots, unpack_tensor

LEVELS = ("scale", "offset", "codebook")
"""Suffixes of the floats that a quantiser keeps for a tensor `weight`: `weight_scale` and so on, in the same state."""

Heads = Mapping[str, tuple[str, tuple[int, ...]]]
"""Number type, in the words of safetensors, and shape of each tensor of a file."""


def save(
    path: Path,
    state: Mapping[str, Tensor],
    layout: Mapping[str, Part],
    codec: Codec,
    *,
    entropy: bool = False,
) -> dict[str, Counts]:
    """Writes what `pack` makes, and returns its counts. Raises PrunefrontError as `pack` does."""
    tensors, counts = pack(state, layout, codec, entropy=entropy)
    save_file(tensors, path)
    return counts


def load(path: Path, layout: Mapping[str, Part], codec: Codec, *, limit: int) -> dict[str, Tensor]:
    """The state dict in a file that is not trusted, on the CPU, in the order of the layout.

    limit: elements that the layout may have in all. That and the file's header are checked before anything is
    allocated. Raises PrunefrontError for a file that `save` could not have written from such a layout.
    """
    check_layout(layout, limit)
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            _check_heads({n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}, layout)
            # what the file hands out lies in its mapped pages, which change or vanish with it
            tensors = {name: file.get_tensor(name).clone() for name in slices}
    except (SafetensorError, OSError) as error:
        raise PrunefrontError(f"{path} cannot be read as safetensors: {error}") from error
    return unpack(tensors, layout, codec, limit=limit)


def pack(
    state: Mapping[str, Tensor], layout: Mapping[str, Part], codec: Codec, *, entropy: bool = False
) -> tuple[dict[str, Tensor], dict[str, Counts]]:
    """The tensors of the file, and the counts of each part, which make `file_size` exact.

    entropy: Huffman-code the codes of each tensor for which that is shorter. Raises PrunefrontError for a state that
    is not as the layout says, or whose values are not those that their codes stand for.
    """
    check_layout(layout)
    if state.keys() != layout.keys():
        raise PrunefrontError(f"state and layout differ in {_few(state.keys() ^ layout.keys())}")
    state = {name: tensor.detach().cpu() for name, tensor in state.items()}
    tensors: dict[str, Tensor] = {}
    counts: dict[str, Counts] = {}
    for name, part in layout.items():
        with _naming(name):
            streams, counts[name] = pack_tensor(
                state[name], part, codec, _levels(name, state, layout), entropy=entropy
            )
        tensors |= {_stored(name, stream): packed for stream, packed in streams.items()}
    return tensors, counts


def unpack(
    tensors: Mapping[str, Tensor], layout: Mapping[str, Part], codec: Codec, *, limit: int
) -> dict[str, Tensor]:
    """The state dict back, in the order of the layout; raw tensors are not copied.

    limit: elements that the layout may have. Raises PrunefrontError for tensors that `pack` does not make of it.
    """
    check_layout(layout, limit)
    _check_heads({n: (DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for n, t in tensors.items()}, layout)
    state = {}
    for name, part in layout.items():
        names = {stream: _stored(name, stream) for slot in slots(part) for stream in slot.streams}
        streams = {stream: tensors[n] for stream, n in names.items() if n in tensors}
        with _naming(name):
            state[name] = unpack_tensor(streams, part, codec, _levels(name, tensors, layout))
    return state


def _stored(name: str, stream: str) -> str:
    return f"{name}{SEPARATOR}{stream}" if stream else name


def _levels(name: str, state: Mapping[str, Tensor], layout: Mapping[str, Part]) -> Levels:
    """state: whole or packed; floats have the same name in both."""
    names = {word: f"{name}_{word}" for word in LEVELS}
    return {word: state[n] for word, n in names.items() if n in layout and layout[n].kind == "float"}


def _check_heads(heads: Heads, layout: Mapping[str, Part]) -> None:
    """Raises PrunefrontError where names, number types or sizes are not those of a file of the layout."""
    unknown = set(heads)
    for name, part in layout.items():
        for slot in slots(part):
            names = {_stored(name, stream) for stream in slot.streams}
            found = sorted(names & heads.keys())
            if len(found) != 1:
                raise PrunefrontError(f"a file of this network holds one of {_few(names)}, not {len(found)}")
            _check_head(found[0], *heads[found[0]], slot)
            unknown.remove(found[0])
    if unknown:
        raise PrunefrontError(f"a file of this network does not hold {_few(unknown)}")


def _check_head(name: str, dtype: str, shape: tuple[int, ...], slot: Slot) -> None:
    fits = shape == slot.shape
    if slot.streams != ("",):
        fits = len(shape) == 1 and shape[0] <= slot.shape[0]
    if dtype not in slot.dtypes or not fits:
        raise PrunefrontError(
            f"{name!r} is {dtype} of shape {shape}, where a file of this network has {' or '.join(slot.dtypes)} "
            f"of shape {slot.shape}{'' if slot.streams == ('',) else ' or less'}"
        )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Says of an error which tensor it is about."""
    try:
        yield
    except PrunefrontError as error:
        raise PrunefrontError(f"tensor {name!r}: {error}") from error


def _few(names: Collection[str]) -> str:
    first = sorted(names)
    more = f" and {len(first) - 3} more" if len(first) > 3 else ""
    return ", ".join(repr(n) for n in first[:3]) + more
