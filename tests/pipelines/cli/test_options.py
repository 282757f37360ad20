"""What all commands have in common: one line for an error, one document for --json, old spellings for a release."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli import look, mlflow_ui
from prunefront.pipelines.cli.app import print_json, replace_old_spellings
from prunefront.pipelines.cli.artifact import parse_bounds
from prunefront.pipelines.fronts.row import FrontRow
from prunefront.pipelines.stages import latency_table
from prunefront.pipelines.study import rehearsal
from tests.pipelines.cli.conftest import TEXT, Run, row

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serach"], "no such command 'serach'. Did you mean 'search'?; see: prunefront --help"),
        (["search"], "missing argument 'STUDY'; see: prunefront search --help"),
        (
            ["search", "s.toml", "--resme"],
            "no such option: --resme (Possible options: --address, --fresh, --resume); see",
        ),
        (["search", "s.toml", "--metrics-port", "x"], "'--metrics-port'"),
        (["search", "s.toml", "--metrics-port", "70000"], "'--metrics-port'"),
        (["logs", "s"], "missing option '--jobs-server'; see: prunefront logs --help"),
        (["front"], "missing argument 'STUDY'"),
        (["list", "models", "more"], "unexpected extra argument"),
        (["export", "made", "--format", "tflite"], "possible: onnx, pt2, openvino, int8"),
        (["gc", "digits4", "--older-than", "soon"], "such as 1d or 12h"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_every_error_is_one_line(
    arguments: list[str], said: str, more: list[str], searched: Path, run: Run
) -> None:
    ended = run(*arguments, *more)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert ended.err.startswith("error: ")
    assert len(ended.err.splitlines()) == 1


def test_an_error_that_nobody_foresaw(
    searched: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One line too; the traceback of what may have taken hours is kept, without passwords."""
    kept = tmp_path_factory.mktemp("kept")
    monkeypatch.setattr("tempfile.tempdir", str(kept))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2222")

    def broken(found: Any) -> None:
        raise KeyError("a\nhunter2222")

    monkeypatch.setattr(look, "status_rows", broken)
    ended = run("status", "digits4")
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (1, "", 1)
    assert ended.err.startswith("error: KeyError: ")
    (file,) = kept.glob("prunefront-*.txt")
    assert str(file) in ended.err
    assert "in broken" in file.read_text()
    debugged = run("status", "--debug", "digits4")
    assert debugged.code == 1
    assert "Traceback" in debugged.err
    assert "hunter2222" not in ended.err + file.read_text() + debugged.err
    file.unlink()
    monkeypatch.setattr("tempfile.tempdir", str(kept / "nowhere"))
    assert "--debug shows its traceback" in run("status", "digits4").err


def test_without_a_command_there_is_help(run: Run) -> None:
    ended = run()
    assert (ended.code, ended.out) == (2, "")
    assert "latency-table" in ended.err


def test_python_m_prunefront() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prunefront", "list", "settings"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "search.candidates" in done.stdout
    usage = subprocess.run(
        [sys.executable, "-m", "prunefront", "ui", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert usage.stdout.startswith("Usage: prunefront ui [OPTIONS] [STUDY]\n")


class TestSpelling:
    def test_the_old_ones_are_replaced_with_a_notice(self, capsys: pytest.CaptureFixture[str]) -> None:
        given = ["s", "--address", "http://h:1", "--json"]
        assert list(replace_old_spellings("stop", given)) == ["s", "--jobs-server", "http://h:1", "--json"]
        assert capsys.readouterr().err == (
            "notice: `prunefront stop --address` is spelled --jobs-server now; --address goes with the next release\n"
        )
        assert list(replace_old_spellings("logs", ["--address=http://h:1?a=b"])) == [
            "--jobs-server=http://h:1?a=b"
        ]
        assert list(replace_old_spellings("export", ["a", "--overwrite"])) == ["a", "--replace"]
        assert list(replace_old_spellings("latency-table", ["--fresh"])) == ["--replace"]
        assert len(capsys.readouterr().err.splitlines()) == 3

    def test_all_else_stays(self, capsys: pytest.CaptureFixture[str]) -> None:
        for command, given in (
            ("search", ["s", "--fresh", "--address", "auto"]),
            ("latency-table", ["s", "--address=auto"]),
            ("fetch", ["s", "--under", "macs=1e7", "--under=params=3"]),
            ("export", ["--", "--overwrite"]),
            ("unknown", ["--fresh"]),
        ):
            assert list(replace_old_spellings(command, given)) == given
        assert capsys.readouterr().err == ""

    def test_on_the_command_line(self, searched: Path, run: Run) -> None:
        assert run("export", "made", "--format", "onnx", "-o", "a.onnx").code == 0
        assert "replace it with --replace" in run("export", "made", "--format", "onnx", "-o", "a.onnx").err
        again = run("export", "made", "--format", "onnx", "-o", "a.onnx", "--overwrite")
        assert again.code == 0
        assert again.err.startswith("notice: `prunefront export --overwrite` is spelled --replace now")


def test_bounds() -> None:
    assert parse_bounds(["latency_ms=2", " macs = 1e7"]) == {"latency_ms": 2.0, "macs": 1e7}
    with pytest.raises(PrunefrontError, match="NAME=NUMBER"):
        parse_bounds(["latency_ms"])


def test_numbers_that_json_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("nan"), 1.5], "b": (float("inf"),), "c": {"d": True}})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": [None], "c": {"d": True}}


