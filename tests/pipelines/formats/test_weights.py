"""Weights files: round trips, one line for what does not fit, nothing that could run."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunefront.pipelines.formats.weights import WeightsError, load_weights, save_weights


def net(width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 36, 3)
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_safetensors_round_trip(tmp_path: Path) -> None:
    source, target = net(), net()
    source[3].weight.data = source[3].weight.data.t().contiguous().t()  # not contiguous
    save_weights(source, tmp_path / "w.safetensors")
    assert not same(source, target)
    load_weights(target, tmp_path / "w.safetensors")
    assert same(source, target)


def test_shared_tensors_are_written_and_read(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        layer = nn.Linear(4, 4)
        return nn.Sequential(layer, nn.ReLU(), layer)

    source, target = tied(), tied()
    save_weights(source, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert same(source, target)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("form", ["plain", "nested", "parallel", "compiled", "old"])
def test_torch_files_in_their_usual_forms(tmp_path: Path, suffix: str, form: str) -> None:
    source, target = net(), net()
    state = source.state_dict()
    forms: dict[str, object] = {
        "plain": state,
        "nested": {"epoch": 3, "state_dict": state},
        "parallel": {f"module.{name}": tensor for name, tensor in state.items()},
        "compiled": {"state_dict": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}},
        "old": {name: tensor for name, tensor in state.items() if "num_batches" not in name},
    }
    load_weights(target, write(tmp_path / f"w{suffix}", forms[form]))
    assert same(source, target)


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    state = net().state_dict() | {name.replace("_", ".", 1): t for name, t in tensors.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (
            {n.replace("3.", "head."): t for n, t in net().state_dict().items()},
            "lacks 3.weight, 3.bias and has head.weight",
        ),
        (changed(**{"0_bias": None}), "lacks 0.bias; the network expects 9 tensors: 0.weight"),
        (changed(**{"9_weight": torch.zeros(1)}), "has 9.weight, unknown here"),
        (net(5).state_dict(), "0.weight is (5, 1, 3, 3), the network expects (4, 1, 3, 3)"),
        (
            changed(**{"0_bias": torch.tensor([0.0, 0.0, float("nan"), 0.0])}),
            "0.bias holds NaN or infinite values",
        ),
        ({"a": 3}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_the_model_alone(
    tmp_path: Path, state: object, says: str
) -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(model, write(tmp_path / "w.pt", state))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Trap:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_file_that_could_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    for content in (net(), {"state_dict": net().state_dict(), "extra": Trap(tmp_path / "sprung")}):
        with pytest.raises(
            WeightsError, match="not a plain state dict, and reading anything else could run code"
        ):
            load_weights(net(), write(tmp_path / "w.pt", content))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_files_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="there is no weights file"):
        load_weights(net(), tmp_path / name)
    for content in (b"", b"certainly not weights" * 10):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            load_weights(net(), tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"must be \.safetensors, \.pt or \.pth, got w\.bin"):
        load_weights(net(), tmp_path / "w.bin")
