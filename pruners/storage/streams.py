"""One tensor of a network as its streams in the file, and back.

- the tensor's own name, "" below: floats, counts, and 32-bit values in dense form, as they are. A `float` part may be
  written from integers, since its size is known before its number type; a reader accepts floats only;
- `index`: indices, packed;
- `positions` (form mask) or `places` (n_of_m): the stored elements; all others are zero;
- `values`: these elements as floats; or, with fewer bits, `codes`: packed, or `huffman` if that is shorter.

The form mask stores the non-zeros, of which there may be fewer than `kept`; n_of_m fills a team with zeros. So zeros
lose their sign. All other values come back bit for bit, which packing checks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.layers import Part
from prunefront.pruners.storage import places, positions
from prunefront.pruners.storage.bits import pack_bits, unpack_bits
from prunefront.pruners.storage.huffman import code_lengths, read_huffman, write_huffman
from prunefront.pruners.storage.sizes import Counts, bits_below, huffman_bytes, is_raw, packed_bytes

FLOATS = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}
INTEGERS = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {**FLOATS, **INTEGERS}
"""Number types by the names that safetensors gives them."""

Stored = slice | Tensor
"""The stored elements of a flattened tensor: all, or int64 positions."""

QuantiserTensors = Mapping[str, Tensor]
"""A quantiser's tensors for one weight: `scale` and `offset`, if the layout has them."""


@dataclass(frozen=True, slots=True)
class Codec:
    """Conversion between the values of a quantised tensor and their codes.

    encode: a tensor of decoded values, its part and its quantiser tensors -> int64 codes of the same shape, in
    [0, 2^bits). Codes of zeros that a sparse form does not store are ignored. decode: the inverse, in the tensor's
    number type.
    """

    encode: Callable[[Tensor, Part, QuantiserTensors], Tensor]
    decode: Callable[[Tensor, Part, QuantiserTensors], Tensor]


@dataclass(frozen=True, slots=True)
class Slot:
    """Alternative streams of a tensor, of which the file must hold exactly one.

    dtypes: allowed number types, named as in safetensors. shape: shape of a raw tensor; otherwise (largest length,).
    """

    streams: tuple[str, ...]
    dtypes: tuple[str, ...]
    shape: tuple[int, ...]


def slots(part: Part) -> Sequence[Slot]:
    """Returns the slots that the file must fill for a part."""
    floats, integers = tuple(FLOATS.values()), tuple(INTEGERS.values())
    if is_raw(part):
        return [Slot(("",), integers if part.kind == "integer" else floats, part.shape)]
    if part.kind == "index":
        return [Slot(("index",), ("U8",), (packed_bytes(part.size, bits_below(part.below)),))]
    found = []
    if part.form == "mask":  # a bitmap and the byte that says so, or less
        found = [Slot(("positions",), ("U8",), (1 + packed_bytes(part.size, 1),))]
    elif part.form == "n_of_m":
        found = [Slot(("places",), ("U8",), (packed_bytes(part.kept, bits_below(part.team)),))]
    if part.bits == 32:
        return [*found, Slot(("values",), floats, (part.kept,))]
    return [*found, Slot(("codes", "huffman"), ("U8",), (packed_bytes(part.kept, part.bits),))]


def pack_tensor(
    tensor: Tensor, part: Part, codec: Codec, levels: QuantiserTensors, *, entropy: bool
) -> tuple[dict[str, Tensor], Counts]:
    """Returns the streams by name, and their counts. entropy: use Huffman codes if they are shorter.

    Raises PrunefrontError for a tensor that does not fit its part, or with values that no codes stand for.
    """
    _check(tensor, part)
    if is_raw(part):
        return {"": tensor.clone(memory_format=torch.contiguous_format)}, Counts(part.size)
    if part.kind == "index":
        index = _below(tensor.reshape(-1).numpy(), part.below)
        return {"index": torch.from_numpy(pack_bits(index, bits_below(part.below)))}, Counts(part.size)
    where, streams, counts = _find(tensor, part)
    if part.bits == 32:
        return {**streams, "values": tensor.reshape(-1)[where]}, counts
    codes = codec.encode(tensor, part, levels).reshape(-1)[where]
    stored = _below(codes.numpy(), 1 << part.bits)
    decoded = _from_codes(stored, where, part, codec, levels)
    if decoded.dtype != tensor.dtype or not torch.equal(decoded, tensor):
        raise PrunefrontError(
            f"no {part.bits}-bit codes stand for its values; quantise it before it is stored"
        )
    if entropy and stored.size:
        frequencies = np.bincount(stored, minlength=1 << part.bits)
        lengths = code_lengths(frequencies)
        coded = int(frequencies @ lengths)
        if huffman_bytes(part.bits, stored.size, coded) < packed_bytes(stored.size, part.bits):
            packed = write_huffman(stored, part.bits, lengths)
            return {**streams, "huffman": torch.from_numpy(packed)}, replace(counts, coded_bits=coded)
    return {**streams, "codes": torch.from_numpy(pack_bits(stored, part.bits))}, counts


