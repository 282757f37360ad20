"""Attacks on our own promises that once got through, each as its kind: what others wrote is read, and nothing else."""

import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.convert import convert
from prunefront.pipelines.artifacts.fetch import fetch_from
from prunefront.pipelines.artifacts.manifest import LIMITS
from prunefront.pipelines.artifacts.publish import publish
from prunefront.pipelines.artifacts.verify import verify
from prunefront.pipelines.cli.main import main
from prunefront.pipelines.config.read import ConfigError, load, parse
from prunefront.pipelines.events.printing import people, write_anywhere, write_line
from prunefront.pipelines.formats.onnx_file import read_model
from prunefront.pipelines.fronts.row import read_rows
from prunefront.pipelines.fronts.table import controls_table, table
from prunefront.pipelines.journal.journal import StudyRunning, lock, read_events, read_json, write_json
from prunefront.pipelines.journal.layout import BOUNDS, FRONT, JOURNAL, LOCK, OWNER, REPORT, RUN, STUDY
from prunefront.pipelines.recovery.owner import Owner
from prunefront.pipelines.recovery.state_store import StateStore, load_ended_run
from prunefront.pipelines.stores.folder import DirectoryStore
from prunefront.pipelines.stores.memory import MemoryStore
from prunefront.pipelines.study.find import find, tracking_uri
from prunefront.pipelines.study.garbage import delete_garbage, find_garbage
from prunefront.pipelines.study.servers import remember
from prunefront.reading import read_bytes
from prunefront.text import plain
from tests.pipelines.fronts.test_front import data, read_back
from tests.stores import file_of_artifact

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program in this process, in a folder of its own: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prunefront", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study's folder as somebody may hand it on, with a front."""
    folder = tmp_path / "given"
    config = parse({"name": "given", "model": {"factory": "digits_cnn"}}, source="here", base=Path())
    write_json(folder / STUDY, config.to_json())
    write_json(folder / FRONT, [data("dense", 1.0, 0.9), data("aa", 0.5, 0.8)])
    (folder / JOURNAL).write_text("")
    return folder


def one_line(err: str) -> str:
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()
    return line


# --- 2: networks that reach outside of their file


def network(**changes: Any) -> onnx.ModelProto:
    """y = x + c, an ONNX file of one tensor."""
    tensor = onnx.numpy_helper.from_array(np.ones(2, np.float32), "c")
    node = onnx.helper.make_node(changes.get("op", "Add"), ["x", "c"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 2]) for n in "xy"]
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [tensor]))


def external() -> bytes:
    found = network()
    found.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    found.graph.initializer[0].external_data.add(key="location", value="../../../../etc/passwd")
    return found.SerializeToString()


def hidden() -> bytes:
    """External data in a subgraph's attribute of a function."""
    found = network()
    inner = onnx.helper.make_node("Constant", [], ["k"])
    inner.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR))
    inner.attribute[0].t.external_data.add(key="location", value="/etc/passwd")
    found.functions.add(name="f", domain="d", node=[inner])
    return found.SerializeToString()


def two_formats() -> bytes:
    """A file that is ONNX, by an unknown field at its begin, and ONNX Runtime's own format by its bytes 4 to 8."""
    mark = b"\xfa\x7f" + bytes([6]) + b"\x00" + b"ORTM" + b"\x00"  # field 2047, 6 bytes long
    found = mark + network().SerializeToString()
    assert found[4:8] == b"ORTM"
    onnx.ModelProto.FromString(found)
    return found


BAD_NETWORKS = {
    "external": external,
    "hidden": hidden,
    "ORT": two_formats,
    "compiled beside it": lambda: network(op="EPContext").SerializeToString(),
    "a page": lambda: b"<html></html>",
}


def forged(folder: Path, content: bytes) -> tuple[MemoryStore, str]:
    """An artifact whose digests fit."""
    made, store = folder / "made", MemoryStore()
    made.mkdir()
    for name in LIMITS:
        (made / name).write_bytes(file_of_artifact(name, b"{}"))
    (made / "model.onnx").write_bytes(content)
    return store, publish(store, made, "dense").id