class TestJson:
    """stdout holds one document and nothing else; what people read is on stderr."""

    def test_of_what_only_looks(self, searched: Path, run: Run) -> None:
        assert run("status", "digits4", "--json").document["study"] == "digits4"
        assert [m["name"] for m in run("list", "models", "--json").document]
        ended = run("front", "s.toml", "--json")
        assert [r["key"] for r in ended.document] == ["a1", "dense"]
        assert "page: " in ended.err
        assert run("gc", "studies/digits4", "--json").document["kept"] == 2
        inspected = run("inspect", "digits4", "--json")
        assert inspected.document["macs"] > 0
        assert inspected.document == run("inspect", "s.toml", "--json").document

    def test_of_a_fetch(self, searched: Path, here: Path, run: Run) -> None:
        ended = run("fetch", "digits4", "--under", "latency_ratio=0.6", "--json")
        assert ended.document["row"]["key"] == "a1"
        assert ended.document["folder"] == str(here / "best")
        assert "check it with: prunefront verify best" in ended.err
        address = next(p for p in (searched / "artifacts").iterdir() if p.name.startswith("dense-"))
        assert run("fetch", str(address), "-o", "dense", "--json").document["row"] is None

    def test_of_an_export_and_of_a_folder_that_is_no_artifact(self, searched: Path, run: Run) -> None:
        ended = run("export", "made", "--format", "onnx", "--json")
        assert ended.document == {
            "path": "model.onnx",
            "format": "onnx",
            "size_bytes": Path("model.onnx").stat().st_size,
            "difference": "the artifact's own file, its digest checked",
        }
        refused = run("verify", "studies", "--json")
        assert (refused.code, refused.out) == (2, "")

    def test_of_verify_with_its_exit_code(self, searched: Path, run: Run) -> None:
        (Path("made") / "card.md").write_text("changed")
        ended = run("verify", "made", "--study", "digits4", "--json")
        assert ended.code == 1
        assert ended.document["ok"] is False

    def test_of_a_search(self, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also when a library prints."""
        asked = {}

        def searched(config: Any, *, display: Any, **options: Any) -> list[FrontRow]:
            asked.update(options, study=config.name)
            sys.stdout.write("from a library\n")
            display.say("scored: 10/10")
            return [FrontRow.from_json(row(key, None, kept)) for key, kept in (("a1", 0.5), ("dense", 1.0))]

        monkeypatch.setattr("prunefront.pipelines.study.run.run", searched)
        ended = run("search", "s.toml", "--json", "--address", "auto", "--fresh")
        assert [r["key"] for r in ended.document] == ["a1", "dense"]
        assert all(text in ended.err for text in ("from a library", "scored: 10/10", "next:"))
        assert asked == {
            "study": "digits4",
            "address": "auto",
            "resume": False,
            "fresh": True,
            "metrics_port": None,
            "without_ray": False,
        }
        plain = run("search", "s.toml")
        assert "next:" in plain.out
        assert plain.err == ""

    def test_of_a_search_whose_events_want_stdout_as_well(
        self, here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "give --log-json a file" in run("search", "s.toml", "--json", "--log-json", "-").err
        monkeypatch.setenv("PRUNEFRONT_LOG", "json")
        assert "unset PRUNEFRONT_LOG" in run("search", "s.toml", "--json").err

    def test_of_the_ui(self, searched: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mlflow_ui, "reach", lambda uri: None)
        Path("s.toml").write_text(
            Path("s.toml").read_text() + '[tracking]\nuri = "https://me:s3cret@host:5000"\n'
        )
        ended = run("ui", "s.toml", "--json")
        assert ended.document == {"address": "https://me:***@host:5000"}
        assert "MLflow is at" in ended.err
        assert "there is no tracking database" in run("ui", "--json").err

    def test_of_a_latency_table(self, searched: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, Any] = {}

        def measured(config: Any, out: Any, *, display: Any, **options: Any) -> Any:
            asked.update(options, path=config.path)
            display.say("timing")
            return SimpleNamespace(to_json=lambda: {"points": 3}, lines=lambda: ["3 networks"], path="there")

        monkeypatch.setattr(latency_table, "measure_for", measured)
        ended = run("latency-table", "digits4", "--replace", "--json")
        assert ended.document == {"points": 3}
        assert ended.err.splitlines() == ["timing", "3 networks", "written to there"]
        assert asked == {"path": searched, "fresh": True, "joint": 48, "address": None}


class TestReplace:
    def test_a_fetched_network(self, searched: Path, run: Run) -> None:
        assert run("fetch", "digits4", "--key", "a1").code == 0
        assert "choose another folder" in run("fetch", "digits4", "--key", "dense").err
        assert run("fetch", "digits4", "--key", "dense", "--replace").code == 0
        assert '"key": "dense"' in Path("best/card.md").read_text()
        assert run("fetch", "digits4", "--key", "dense", "--replace", "-o", "new/one").code == 0
        assert sorted(p.name for p in Path("new").iterdir()) == ["one"]

    def test_a_failed_fetch_replaces_nothing(self, searched: Path, run: Run) -> None:
        assert run("fetch", "digits4", "--key", "a1").code == 0
        assert run("fetch", "digits4", "--key", "nothing", "--replace").code == 2
        assert '"key": "a1"' in Path("best/card.md").read_text()
        assert not list(Path().glob(".best.*"))

    @pytest.mark.parametrize("taken", ["folder", "file", "beside"])
    def test_never_anything_but_a_network(self, taken: str, searched: Path, run: Run) -> None:
        best = Path("best")
        if taken == "file":
            best.write_text("mine")
        else:
            best.mkdir()
            (best / "mine.txt").write_text("mine")
            if taken == "beside":
                (best / "manifest.json").write_text("{}")
        assert "replaces only a fetched network" in run("fetch", "digits4", "--replace").err
        assert (best if taken == "file" else best / "mine.txt").read_text() == "mine"

    def test_a_table_of_evaluations(self, searched: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def rehearsed(*_: Any, **__: Any) -> Any:
            return SimpleNamespace(to_json=dict), SimpleNamespace(to_json=lambda: {"rows": []})

        monkeypatch.setattr(rehearsal, "rehearse", rehearsed)
        Path("t.json").write_text("mine")
        assert "--replace" in run("rehearse", "digits4", "--table", "t.json", "--json").err
        assert Path("t.json").read_text() == "mine"
        assert run("rehearse", "digits4", "--table", "t.json", "--replace", "--json").document == {}
        assert "rows" in Path("t.json").read_text()


@pytest.mark.filterwarnings("default::prunefront.pipelines.config.earlier_keys.MovedKey")
def test_a_study_file_with_earlier_keys_works_with_a_line_for_each(run: Run, tmp_path: Path) -> None:
    study = tmp_path / "earlier.toml"
    study.write_text(f'controls = ["scratch_b"]\n{TEXT}[space]\nbits = [32, 8]\n')
    ended = run("inspect", str(study), "--json")
    assert ended.code == 0
    assert ended.document["layers"][0]["bits"] == [32, 8]
    assert [line for line in ended.err.splitlines() if line.startswith("notice: ")] == [
        f"notice: {study}: 'space.bits' is now called 'quantisation.bits'; the old name still works",
        f"notice: {study}: 'controls' is now called 'controls.methods'; the old name still works",
    ]