def unpack_tensor(
    streams: Mapping[str, Tensor], part: Part, codec: Codec, levels: QuantiserTensors
) -> Tensor:
    """Returns the tensor of its streams. streams: one for each slot. Raises PrunefrontError for any other streams."""
    if is_raw(part):
        return streams[""]
    if part.kind == "index":
        index = unpack_bits(streams["index"].numpy(), bits_below(part.below), part.size).astype(np.int64)
        return torch.from_numpy(_below(index, part.below).reshape(part.shape))
    where = _located(streams, part)
    count = part.size if isinstance(where, slice) else where.numel()
    if part.bits == 32:
        values = streams["values"]
        if values.numel() != count:
            raise PrunefrontError(f"{values.numel()} values for {count} positions")
        return _scattered(values, where, part)
    if "huffman" in streams:
        stored = read_huffman(streams["huffman"].numpy(), part.bits, count)
    else:
        stored = unpack_bits(streams["codes"].numpy(), part.bits, count).astype(np.int64)
    return _from_codes(stored, where, part, codec, levels)


def _find(tensor: Tensor, part: Part) -> tuple[Stored, dict[str, Tensor], Counts]:
    """Returns the elements to store, the stream of their positions, and their counts."""
    if part.form == "dense":
        return slice(None), {}, Counts(part.size)
    nonzero = (tensor != 0).numpy()
    if part.form == "n_of_m":
        kept_places = places.choose_places(nonzero, part)
        stream = places.write_places(kept_places, part)
        where = torch.from_numpy(places.positions(kept_places, part))
        return where, {"places": torch.from_numpy(stream)}, Counts(part.kept)
    found = np.flatnonzero(nonzero)
    if found.size > part.kept:
        raise PrunefrontError(f"{found.size} of its values are not zero, where {part.kept} may be")
    counts = positions.count_gaps(found)
    stream = positions.write_positions(found, part.size, counts)
    return torch.from_numpy(found), {"positions": torch.from_numpy(stream)}, counts


def _located(streams: Mapping[str, Tensor], part: Part) -> Stored:
    if part.form == "dense":
        return slice(None)
    if part.form == "n_of_m":
        kept_places = places.read_places(streams["places"].numpy(), part)
        return torch.from_numpy(places.positions(kept_places, part))
    found = positions.read_positions(streams["positions"].numpy(), part.size)
    if found.size > part.kept:
        raise PrunefrontError(f"{found.size} positions, where {part.kept} may be")
    return torch.from_numpy(found)


def _from_codes(
    stored: NDArray[np.int64], where: Stored, part: Part, codec: Codec, levels: QuantiserTensors
) -> Tensor:
    codes = _scattered(torch.from_numpy(stored), where, part)
    values = codec.decode(codes, part, levels)
    return values if isinstance(where, slice) else _scattered(values.reshape(-1)[where], where, part)


def _scattered(stored: Tensor, where: Stored, part: Part) -> Tensor:
    full = torch.zeros(part.size, dtype=stored.dtype)
    full[where] = stored
    return full.reshape(part.shape)


def _below(codes: NDArray[np.int64], below: int) -> NDArray[np.int64]:
    """Returns the same codes. Raises PrunefrontError for a code that is not in [0, below)."""
    if codes.size and not (codes.min() >= 0 and codes.max() < below):
        raise PrunefrontError(
            f"integers from {codes.min()} to {codes.max()}, where 0 to {below - 1} are possible"
        )
    return codes


def _check(tensor: Tensor, part: Part) -> None:
    allowed = {"value": FLOATS, "float": DTYPES, "integer": INTEGERS, "index": (torch.int64,)}[part.kind]
    if tensor.dtype not in allowed or tuple(tensor.shape) != part.shape:
        raise PrunefrontError(
            f"{tensor.dtype} of shape {tuple(tensor.shape)}, where the layout has {part.kind} of shape {part.shape}"
        )
