"""A state dict as one safetensors file with packed codes and indices, and back.

A stream of a tensor is named `tensor#stream`; `pruners/storage/streams.py` lists the streams.
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
from prunefront.pruners.storage.streams import (
    DTYPES,
    Codec,
    QuantiserTensors,
    Slot,
    pack_tensor,
    slots,
    unpack_tensor,
)
from prunefront.reading import check_regular

QUANTISER_SUFFIXES = ("scale", "offset")
"""Suffixes of the floats that a quantiser stores for a tensor `weight`: `weight_scale` and so on, in the same state."""

Headers = Mapping[str, tuple[str, tuple[int, ...]]]
"""Number type, named as in safetensors, and shape of each tensor of a file."""


def save(
    path: Path,
    state: Mapping[str, Tensor],
    layout: Mapping[str, Part],
    codec: Codec,
    *,
    entropy: bool = False,
) -> dict[str, Counts]:
    """Writes the tensors of `pack`, and returns its counts. Raises as `pack`."""
    tensors, counts = pack(state, layout, codec, entropy=entropy)
    save_file(tensors, path)
    return counts


def load(path: Path, layout: Mapping[str, Part], codec: Codec, *, limit: int) -> dict[str, Tensor]:
    """Reads the state dict of an untrusted file, on the CPU, in the order of the layout.

    limit: largest number of elements of the layout in all. The limit and the file's header are checked before anything
    is allocated. Raises PrunefrontError for a file that `save` could not have written from such a layout.
    """
    check_layout(layout, limit)
    try:
        check_regular(path)
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            _check_headers({n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}, layout)
            # tensors of the file lie in its mapped pages, which change or vanish with it
            tensors = {name: file.get_tensor(name).clone() for name in slices}
    except (SafetensorError, OSError) as error:
        raise PrunefrontError(f"{path} cannot be read as safetensors: {error}") from error
    return unpack(tensors, layout, codec, limit=limit)


def pack(
    state: Mapping[str, Tensor], layout: Mapping[str, Part], codec: Codec, *, entropy: bool = False
) -> tuple[dict[str, Tensor], dict[str, Counts]]:
    """Returns the tensors of the file, and the counts of each part, which make `file_size` exact.

    entropy: Huffman-code the codes of each tensor for which that is shorter. Raises PrunefrontError for a state that
    does not fit the layout, or with values that no codes stand for.
    """
    check_layout(layout)
    if state.keys() != layout.keys():
        raise PrunefrontError(f"state and layout differ in {_some_names(state.keys() ^ layout.keys())}")
    state = {name: tensor.detach().cpu() for name, tensor in state.items()}
    tensors: dict[str, Tensor] = {}
    counts: dict[str, Counts] = {}
    for name, part in layout.items():
        with _with_name(name):
            streams, counts[name] = pack_tensor(
                state[name], part, codec, _quantiser_tensors(name, state, layout), entropy=entropy
            )
        tensors |= {_stream_name(name, stream): packed for stream, packed in streams.items()}
    return tensors, counts


def unpack(
    tensors: Mapping[str, Tensor], layout: Mapping[str, Part], codec: Codec, *, limit: int
) -> dict[str, Tensor]:
    """Returns the state dict of packed tensors, in the order of the layout; raw tensors are not copied.

    limit: largest number of elements of the layout. Raises PrunefrontError for tensors that `pack` does not make of it.
    """
    check_layout(layout, limit)
    _check_headers(
        {n: (DTYPES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for n, t in tensors.items()}, layout
    )
    state = {}
    for name, part in layout.items():
        names = {stream: _stream_name(name, stream) for slot in slots(part) for stream in slot.streams}
        streams = {stream: tensors[n] for stream, n in names.items() if n in tensors}
        with _with_name(name):
            state[name] = unpack_tensor(streams, part, codec, _quantiser_tensors(name, tensors, layout))
    return state


def _stream_name(name: str, stream: str) -> str:
    return f"{name}{SEPARATOR}{stream}" if stream else name


def _quantiser_tensors(
    name: str, state: Mapping[str, Tensor], layout: Mapping[str, Part]
) -> QuantiserTensors:
    """Returns a tensor's quantiser tensors by suffix. state: whole or packed; floats have the same name in both."""
    names = {suffix: f"{name}_{suffix}" for suffix in QUANTISER_SUFFIXES}
    return {suffix: state[n] for suffix, n in names.items() if n in layout and layout[n].kind == "float"}


def _check_headers(headers: Headers, layout: Mapping[str, Part]) -> None:
    """Raises PrunefrontError for names, number types or sizes that a file of the layout does not have."""
    unknown = set(headers)
    for name, part in layout.items():
        for slot in slots(part):
            names = {_stream_name(name, stream) for stream in slot.streams}
            found = sorted(names & headers.keys())
            if len(found) != 1:
                raise PrunefrontError(
                    f"a file of this network holds one of {_some_names(names)}, not {len(found)}"
                )
            _check_header(found[0], *headers[found[0]], slot)
            unknown.remove(found[0])
    if unknown:
        raise PrunefrontError(f"a file of this network does not hold {_some_names(unknown)}")


def _check_header(name: str, dtype: str, shape: tuple[int, ...], slot: Slot) -> None:
    fits = shape == slot.shape
    if slot.streams != ("",):
        fits = len(shape) == 1 and shape[0] <= slot.shape[0]
    if dtype not in slot.dtypes or not fits:
        raise PrunefrontError(
            f"{name!r} is {dtype} of shape {shape}, where a file of this network has {' or '.join(slot.dtypes)} "
            f"of shape {slot.shape}{'' if slot.streams == ('',) else ' or less'}"
        )


@contextmanager
def _with_name(name: str) -> Iterator[None]:
    """Puts the name of the tensor into an error."""
    try:
        yield
    except PrunefrontError as error:
        raise PrunefrontError(f"tensor {name!r}: {error}") from error


def _some_names(names: Collection[str]) -> str:
    first = sorted(names)
    more = f" and {len(first) - 3} more" if len(first) > 3 else ""
    return ", ".join(repr(n) for n in first[:3]) + more
