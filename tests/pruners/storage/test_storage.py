"""Stored networks: every stream there and back, its size to the byte, Huffman and k-means by oracle, hostile files."""

import heapq
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as serialised
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pruners.graph.layers import Part
from prunefront.pruners.storage import places, positions, sizes
from prunefront.pruners.storage.bits import pack_bits, unpack_bits
from prunefront.pruners.storage.file import load, pack, save, unpack
from prunefront.pruners.storage.huffman import canonical, code_lengths, read_huffman, write_huffman
from prunefront.pruners.storage.streams import Codec

LIMIT = 1 << 20


def middle(part: Part) -> int:
    """The code of zero."""
    return 1 << part.bits - 1


STEPS = Codec(
    encode=lambda w, part, levels: (w / levels["scale"]).round().long() + middle(part),
    decode=lambda codes, part, levels: (codes - middle(part)) * levels["scale"],
)
"""Multiples of a scale, as a quantiser would make them."""

Network = tuple[dict[str, Tensor], dict[str, Part]]

shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple) | st.sampled_from(
    [(0,), (3, 0), (1500,), (40, 70), (64, 9, 3, 3)]
)


@st.composite
def parts(draw: Any, rng: np.random.Generator) -> tuple[Part, Tensor]:
    """A part of any kind and form, and a tensor for it: often few distinct codes, or only zeros, or none."""
    shape, kind = draw(shapes), draw(st.sampled_from(["value"] * 5 + ["float", "integer", "index"]))
    size = prod(shape)
    if kind == "index":
        below = draw(st.integers(1, 20) | st.integers(1, 1 << 32))
        return Part(shape, "index", below), torch.from_numpy(rng.integers(0, below, shape))
    if kind == "integer":
        return Part(shape, "integer"), torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, shape))
    bits = draw(st.sampled_from([32, *range(1, 17)]))
    if kind == "float" or bits == 32:
        values = torch.from_numpy(rng.standard_normal(shape)).to(
            draw(st.sampled_from([torch.float32] * 3 + [torch.float64, torch.bfloat16]))
        )
    else:
        spread = draw(st.sampled_from([0.0, 0.5, 2.0, 2.0**bits]))
        codes = np.clip(np.rint(rng.normal(0, spread, shape)), -(1 << bits - 1), (1 << bits - 1) - 1)
        values = torch.from_numpy(np.asarray(codes)).float() * 0.25
    width = values.element_size()
    if kind == "float":
        return Part(shape, "float", width=width), values
    form = draw(st.sampled_from(["dense", "mask", "n_of_m"] if shape else ["dense", "mask"]))
    if form == "dense":
        return Part(shape, bits=bits, width=width), values
    if form == "mask":
        density = draw(st.sampled_from([0.0, 0.003, 0.03, 0.1, 0.3, 0.7, 1.0]))
        values = values * torch.from_numpy(np.asarray(rng.random(shape) < density))
        kept = int(values.count_nonzero()) + draw(st.integers(0, 2))
        return Part(shape, form="mask", kept=min(kept, size), bits=bits, width=width), values
    axis = draw(st.integers(0, len(shape) - 1))
    team = draw(st.sampled_from([t for t in range(1, 10) if shape[axis] % t == 0]))
    few = draw(st.integers(0, team))
    rank = rng.random((size // team, team)).argsort(1).reshape(*np.moveaxis(np.empty(shape), axis, -1).shape)
    values = values * torch.from_numpy(np.moveaxis(rank, -1, axis) < few)
    return Part(
        shape, form="n_of_m", kept=size // team * few, team=team, axis=axis, bits=bits, width=width
    ), values


@st.composite
def networks(draw: Any) -> Network:
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    state, layout = {}, {}
    for i in range(draw(st.integers(1, 3))):
        name = f"layer{i}.größe" if i == 2 else f"layer{i}.weight"
        layout[name], state[name] = draw(parts(rng))
        if layout[name].bits < 32:
            layout[f"{name}_scale"], state[f"{name}_scale"] = Part((), "float"), torch.tensor(0.25)
    return state, layout


def same(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(state) == list(other) and all(
        t.dtype == other[n].dtype and torch.equal(t, other[n]) for n, t in state.items()
    )


# --- there and back, to the byte


@given(network=networks(), entropy=st.booleans())
def test_a_file_holds_the_network_and_is_as_large_as_the_formula_says(
    network: Network, entropy: bool
) -> None:
    state, layout = network
    tensors, counts = pack(state, layout, STEPS, entropy=entropy)
    assert same(unpack(tensors, layout, STEPS, limit=LIMIT), state)
    if all(t.dtype != torch.bfloat16 for t in tensors.values()):  # its name is longer than float16's
        assert len(serialised(tensors)) == sizes.file_size(layout, counts)
    assert json.loads(json.dumps({n: c.to_json() for n, c in counts.items()})).keys() == layout.keys()


def test_a_file_on_disk(tmp_path: Path) -> None:
    w = torch.randn(20, 30).sign() * 0.25
    state = {"b": torch.randn(20), "n": torch.tensor(7), "w": w.T, "w_scale": torch.tensor(0.25)}
    layout = {
        "w": Part((30, 20), bits=2),
        "b": Part((20,), "float"),
        "n": Part((), "integer"),
        "w_scale": Part((), "float"),
    }
    counts = save(tmp_path / "net", state, layout, STEPS, entropy=True)
    assert counts["w"].coded_bits == 600  # two of the four codes occur
    assert (tmp_path / "net").stat().st_size == sizes.file_size(layout, counts) < sizes.file_size(layout)
    loaded = load(tmp_path / "net", layout, STEPS, limit=1000)
    assert same(loaded, {name: state[name] for name in layout})
    (tmp_path / "net").write_bytes(b"")  # what was loaded does not hang on the file
    assert same(loaded, {name: state[name] for name in layout})


def test_raw_tensors_may_be_of_any_number_type() -> None:
    wide = {
        "a": torch.arange(1000),
        "b": torch.ones(9, dtype=torch.float64),
        "c": torch.zeros(3, dtype=torch.float16),
    }
    state = {**wide, "d": torch.ones(7, dtype=torch.uint8), "e": torch.eye(2, dtype=torch.float64)}
    layout = {n: Part(tuple(t.shape), "float", width=t.element_size()) for n, t in state.items()}
    layout["e"] = Part((2, 2), form="mask", kept=2, width=8)
    tensors, counts = pack(state, layout, STEPS)
    assert len(serialised(tensors)) == sizes.file_size(layout, counts)
    with pytest.raises(PrunefrontError, match="'a' is I64"):  # a scale of integers, say
        unpack(tensors, layout, STEPS, limit=LIMIT)
    typed = {n: replace(p, kind="integer") if n in "ad" else p for n, p in layout.items()}
    assert same(unpack(tensors, typed, STEPS, limit=LIMIT), state)


def resnet_like(width: int, bits: int, rng: np.random.Generator, density: float) -> Network:
    """Pruned convolutions with their norms, non-zeros anywhere."""
    state: dict[str, Tensor] = {}
    layout: dict[str, Part] = {}
    for i in range(6):
        shape, name = (width, width, 3, 3), f"stage.{i}.conv"
        kept = round(density * prod(shape))
        w = np.zeros(prod(shape), np.float32)
        codes = rng.integers(1, 1 << bits - 1, kept) if bits > 1 else -np.ones(kept)
        w[rng.permutation(w.size)[:kept]] = codes if bits < 32 else rng.standard_normal(kept)
        state[f"{name}.weight"] = torch.from_numpy(w.reshape(shape)) * 0.25
        layout[f"{name}.weight"] = Part(shape, form="mask", kept=kept, bits=bits)
        state[f"{name}.weight_scale"], layout[f"{name}.weight_scale"] = torch.tensor(0.25), Part((), "float")
        for norm in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.bn.{norm}"], layout[f"{name}.bn.{norm}"] = (
                torch.randn(width),
                Part((width,), "float"),
            )
        state[f"{name}.bn.num"], layout[f"{name}.bn.num"] = torch.tensor(3), Part((), "integer")
    return state, layout


@pytest.mark.parametrize("width", [2, 8, 48])
@pytest.mark.parametrize("bits", [1, 4, 32])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.25, 0.5])
def test_the_formula_without_counts_is_within_a_hundredth(width: int, bits: int, density: float) -> None:
    state, layout = resnet_like(width, bits, np.random.default_rng(width), density)
    tensors, _ = pack(state, layout, STEPS)
    real = len(serialised(tensors))
    assert abs(sizes.file_size(layout) - real) <= 0.01 * real


