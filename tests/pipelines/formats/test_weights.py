"""Weights files: round trips, one line for what does not fit, nothing that could run."""

import argparse
import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunefront.pipelines.config.sections import ModelSection
from prunefront.pipelines.formats.given_weights import load_given
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


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
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


def behind(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def trained(model: nn.Module) -> dict[str, Any]:
    """What an optimizer keeps after a step: tensors under numbers and names."""
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def checkpoints(model: nn.Module) -> dict[str, tuple[object, str]]:
    """Checkpoints in the forms that programs write, and what is said of each."""
    optimizer = trained(model)
    state = model.state_dict()
    return {
        "lightning": (
            {
                "epoch": 3,
                "pytorch-lightning_version": "2.5.0",
                "state_dict": behind("model.", state) | {"criterion.weight": torch.ones(3)},
                "callbacks": {"ModelCheckpoint{'monitor': 'x'}": {"best_model_score": torch.tensor(0.9)}},
                "optimizer_states": [optimizer],
                "hyper_parameters": {"lr": 0.1},
            },
            "w.ckpt: the state dict under 'state_dict', prefix 'model.' removed, "
            "1 other tensors left aside (criterion.weight)",
        ),
        "arguments": (
            {"model": state, "optimizer": optimizer, "args": argparse.Namespace(lr=0.1)},
            "w.ckpt: the state dict under 'model'",
        ),
        "state": ({"model_state": state, "speaker": "x"}, "w.ckpt: the state dict under 'model_state'"),
        "ema": ({"ema": state, "updates": 7}, "w.ckpt: the state dict under 'ema'"),
        "deep": ({"a": {"b": state}}, "w.ckpt: the state dict under 'a/b'"),
        "beside": (dict(state) | {"step": 3}, ""),
        "averaged": (
            torch.optim.swa_utils.AveragedModel(model).state_dict(),
            "w.ckpt: prefix 'module.' removed, 1 other tensors left aside (n_averaged)",
        ),
        "twice wrapped": (behind("module._orig_mod.", state), "w.ckpt: prefix 'module.' removed"),
        "half": (copy.deepcopy(model).half().state_dict(), "w.ckpt: float16 read as float32"),
        "bfloat16": (
            {"model": copy.deepcopy(model).bfloat16().state_dict()},
            "w.ckpt: the state dict under 'model', bfloat16 read as float32",
        ),
        "parameters": (dict(model.named_parameters()) | dict(model.named_buffers()), ""),
    }


@pytest.mark.parametrize("form", checkpoints(net()))
def test_checkpoints_as_programs_write_them(tmp_path: Path, form: str) -> None:
    source, target = net(), net()
    content, says = checkpoints(source)[form]
    exact = form not in ("half", "bfloat16")
    assert load_weights(target, write(tmp_path / "w.ckpt", content)) == says
    for name, tensor in source.state_dict().items():
        torch.testing.assert_close(
            target.state_dict()[name], tensor, rtol=0 if exact else 0.01, atol=0 if exact else 1e-3
        )


def test_a_compiled_part_of_a_network_has_its_own_names(tmp_path: Path) -> None:
    source, target = net(), net()
    state = {name.replace("3.", "3._orig_mod."): t for name, t in source.state_dict().items()}
    load_weights(target, write(tmp_path / "w.pt", state))
    assert same(source, target)


def test_float32_weights_for_a_network_in_half_precision(tmp_path: Path) -> None:
    source, target = net(), net().half()
    said = load_weights(target, write(tmp_path / "w.pt", source.state_dict()))
    assert said == "w.pt: float32 read as float16"
    assert same(source.half(), target)
    state = net().state_dict() | {"0.bias": torch.full((4,), 1e6)}
    with pytest.raises(WeightsError, match=r"0\.bias holds NaN or infinite"):
        load_weights(target, write(tmp_path / "w.pt", state))


@pytest.mark.parametrize(
    ("join", "keys"),
    [
        (lambda a, b: {"model": a, "ema": b}, ("model", "ema")),
        (
            lambda a, b: {"state_dict": behind("net.", a) | behind("teacher.", b)},
            ("state_dict/net", "state_dict/teacher"),
        ),
        (lambda a, b: behind("net.", a) | behind("teacher.", b), ("./net", "./teacher")),
        (lambda a, b: dict(a) | {"ema": b}, (".", "ema")),
    ],
)
def test_of_several_state_dicts_one_is_asked_for(
    tmp_path: Path, join: Callable[..., object], keys: tuple[str, str]
) -> None:
    sources = net(), net()
    path = write(tmp_path / "w.pt", join(*(s.state_dict() for s in sources)))
    with pytest.raises(WeightsError) as caught:
        load_weights(net(), path, setting="model.weights_key")
    assert f"2 state dicts that fit the network: {', '.join(keys)}; model.weights_key = {keys[0]!r}" in str(
        caught.value
    )
    with pytest.raises(WeightsError, match="save the one that is meant alone"):
        load_weights(net(), path)
    for key, source in zip(keys, sources, strict=True):
        target = net()
        load_weights(target, path, key=key)
        assert same(source, target)
    with pytest.raises(WeightsError) as caught:
        load_weights(net(), path, key="emma")
    assert f"no state dict under 'emma'; it has: {', '.join(keys)}" in str(caught.value)


def test_the_one_that_fits_is_taken_and_another_one_only_by_mistake(tmp_path: Path) -> None:
    source, target = net(), net()
    path = write(tmp_path / "w.pt", {"generator": net(5).state_dict(), "model": source.state_dict()})
    assert load_weights(target, path) == "w.pt: the state dict under 'model'"
    assert same(source, target)
    with pytest.raises(WeightsError, match=r"\(under 'generator'\) does not fit the network: 0\.weight is"):
        load_weights(target, path, key="generator")


def test_the_state_dict_of_a_part_is_found_where_the_rest_is_named(tmp_path: Path) -> None:
    source, target = net(), net()
    state = behind("backbone.", source.state_dict()) | {"head.weight": torch.ones(2, 3)}
    said = load_weights(target, write(tmp_path / "w.pt", state))
    assert said == "w.pt: prefix 'backbone.' removed, 1 other tensors left aside (head.weight)"
    assert same(source, target)


def test_a_study_says_what_was_found(tmp_path: Path) -> None:
    section = ModelSection(
        factory="x:y",
        weights=write(tmp_path / "w.pt", {"model": net().state_dict(), "ema": net().state_dict()}),
    )
    with pytest.raises(WeightsError, match=r"model\.weights_key = 'model' takes the first"):
        load_given(net(), section)
    chosen = section.model_copy(update={"weights_key": "ema"})
    assert load_given(net(), chosen) == "w.pt: the state dict under 'ema'"


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
        (
            net(5).state_dict(),
            "0.weight is (5, 1, 3, 3), the network expects (4, 1, 3, 3), and 6 more tensors differ",
        ),
        (
            {"model": behind("module.", net(5).state_dict()), "best": torch.ones(1)},
            "(under 'model') does not fit the network: 0.weight is (5, 1, 3, 3)",
        ),
        (
            {"module.0.bias": torch.ones(4), "module.x": torch.ones(1)},
            "lacks 0.weight, 1.weight, 1.bias and 4 more and has x, unknown here",
        ),
        (
            changed(**{"0_bias": torch.ones(4, dtype=torch.int8)}),
            "0.bias is int8, the network expects float32",
        ),
        (changed(**{"0_bias": torch.ones(4, dtype=torch.complex64)}), "0.bias is complex64"),
        (changed(**{"0_bias": torch.zeros(4, device="meta")}), "0.bias is no plain tensor"),
        (changed(**{"0_bias": torch.ones(4).to_sparse()}), "0.bias is no plain tensor"),
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
    trap = {"state_dict": net().state_dict(), "extra": Trap(tmp_path / "sprung")}
    for content, name in ((net(), r"torch\.nn\.modules\.container\.Sequential"), (trap, r"\w+\.mkdir")):
        with pytest.raises(
            WeightsError,
            match=rf"not a plain state dict \(it holds a {name}\), and reading anything else could run",
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
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"must be \.safetensors, \.pt, \.pth, \.ckpt, \.bin; got w\.h5"):
        load_weights(net(), tmp_path / "w.h5")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_programs_are_refused_with_the_way_to_their_weights(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    torch.jit.trace(net, torch.ones(1, 2)).save(str(tmp_path / "net.pt"))
    with pytest.raises(
        WeightsError, match=r"is a TorchScript program.*torch\.jit\.load\('net\.pt'\)\.state_dict"
    ):
        load_weights(net, tmp_path / "net.pt")
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"is an ONNX file"):
        load_weights(net, tmp_path / "net.onnx")
    torch.save(net.state_dict(), tmp_path / "plain.pt")
    assert load_weights(net, tmp_path / "plain.pt") == ""
