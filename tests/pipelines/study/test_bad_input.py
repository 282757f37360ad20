"""Whatever a person gets wrong is one line on stderr that says what, why and what to do; exit code 2, no traceback."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from prunefront.pipelines.cli.main import main
from prunefront.pipelines.config.read import load
from prunefront.pipelines.config.sections import ModelSection
from prunefront.pipelines.formats.weights import save_weights
from prunefront.pipelines.journal.journal import Journal, lock, write_json
from prunefront.pipelines.models import build

MODULE = """
import torch
from torch import nn
from prunefront.pipelines.data import Split, Splits, Transform
import numpy as np

class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.linear = nn.Linear(4, 10)
    def forward(self, x):
        x = self.conv(x)
        if x.sum() > 0:
            x = x + 1
        return self.linear(x.mean((2, 3)))

class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.linear = nn.Linear(4, 10)
    def forward(self, x):
        return self.linear(torch.cumsum(self.conv(x), 1).mean((2, 3)))

def one_class():
    images = np.zeros((40, 1, 8, 8), np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None, None]
    part = lambda a, b: Split(images[a:b], np.zeros(b - a, np.int64))
    return part(0, 20), part(20, 30), part(30, 40)

def empty():
    nothing = Split(np.zeros((0, 1, 8, 8), np.uint8), np.zeros(0, np.int64))
    return nothing, nothing, nothing