@pytest.mark.parametrize("kind", BAD_NETWORKS)
def test_no_way_out_of_an_artifact_lets_such_a_network_through(tmp_path: Path, kind: str) -> None:
    store, identity = forged(tmp_path, BAD_NETWORKS[kind]())
    with pytest.raises(PrunefrontError, match=r"not read|not an ONNX model"):
        read_model(tmp_path / "made" / "model.onnx")
    with pytest.raises(PrunefrontError, match=r"not read|not an ONNX model"):
        fetch_from(store, identity, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for format, suffix in (("onnx", ".onnx"), ("openvino", ".xml"), ("int8", ".onnx"), ("pt2", ".pt2")):
        out = tmp_path / f"copy{suffix}"
        with pytest.raises(PrunefrontError, match=r"not read|not an ONNX model"):
            convert(tmp_path / "made", format, out)
        assert not out.exists()
    with pytest.raises(PrunefrontError, match=r"not read|not an ONNX model"):
        verify(tmp_path / "made")


# --- 4 and 8: whatever lies where a file of ours should


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    """A socket, by a short name, as its address must be short."""
    here = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": fifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "socket": listening,
    "link to a pipe": lambda path: (fifo(path.with_name("pipe")), path.symlink_to(path.with_name("pipe"))),
    "link to itself": lambda path: path.symlink_to(path.name),
}
NO_TEXTS: dict[str, bytes] = {
    "latin": b'{"name": "\xe9"}',
    "utf-16": '{"name": 1}'.encode("utf-16"),
    "deep": b"[" * 100_000,
    "twice": b'{"name": 1, "name": 2}',
    "nan": b'{"name": NaN}',
    "half": b'{"name": "\\ud800"}',
    "nothing": b"",
    "nul": b"\0" * 1000,
    "huge number": b'{"name": 1e999}',
}
READERS: dict[str, tuple[str, ...]] = {
    STUDY: ("status",),
    JOURNAL: ("status",),
    FRONT: ("front",),
    BOUNDS: ("front",),
    OWNER: ("gc",),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", [*NO_FILES, *NO_TEXTS])
def test_whatever_lies_where_a_file_of_a_study_should_is_one_line(
    run: Run, study: Path, name: str, kind: str
) -> None:
    path = study / name
    path.unlink(missing_ok=True)
    if kind in NO_FILES:
        NO_FILES[kind](path)
    else:
        path.write_bytes(NO_TEXTS[kind] + b"\n" * (name == JOURNAL))
    if kind == "link to itself" or (name == JOURNAL and kind == "nothing"):
        run(*READERS[name], str(study))  # as good as none
        return
    code, _, err = run(*READERS[name], str(study))
    assert code == 2
    assert path.name in one_line(err)


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_study_file_or_lock_that_is_none_is_not_waited_for(
    run: Run, tmp_path: Path, study: Path, kind: str
) -> None:
    NO_FILES[kind](tmp_path / "study.toml")
    code, _, err = run("inspect", "study.toml")
    assert code == 2
    assert "study.toml" in one_line(err)
    (tmp_path / "study.toml").rename(study / LOCK) if kind != "link to itself" else None
    if kind != "link to itself":
        assert run("status", str(study))[0] == 0, "nobody holds it"
        with pytest.raises(PrunefrontError, match="cannot be"), lock(study):
            raise AssertionError("it is no lock")


@pytest.mark.parametrize("kind", NO_FILES)
def test_nothing_but_a_file_is_read(tmp_path: Path, kind: str) -> None:
    NO_FILES[kind](tmp_path / "x")
    for read in (read_bytes, read_model, read_json, load, read_events, lambda p: convert(p.parent, "onnx")):
        if read is read_events and not (tmp_path / "x").exists():
            continue  # a journal that is not there has no events
        with pytest.raises((PrunefrontError, OSError)):
            read(tmp_path / "x")


def test_a_file_is_read_up_to_its_limit_whatever_it_says_of_itself(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(bytes(10))
    assert len(read_bytes(file, limit=10)) == 10
    with pytest.raises(PrunefrontError, match="10 bytes where at most 9"):
        read_bytes(file, limit=9)
    with pytest.raises(PrunefrontError, match="more than the 10 bytes"):
        read_bytes("/proc/self/status", limit=10)  # which says that it has none
    os.truncate(file, 1 << 40)  # takes no disk
    with pytest.raises(PrunefrontError, match="where at most"):
        read_json(file)


def test_what_is_written_into_a_study_from_elsewhere_stays_in_its_folder(
    run: Run, study: Path, tmp_path: Path
) -> None:
    """A link in the place of the page, or of the lock, would have a file of this person's overwritten."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in (LOCK, REPORT):
        (study / name).symlink_to(mine)
    assert run("front", str(study))[0] == 0
    assert not (study / REPORT).is_symlink()
    with pytest.raises(PrunefrontError, match="cannot be written"), lock(study):
        raise AssertionError("it is no lock")
    assert mine.read_text() == "mine"


# --- 5: whose servers get this person's credentials


def test_a_folder_from_elsewhere_does_not_choose_who_gets_credentials(
    run: Run, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "socket.create_connection", lambda address, *_, **__: asked.append(str(address)) or _refuse()
    )
    config = read_json(study / STUDY)
    config["artifacts"] |= {"uri": "s3://bucket/p", "endpoint_url": "http://127.0.0.1:9"}
    config["tracking"] |= {"uri": "http://127.0.0.1:9/mlflow"}
    write_json(study / STUDY, config)
    for words in (
        ("fetch", str(study)),
        ("gc", str(study)),
        ("gc", str(study), "--delete"),
        ("ui", str(study)),
    ):
        code, _, err = run(*words)
        assert code == 2
        assert "names the server http://127.0.0.1:9" in one_line(err)
        assert "which no search of yours has used" in err
    assert asked == []
    remember("http://127.0.0.1:9/other", None, "sqlite:///x.db", "file:///x", "folder")
    assert find(str(study)).endpoint_url() == "http://127.0.0.1:9"
    assert tracking_uri(str(study)) == "http://127.0.0.1:9/mlflow"
    assert json.loads((tmp_path / "state/prunefront/servers.json").read_text()) == ["http://127.0.0.1:9"]
    (tmp_path / "state/prunefront/servers.json").write_text("{")
    with pytest.raises(PrunefrontError, match="used"):
        find(str(study)).endpoint_url()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert find(str(study)).endpoint_url() == "http://127.0.0.1:9"


def _refuse() -> None:
    raise ConnectionRefusedError(111, "Connection refused")


# --- 6: whose networks are deleted


def test_a_copied_study_deletes_nothing_of_the_one_whose_store_it_names(
    run: Run, study: Path, tmp_path: Path
) -> None:
    root = DirectoryStore(tmp_path / "root")
    made = tmp_path / "made"
    made.mkdir()
    for name in LIMITS:
        (made / name).write_bytes(file_of_artifact(name, b"{}"))
    publish(root, made, "running")
    config = read_json(study / STUDY)
    config["artifacts"]["uri"] = str(tmp_path / "root")
    write_json(study / STUDY, config)
    before = sorted(s.key for s in root.list())
    code, _, err = run("gc", str(study), "--older-than", "0s", "--dominated", "--delete")
    assert "has no owner.json" in one_line(err) if code else before
    write_json(tmp_path / "root" / OWNER, asdict(Owner.new("theirs")))
    for words in (("gc", str(study)), ("gc", str(study), "--older-than", "0s", "--delete")):
        code, _, err = run(*words)
        assert code == 2
        assert "belongs to study 'theirs'" in one_line(err)
    write_json(study / OWNER, asdict(Owner.new("given")))
    code, _, err = run("gc", str(study), "--older-than", "0s", "--delete")
    assert code == 2
    assert [k for k in sorted(s.key for s in root.list()) if k != OWNER] == before


def test_without_an_owner_nothing_is_deleted(tmp_path: Path) -> None:
    store = MemoryStore()
    for name in ("dense-0123456789ab/card.md", "dense-0123456789ab/plan.json"):
        store.objects[name] = b""
        store.modified[name] = 0.0
    at = open_study_store_of(store)
    found = find_garbage(at, older_than=0.0)
    assert found.items
    with pytest.raises(PrunefrontError, match=r"has no owner\.json"):
        delete_garbage(at, found)
    assert len(store.objects) == 2


def open_study_store_of(store: MemoryStore) -> Any:
    from prunefront.pipelines.study.garbage import StudyStore

    return StudyStore(store, None, (), frozenset(), None)


# --- 7: nothing from a file is markup, ANSI or HTML

NASTY = (
    "[/foo]",
    "[link=http://x]y[/link]",
    "[bold red]",
    ":smile:",
    "\x1b]0;x\x07",
    "\x1b[31m",
    "\u202e",
    "<b>",
    "\ud800",
)


@settings(max_examples=30)
@given(st.lists(st.sampled_from(NASTY) | st.text(max_size=8), min_size=1, max_size=4).map("".join))
def test_whatever_a_text_is_it_is_printed_as_text(text: str) -> None:
    out = io.StringIO()
    console = people(file=out, force_terminal=True, width=4000, color_system="truecolor")
    console.print(text)
    console.print(text, style="bold", soft_wrap=True)
    write_line(text, out)
    shown = out.getvalue()
    # rich says no more to a terminal than the style of the second line
    rest = shown.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert all(c.isprintable() or c in "\n\t\u00a0" for c in rest)
    assert plain(plain(text)) == plain(text)
    shown.encode()


@pytest.mark.parametrize("text", NASTY[:5])
def test_a_front_from_a_store_is_text_in_tables_pages_and_commands(run: Run, study: Path, text: str) -> None:
    rows = [data("dense", 1.0, 0.9), data(text, 0.5, 0.8, made=text, artifact=None)]
    rows.append(data("c", 0.5, 0.7, control=text, of=text, epochs=1))
    if any(not c.isprintable() for c in text):
        with pytest.raises(PrunefrontError):
            read_rows(rows)
        return
    out = io.StringIO()
    console = people(file=out, width=400)
    front = read_rows(rows)
    console.print(table(front))
    console.print(controls_table(front))
    assert text[:10] in out.getvalue()
    write_json(study / FRONT, rows)
    code, shown, _ = run("front", str(study))
    assert code == 0
    assert text[:10] in shown
    made = (study / REPORT).read_text()
    assert {row["key"] for row in read_back(made)["rows"]} == {"dense", text, "c"}
    assert text not in made or "<" not in text
    code, _, err = run("fetch", str(study), "--key", text)
    assert code == 2
    one_line(err)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_whatever_the_encoding_something_readable_is_written(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    write_anywhere([stream])
    write_line("12 × 8 ± 1 … → 你好 \ud800", stream)
    people(file=stream, width=100).print(table(read_rows([data("dense", 1.0, 0.9)])))
    stream.flush()
    shown = raw.getvalue().decode(encoding)
    assert "12 x 8 +- 1 ... ->" in shown if encoding == "ascii" else "12 × 8 ± 1" in shown
    assert "dense" in shown


def test_in_the_c_locale_and_into_a_closed_pipe() -> None:
    """In processes of their own, as it is what the interpreter makes of its streams that is tried."""
    program = shlex.join([sys.executable, "-m", "prunefront", "list", "settings"])
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        f"{program} | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) in ((128 + signal.SIGPIPE, ""), (0, ""))
    assert done.stdout.isascii()
    assert len(done.stdout.splitlines()) == 1


# --- 9: a copy of a study's folder


def test_a_copied_folder_is_not_the_place_where_the_study_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine of the same name, made of the same image: the driver's heartbeat counts, not the copy's record."""
    folder, copy = tmp_path / "one", tmp_path / "two"
    folder.mkdir()
    state = StateStore(MemoryStore(), "0" * 32)
    mine = state.begin(1, folder)
    assert load_ended_run(folder) == mine
    copy.mkdir()
    (copy / RUN).write_bytes((folder / RUN).read_bytes())
    assert load_ended_run(copy) is None
    assert "last heartbeat" in state.latest(load_ended_run(copy)).alive
    boot = tmp_path / "boot_id"
    boot.write_text("another start")
    monkeypatch.setattr("prunefront.pipelines.journal.place._BOOT", boot)
    assert load_ended_run(folder) is None, "another machine, or this one since it was restarted"


def test_of_two_drivers_whose_locks_do_not_hold_the_earlier_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network disk that locks for one machine alone."""
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    with lock(tmp_path) as first:
        first()
        with lock(tmp_path) as second:
            second()
            with pytest.raises(StudyRunning, match="run by another process by now"):
                first()
        (tmp_path / LOCK).unlink()
        first()


# --- surroundings


PARSES = "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--width')\nparser.parse_args()\n"


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (PARSES, "parsed the command line"),
        ("import sys\nsys.exit(3)\n", "ended the program (3)"),
        ("raise SystemExit\n", "ended the program (None)"),
        ("raise KeyError('x')\n", "failed: KeyError"),
    ],
)
def test_a_module_that_is_a_program_is_said_to_be_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, said: str
) -> None:
    name = f"program_{len(module)}_{len(said)}"
    (tmp_path / f"{name}.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "study.toml").write_text(f'name = "x"\n[model]\nfactory = "{name}:Net"\n')
    code, _, err = run("inspect", "study.toml")
    assert code == 2
    assert said in one_line(err)


NETWORKS = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

def device():
    torch.set_default_device("meta")
    return net()
"""


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            "net().half()",
            "is float16, and networks are cut and exported in float32; return the network as .float()",
        ),
        ("net().bfloat16()", "is bfloat16"),
        ("net().double()", "is float64"),
        ("net().to('meta')", "is on the device 'meta', without numbers"),
        ("device()", "calls torch.set_default_device('meta')"),
        ("nn.DataParallel(net())", "trace the network itself, model.module"),
    ],
)
def test_numbers_that_cannot_be_cut_and_exported_are_said_first(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str, said: str
) -> None:
    name = f"numbers_{len(made)}_{len(said)}"
    (tmp_path / f"{name}.py").write_text(f"{NETWORKS}\ndef made():\n    return {made}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "study.toml").write_text(f'name = "x"\n[model]\nfactory = "{name}:made"\n')
    code, _, err = run("inspect", "study.toml")
    assert code == 2
    assert said in one_line(err)
    assert torch.get_default_device().type == "cpu"


@pytest.mark.parametrize(
    ("section", "key"), [("model", "factory"), ("task", "name"), ("training", "loop"), ("data", "source")]
)
def test_a_dot_in_the_place_of_a_colon_is_seen(run: Run, tmp_path: Path, section: str, key: str) -> None:
    model = "" if section == "model" else '[model]\nfactory = "digits_cnn"\n'
    (tmp_path / "study.toml").write_text(f'name = "x"\n{model}[{section}]\n{key} = "mynet.parts.Net"\n')
    code, _, err = run("inspect" if section != "training" else "search", "study.toml")
    assert code == 2
    assert "did you mean 'mynet.parts:Net'?" in one_line(err)


def test_a_byte_order_mark_is_no_part_of_a_study_file(tmp_path: Path) -> None:
    text = 'name = "x"\n[model]\nfactory = "digits_cnn"\n'
    (tmp_path / "a.toml").write_text(text, encoding="utf-8-sig")
    assert load(tmp_path / "a.toml").name == "x"
    (tmp_path / "b.toml").write_text(text, encoding="utf-16")
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        load(tmp_path / "b.toml")