def payload_bits(*stored: Part) -> int:
    return 8 * sum(
        e.bytes for part in stored for e in sizes.file_entries("w", part, sizes.expected_counts(part))
    )


def test_sizes_in_bits_are_those_of_the_table() -> None:
    n = 64 * 32 * 9
    for b in (2, 4, 8):
        assert payload_bits(Part((64, 32, 3, 3), bits=b)) == n * b
        kernels = Part((700, 9), bits=b)
        assert payload_bits(kernels, Part((64, 32), "index", 2)) == 700 * 9 * b + 64 * 32
        assert payload_bits(Part((40, 64), bits=b), Part((32,), "index", 256)) == 40 * 64 * b + 32 * 8
        two_of_four = Part((64, 32, 3, 3), form="n_of_m", kept=n // 2, team=4, bits=b)
        assert payload_bits(two_of_four) == n // 2 * b + n
        half = Part((64, 32, 3, 3), form="mask", kept=n // 2, bits=b)  # a bitmap, and a byte that says so
        assert payload_bits(half) == n // 2 * b + n + 8
    assert payload_bits(Part((64,), "float"), Part((), "integer")) == 64 * 32 + 64


def test_sizes_are_known_without_torch() -> None:
    modules = "prunefront.pruners.storage.sizes, prunefront.pruners.storage.layout"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the streams


@given(bits=st.integers(1, 32), count=st.integers(0, 70), seed=st.integers(0, 99))
def test_codes_are_packed_lowest_bit_first(bits: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, count)
    stream = pack_bits(codes, bits)
    whole = sum(int(code) << i * bits for i, code in enumerate(codes))
    assert stream.tobytes() == whole.to_bytes((count * bits + 7) // 8, "little")
    assert (unpack_bits(stream, bits, count) == codes).all()
    with pytest.raises(PrunefrontError, match="bytes"):
        unpack_bits(np.append(stream, np.uint8(0)), bits, count)


def test_a_code_that_does_not_fit_is_not_cut_short() -> None:
    for codes in ([0, 8], [-1]):
        with pytest.raises(ValueError, match="3 bits"):
            pack_bits(np.array(codes), 3)


def test_gaps_and_fillers_worked_by_hand() -> None:
    found = np.array([0, 9])  # zeros before: 0 and 8 = 3 + 3 + 2
    assert positions.count_gaps(found).fillers[:3] == (2, 1, 0)
    body = positions.write_body(found, 10, 2)
    assert body.tolist() == [0b10_11_11_00]
    assert positions.write_body(found, 10, 3).tolist() == [0b01_111_000, 0b1111111_0]  # filled up with ones
    assert positions.write_positions(found, 10, positions.count_gaps(found)).tolist() == [2, *body]


@given(
    stored=st.sets(st.integers(0, 799), max_size=300) | st.sets(st.integers(0, 799), max_size=9),
    rows=st.sampled_from([1, 4, 20, 40, 200]),
)
def test_positions_come_back_by_every_way_and_take_the_shortest(stored: set[int], rows: int) -> None:
    found, bodies = np.array(sorted(stored), np.int64), []
    for way in (sizes.BITMAP, *sizes.GAP_BITS):
        bodies.append(positions.write_body(found, 800, way))
        assert (positions.read_positions(np.append(np.uint8(way), bodies[-1]), 800) == found).all()
    shortest = min(len(body) for body in bodies)
    assert len(positions.write_positions(found, 800, positions.count_gaps(found))) == 1 + shortest
    for lines, length in ((rows, 800 // rows), (800 // rows, rows)):  # compressed rows, and columns
        index = lines * sizes.bits_below(length + 1) + len(stored) * sizes.bits_below(length)
        assert 8 * (shortest - 1) < index


def test_places_of_a_team() -> None:
    part = Part((1, 8), form="n_of_m", kept=4, team=4)
    nonzero = np.array([[0, 1, 0, 1, 0, 0, 0, 1]], bool)
    chosen = places.choose_places(nonzero, part)
    assert chosen.tolist() == [[1, 3], [0, 3]]  # a team of one takes its first zero too
    assert places.write_places(chosen, part).tolist() == [0b11_00_11_01]
    with pytest.raises(PrunefrontError, match="3 of 4 positions"):
        places.choose_places(np.array([[1, 1, 0, 1, 0, 0, 0, 0]], bool), part)
    with pytest.raises(PrunefrontError, match="ascend"):
        places.read_places(np.array([0b11_00_01_11], np.uint8), part)


# --- Huffman codes

frequencies = st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any).map(np.array)


def heap_total(counts: list[int]) -> int:
    """Σ frequency · length by Huffman's own algorithm."""
    heap, total = list(counts), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


@given(counts=frequencies)
def test_huffman_codes_are_prefix_free_and_within_a_bit_of_entropy(counts: np.ndarray) -> None:
    lengths = code_lengths(counts)
    present, total = counts[counts > 0], counts.sum()
    assert ((lengths > 0) == (counts > 0)).all()
    if len(present) == 1:
        assert lengths.max() == 1
        return
    mean, entropy = float(counts @ lengths / total), float(-(present / total) @ np.log2(present / total))
    assert entropy - 1e-9 <= mean < entropy + 1
    assert counts @ lengths == heap_total(present.tolist())
    symbols, codewords = canonical(lengths)
    longest = int(lengths.max())
    texts = [
        f"{word:0{longest}b}"[: lengths[symbol]] for symbol, word in zip(symbols, codewords, strict=True)
    ]
    assert not any(b.startswith(a) for a in texts for b in texts if a is not b)


def test_dyadic_frequencies_cost_their_entropy() -> None:
    assert code_lengths(np.array([8, 1, 0, 4, 1, 2])).tolist() == [1, 4, 0, 2, 4, 3]


@given(counts=st.lists(st.integers(1, 99), min_size=2, max_size=6).map(np.array), limit=st.integers(3, 4))
def test_short_words_are_the_best_of_all_short_words(counts: np.ndarray, limit: int) -> None:
    options = product(range(1, limit + 1), repeat=len(counts))
    best = min(int(counts @ np.array(o)) for o in options if sum(2.0**-n for n in o) <= 1)
    lengths = code_lengths(counts, limit)
    assert lengths.max() <= limit
    assert counts @ lengths == best


def test_steep_frequencies_are_held_to_sixteen_bits() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = code_lengths(np.array(fibonacci))
    assert lengths.max() == 16
    assert sum(2.0**-n for n in lengths) == 1
    with pytest.raises(ValueError, match="no code"):
        code_lengths(np.ones(5, np.int64), 2)


@settings(max_examples=30)
@given(bits=st.integers(1, 16), count=st.integers(1, 3000), spread=st.floats(0, 4), seed=st.integers(0, 99))
def test_huffman_streams_come_back(bits: int, count: int, spread: float, seed: int) -> None:
    normal = np.random.default_rng(seed).normal(0, 2**spread, count)
    codes = np.clip(np.rint(normal), 0, (1 << bits) - 1).astype(np.int64)
    counts = np.bincount(codes, minlength=1 << bits)
    lengths = code_lengths(counts)
    stream = write_huffman(codes, bits, lengths)
    assert len(stream) == sizes.huffman_bytes(bits, count, int(counts @ lengths))
    assert (read_huffman(stream, bits, count) == codes).all()


def test_one_symbol_takes_one_bit_each() -> None:
    codes = np.full(4096, 3)
    stream = write_huffman(codes, 2, code_lengths(np.bincount(codes)))
    assert len(stream) == 3 + 8 + 4096 // 8  # lengths of 4 codes, bits of 4 blocks, a bit each
    assert (read_huffman(stream, 2, 4096) == 3).all()


@pytest.mark.parametrize("lengths", [[1, 1, 1, 0], [2, 2, 2, 0], [0, 0, 0, 0], [17, 1, 2, 3], [0, 2, 0, 0]])
def test_a_table_of_no_complete_code_is_refused(lengths: list[int]) -> None:
    stream = np.concatenate([pack_bits(np.array(lengths), 5), pack_bits(np.array([8]), 15), [0]]).astype(
        np.uint8
    )
    with pytest.raises(PrunefrontError, match="Huffman"):
        read_huffman(stream, 2, 8)


# --- what is refused


def refuses_or_fits(read: Callable[[], dict[str, Tensor]], layout: Mapping[str, Part]) -> None:
    try:
        found = read()
    except PrunefrontError:
        return
    assert {n: tuple(t.shape) for n, t in found.items()} == {n: part.shape for n, part in layout.items()}


@settings(max_examples=200)
@given(network=networks(), data=st.data())
def test_a_tensor_that_was_tampered_with_is_refused_or_has_the_right_shape(
    network: Network, data: Any
) -> None:
    state, layout = network
    tensors, _ = pack(state, layout, STEPS, entropy=True)
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[name]
    how = data.draw(st.sampled_from(["flip"] * 4 + ["cut", "extend", "type", "drop", "rename", "fold"]))
    hostile = {**tensors, name: tensor.clone()}
    if how == "flip" and tensor.numel():
        raw = hostile[name].reshape(-1).view(torch.uint8)
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    elif how in ("cut", "extend"):
        hostile[name] = tensor[:-1] if how == "cut" and tensor.ndim else torch.cat([tensor.reshape(-1)] * 2)
    elif how == "type":
        hostile[name] = tensor.to(
            data.draw(st.sampled_from([torch.int8, torch.float16, torch.int64, torch.complex64]))
        )
    elif how == "fold":
        hostile[name] = tensor.reshape(1, *tensor.shape)
    elif how in ("drop", "rename"):
        hostile[data.draw(st.sampled_from(["layer0.weight#codes", "layer0.weight#huffman", "x"]))] = (
            hostile.pop(name)
        )
    refuses_or_fits(lambda: unpack(hostile, layout, STEPS, limit=LIMIT), layout)


@settings(max_examples=100)
@given(network=networks(), data=st.data())
def test_a_file_that_was_tampered_with_is_refused_or_has_the_right_shapes(
    network: Network, data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state, layout = network
    path = tmp_path_factory.getbasetemp() / "hostile"
    save(path, state, layout, STEPS, entropy=True)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(raw) - 1) | st.integers(0, min(len(raw), 300) - 1))
        raw[where] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789"[]{},'))
    path.write_bytes(raw[: data.draw(st.sampled_from([len(raw)] * 4 + [len(raw) - 1, 9]))])
    refuses_or_fits(lambda: load(path, layout, STEPS, limit=LIMIT), layout)


W32 = Part((4, 8), form="mask", kept=4)
W2 = Part((4, 8), bits=2)


@pytest.mark.parametrize(
    ("state", "part", "message"),
    [
        (torch.full((4, 8), 0.3), W2, "'w': no 2-bit codes stand for its values"),
        (torch.full((4, 8), 0.5), W2, "integers from 4 to 4, where 0 to 3"),
        (torch.full((4, 8), torch.nan), W2, "integers from"),
        (torch.zeros(4, 8).double(), W2, "no 2-bit codes"),
        (torch.ones(4, 8), W32, "32 of its values are not zero, where 4 may be"),
        (torch.zeros(8, 4), W32, r"shape \(8, 4\), where the layout has value of shape \(4, 8\)"),
        (torch.zeros(4, 8, dtype=torch.int64), W32, "torch.int64"),
        (torch.ones(4, 8), Part((4, 8), form="n_of_m", kept=16, team=4), "4 of 4 positions"),
        (torch.full((2,), 5), Part((2,), "index", 5), "from 5 to 5, where 0 to 4"),
    ],
)
def test_a_state_that_is_not_as_its_layout_says_is_not_stored(
    state: Tensor, part: Part, message: str
) -> None:
    scale = {"w_scale": torch.tensor(0.25)}
    layout = {"w": part, "w_scale": Part((), "float")}
    with pytest.raises(PrunefrontError, match=message):
        pack({"w": state, **scale}, layout, STEPS)
    with pytest.raises(PrunefrontError, match="differ in 'w'"):
        pack(scale, layout, STEPS)


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("w#codes", Part((2,)), "name holds '#'"),
        ("w", Part((1 << 40,), "float"), "1099511627776 stored elements"),
        ("w", Part((-1, -1), kept=1), "whole numbers"),
        ("w", Part((2,), bits=17), "bit width of 17"),
        ("w", Part((2,), bits=True), "whole numbers"),
        ("w", Part((2,), "index", 0), "below 0"),
        ("w", Part((2,), "float", width=3), "3 bytes"),
        ("w", Part((2,), kept=1), "dense form"),
        ("w", Part((2,), form="mask", kept=3), "3 of 2"),
        ("w", Part((4,), form="n_of_m", kept=2, team=0, axis=0), "teams of 0"),
        ("w", Part((6,), form="n_of_m", kept=2, team=4, axis=0), "do not divide"),
        ("w", Part((8,), form="n_of_m", kept=3, team=4, axis=0), "equally many"),
        ("w", Part((8,), form="n_of_m", kept=4, team=4, axis=1), "no axis 1"),
        ("w", Part((8,), "valu"), "unknown kind"),  # type: ignore[arg-type]
        ("w", Part((8,), form="coo"), "unknown form"),  # type: ignore[arg-type]
    ],
)
def test_a_layout_that_has_no_file_is_refused(name: str, part: Part, message: str, tmp_path: Path) -> None:
    with pytest.raises(PrunefrontError, match=message):
        load(tmp_path / "nothing is read", {name: part}, STEPS, limit=1000)


def written(path: Path, header: Any, payload: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + payload)
    return path


def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    layout, path = {"w": Part((2,), "float")}, tmp_path / "net"
    for shape, dtype in [([1 << 50, 0], "F32"), ([2], "I32"), ([1 << 62, 1 << 62], "F32"), ([2, 1], "F32")]:
        with pytest.raises(PrunefrontError):
            load(
                written(path, {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, 8]}}, bytes(8)),
                layout,
                STEPS,
                limit=9,
            )
    entry = b'"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    for header in (b"{" + entry + b"," + entry + b"}", b"{}", b"[]", b"{" * 100_000, b'{"w":{}}'):
        try:
            found = load(written(path, header, bytes(8)), layout, STEPS, limit=9)
        except PrunefrontError:
            continue
        assert header.count(entry) == 2  # the same tensor said twice is the same tensor
        assert found["w"].tolist() == [0, 0]
    with pytest.raises(PrunefrontError, match="cannot be read"):
        load(tmp_path / "absent", layout, STEPS, limit=9)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ([], "empty"),
        ([25], "no way"),
        ([0, 0], "bitmap of 1 bytes"),
        ([0, 0, 0, 0, 255], "8 positions, where 4 may be"),
        ([8, 31, 0], "position 32 of 32"),
        ([16, 1], "bytes"),
        ([16, 0, 0, 1], "bytes"),
        ([5, 0], "4 values for 1 positions"),
    ],
)
def test_positions_that_cannot_be_are_refused(stream: list[int], message: str) -> None:
    tensors = {"w#positions": torch.tensor(stream, dtype=torch.uint8), "w#values": torch.zeros(4)}
    with pytest.raises(PrunefrontError, match=f"tensor 'w': .*{message}"):
        unpack(tensors, {"w": W32}, STEPS, limit=99)
