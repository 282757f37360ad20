"""Files of weights: a user's own safetensors and state dicts, and packed ones of an artifact."""

import io
import json
import struct
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from prunefront.pipelines.formats.weights import load_weights, unpack_weights
from prunefront.pipelines.measure import dense_outputs
from prunefront.pipelines.measure.dense_outputs import DenseOutputs
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.saved import rebuild
from tests.hostile.strategies import answered, changed, damaged, fuzzed, text_of
from tests.hostile.test_plans import genuine, network

# torch tells of state dicts in an old form before it reads or refuses them
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DENSE = save(network()[0].state_dict())
PACKED = genuine()[1].read_bytes()
OUTPUTS = save({"0:2/0": torch.ones(2, 3), "2:1/0": torch.ones(1, 3)}, {"content": "right"})
PLAN = PruningPlan.from_json(genuine()[0]["plan"])


@st.composite
def safetensors(draw: st.DrawFn, content: bytes) -> bytes:
    """The file with its header rewritten, its sizes wrong, or its bytes damaged."""
    if draw(st.booleans()):
        return draw(damaged(content))
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    text = text_of(draw(changed(header))).encode("utf-8", "surrogatepass")
    said = draw(st.sampled_from([len(text)] * 6 + [0, len(text) - 1, 2**31, 2**63, 2**64 - 1]))
    return struct.pack("<Q", said % 2**64) + text + content[8 + length :]


@st.composite
def state_dicts(draw: st.DrawFn) -> bytes:
    """`torch.save` of a state dict, or of something near it, perhaps damaged."""
    state: Any = {name: tensor.clone() for name, tensor in network()[0].state_dict().items()}
    name = draw(st.sampled_from(sorted(state)))
    state[name] = draw(
        st.sampled_from(
            [
                torch.zeros(()),
                torch.full((8,), float("nan")),
                torch.zeros(3, dtype=torch.complex64),
                torch.zeros(2, 2).to_sparse(),
                torch.zeros(8, dtype=torch.uint8),
                torch.zeros(1).expand(1 << 40),
                torch.zeros(2, device="meta"),
                "text",
                None,
                {"nested": torch.zeros(1)},
            ]
        )
    )
    state = draw(st.sampled_from([state, {"state_dict": state}, [state], {1: 2}, {"state_dict": 3}]))
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=draw(st.booleans()))
    return draw(damaged(buffer.getvalue())) if draw(st.booleans()) else buffer.getvalue()


def load(path: Path, content: bytes) -> None:
    """Into a network that stays as it was where the file is refused."""
    path.write_bytes(content)
    model = nn.Module.__new__(type(network()[0]))
    model.__init__()  # type: ignore[misc]
    before = {name: t.clone() for name, t in model.state_dict().items()}

    def fill() -> bool:
        load_weights(model, path)
        return True

    if answered(fill):
        assert all(t.isfinite().all() for t in model.state_dict().values())
    else:
        assert all(t.equal(before[name]) for name, t in model.state_dict().items())


@given(content=safetensors(DENSE))
@fuzzed
def test_safetensors(tmp_path: Path, content: bytes) -> None:
    load(tmp_path / "w.safetensors", content)
    answered(lambda: unpack_weights(content))


@given(content=state_dicts())
@fuzzed
def test_state_dicts(tmp_path: Path, content: bytes) -> None:
    load(tmp_path / "w.pt", content)


@given(content=safetensors(PACKED))
@fuzzed
def test_packed_weights(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(content)
    answered(lambda: rebuild(network()[0], PLAN, (), file))


@given(content=safetensors(OUTPUTS))
@fuzzed
def test_outputs_of_a_dense_network(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "targets.safetensors"
    file.write_bytes(content)
    answered(lambda: DenseOutputs.read(file, {}))
    with patch.object(dense_outputs, "_digest", lambda flat: "right"):  # by somebody who worked it out
        answered(lambda: DenseOutputs.read(file, {}))