"""

Run = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `prunefront COMMAND` on a study file with the given text and returns its one line of error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "wrong.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "wrong", raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # and not HOME: a token of Ray's would be made there, and this process would give it to every later Ray of its own
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    def run(text: str, *arguments: str, command: str = "search") -> str:
        (tmp_path / "s.toml").write_text(text)
        monkeypatch.setattr(sys, "argv", ["prunefront", command, "s.toml", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code == 2, out + err
        assert err.startswith("error: ")
        assert len(err.strip().splitlines()) == 1, err
        assert "Traceback" not in out + err
        return err

    return run


STUDY = 'name = "s"\n[model]\nfactory = "digits_cnn"\noptions = { width = 4 }\n[dense]\nepochs = 1\n'


def test_an_unknown_key(refused: Run) -> None:
    assert "did you mean 'candidates'" in refused(STUDY + "[search]\ncandidtes = 4\n")


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("resnet2", "did you mean"),
        ("nowhere:Net", "there is no module 'nowhere'"),
        ("wrong:Nett", "has no 'Nett'"),
        ("wrong:one_class", "not an nn.Module"),
        ("wrong:Untraceable", "wrong.py"),
        ("wrong:Einsum", "cumsum"),
    ],
)
def test_a_network_that_cannot_be_used(refused: Run, factory: str, said: str) -> None:
    assert said in refused(f'name = "s"\n[model]\nfactory = "{factory}"\n', command="inspect")


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ('granularities = ["kernal"]', "did you mean 'kernel'"),
        ("granularities = []", "at least 1 item"),
        (
            "[quantisation]\nbits = [32, 1]",
            "quantisation.bits = 1 is no bit width of quantiser 'fixed_point'",
        ),
        ('[quantisation]\nquantiser = "fixedpoint"', "did you mean 'fixed_point'"),
        (
            'granularities = ["element"]\n[quantisation]\nbits = [4]\nquantiser = "affine"',
            "leaves zeros, which quantiser 'affine'",
        ),
        (
            'granularities = ["kernel"]\n[quantisation]\nactivations = "xnor"\nactivation_bits = 1',
            "takes whole layers",
        ),
        ('[quantisation]\nactivations = "dorefa"\nactivation_bits = 12', "takes 1 to 8 bits, not 12"),
        ("densities = [1.5]", "less than 1"),
        ('whole = ["stage1.conv"]\n[quantisation]\nbits = [8]', "did you mean 'stage1.conv"),
    ],
)
def test_granularities_and_words_that_there_are_not(refused: Run, space: str, said: str) -> None:
    assert said in refused(f"{STUDY}[space]\n{space}\n", command="inspect")


@pytest.mark.parametrize("command", ["inspect", "search"])
@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ('["macs <= 0.1%"]', "'macs <= 0.1%' cannot be met: the smallest network of the space has"),
        ('["size_bytes <= 1kB", "accuracy >= -1pt"]', "nearest: 'size_bytes <= 3."),
        ('["macs >= 110%"]', "nearest: 'macs >= 100%'"),
        ('["macs >= 90%", "macs <= 1k"]', "contradict each other"),
    ],
)
def test_bounds_that_no_network_meets_before_anything_is_trained(
    refused: Run, tmp_path: Path, command: str, bounds: str, said: str
) -> None:
    assert said in refused(f"{STUDY}[goal]\nconstraints = {bounds}\n", command=command)
    assert not (tmp_path / "studies" / "s" / "prepared" / "dense.safetensors").exists()


def test_bounds_in_words_that_there_are_not(refused: Run) -> None:
    assert "did you mean 'latency_ms'" in refused(STUDY + '[goal]\nconstraints = ["latency <= 60%"]\n')


def test_a_procedure_over_weights_with_compact_layers(refused: Run) -> None:
    said = refused(
        STUDY + '[space]\ngranularities = ["kernel"]\n[training]\nprocedure = "dns"\n', command="inspect"
    )
    assert "these procedures can be combined with it: cubic_ramp" in said


def test_weights_that_do_not_fit(refused: Run, tmp_path: Path) -> None:
    save_file({"linear.weight": np.zeros((3, 3), np.float32)}, tmp_path / "w.safetensors")
    study = STUDY.replace("[dense]", 'weights = "w.safetensors"\n[dense]')
    assert "w.safetensors" in refused(study, command="inspect")


def test_weights_that_are_a_pickle_of_something_else(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"\x80\x02cos\nsystem\n.")
    study = STUDY.replace("[dense]", 'weights = "w.pt"\n[dense]')
    assert "w.pt" in refused(study, command="inspect")


def test_a_ratio_out_of_range(refused: Run) -> None:
    assert "less than 1" in refused(STUDY + "[space]\nmax_ratio = 1.5\n")


def test_an_unknown_criterion(refused: Run) -> None:
    assert "did you mean 'taylor'" in refused(STUDY + '[space]\ncriteria = ["tailor"]\n')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[training]\nprocedure = "ticktock"\n', "did you mean 'tick_tock'"),
        (
            "[training]\noptions = { rounds = 3 }\n",
            "procedure 'one_shot' has no option 'rounds'; it has: none",
        ),
        (
            '[training]\nprocedure = "iterative"\noptions = { rounds = "three" }\n',
            "option 'rounds' of procedure 'iterative' is 'three'; give a int such as 5",
        ),
        ('[start]\nallocators = ["erc"]\n', "did you mean 'erk'"),
        ("[start]\nallocators = []\n", "at least 1 item"),
        ('[space]\nbound = "tight"\n', "'none' or 'redundancy'"),
        ('[space]\nper_group = { "stage1.conv9" = ["l1"] }\n', "did you mean 'stage1.conv"),
        ('[space]\nper_group = { "stage1.conv1" = ["tailor"] }\n', "did you mean 'taylor'"),
    ],
)
def test_methods_that_there_are_not(refused: Run, text: str, said: str) -> None:
    assert said in refused(STUDY + text, command="inspect")


def test_an_unknown_control_and_one_that_cannot_be_made(refused: Run, tmp_path: Path) -> None:
    assert "did you mean 'scratch_b'" in refused(
        STUDY + '[controls]\nmethods = ["scratchb"]\n', command="inspect"
    )
    model = build(ModelSection(factory="digits_cnn", options={"width": 4}), classes=10, input_shape=(1, 8, 8))
    save_weights(model, tmp_path / "w.safetensors")
    study = STUDY.replace("[dense]", 'weights = "w.safetensors"\n[dense]')
    study += '[controls]\nmethods = ["lottery_ticket"]\n'
    assert "give them as model.initial" in refused(study, command="inspect")


def test_a_criterion_that_does_not_fit_its_group(refused: Run) -> None:
    study = 'name = "s"\n[model]\nfactory = "resnet20"\n[space]\nper_group = { "conv1" = ["chip"] }\n'
    said = refused(study, command="inspect")
    assert "criterion 'chip' does not apply to group 'conv1', as that is a stream that" in said
    assert "these do: activation, " in said


def test_an_unknown_searcher_and_an_unknown_option_of_one(refused: Run) -> None:
    assert "evolution" in refused(STUDY + '[search]\nsearcher = "evolutoin"\n')
    assert "population" in refused(STUDY + '[search]\nsearcher = "evolution"\noptions = { populaton = 4 }\n')


def test_an_unknown_runtime_and_one_that_is_not_here(refused: Run) -> None:
    assert "onnxruntime" in refused(STUDY + '[measure]\nruntime = "onnx"\n')


def test_nothing_that_may_be_pruned(refused: Run) -> None:
    said = refused(STUDY + "[space]\nmax_ratio = 0.0\n")
    assert "nothing can be pruned" in said


@pytest.mark.parametrize(("source", "said"), [("one_class", "at least two classes"), ("empty", "empty")])
def test_data_that_cannot_be_used(refused: Run, source: str, said: str) -> None:
    assert said in refused(STUDY + f'[data]\nsource = "wrong:{source}"\n', command="inspect")


def test_an_image_folder_without_images(refused: Run, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / "images" / part / "zero").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "images" / "train" / "zero" / "a.png")
    study = STUDY + '[data]\nsource = "folder"\ntrain = "images/train"\ntest = "images/test"\n'
    assert "images" in refused(study, command="inspect")


def test_s3_without_credentials(refused: Run) -> None:
    assert "AWS_ACCESS_KEY_ID" in refused(STUDY + '[artifacts]\nuri = "s3://bucket/prefix"\n')


def test_an_s3_server_that_does_not_answer(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    study = STUDY + f'[artifacts]\nuri = "s3://bucket/p"\nendpoint_url = "http://127.0.0.1:{free_port()}"\n'
    assert "127.0.0.1" in refused(study)


def test_a_store_of_another_kind(refused: Run) -> None:
    assert "s3://bucket/prefix" in refused(STUDY + '[artifacts]\nuri = "ftp://host/x"\n')


def test_a_tracking_server_that_is_down(refused: Run) -> None:
    port = free_port()
    assert str(port) in refused(STUDY + f'[tracking]\nuri = "http://127.0.0.1:{port}"\n')


def test_a_study_that_is_running(refused: Run, tmp_path: Path) -> None:
    with lock(tmp_path / "studies" / "s"):
        assert "already running" in refused(STUDY)


def test_a_study_that_was_searched_before_or_with_other_settings(refused: Run, tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "s"
    (tmp_path / "s.toml").write_text(STUDY)
    write_json(folder / "study.json", load(tmp_path / "s.toml").to_json())
    with Journal(folder / "journal.jsonl") as journal:
        journal.append("asked", candidate={"choices": {}})
    assert "--resume" in refused(STUDY)
    assert "training.epochs" in refused(STUDY + "[training]\nepochs = 7\n", "--resume")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["front", "nothing"], "no study 'nothing'"),
        (["fetch", "nothing"], "no study 'nothing'"),
        (["fetch", "s", "--under", "latency"], "NAME=NUMBER"),
        (["verify", "nothing"], "manifest.json"),
        (["ui", "nothing"], "no study 'nothing'"),
        (["list", "critters"], "criteria"),
        (["search", "nothing.toml"], "examples/digits.toml"),
    ],
)
def test_what_is_not_there(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prunefront", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
