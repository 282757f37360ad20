"""The one reader of files, given bytes as nobody should write them, and whatever else lies where a file should."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront import reading
from prunefront.pipelines.formats.onnx_file import read_model
from prunefront.pipelines.journal.journal import read_events
from prunefront.pipelines.study.servers import check_own
from tests.hostile.strategies import TEXTS, answered, changed, damaged, fuzzed
from tests.hostile.test_attacks import network

DOCUMENT = b'{"name": ["a", 1, 2.5, null, true, {"b": "\\u00e9"}], "more": {"c": [1, 2, 3]}}\n'


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reading") / "file"


@given(content=damaged(DOCUMENT) | damaged(b"\xef\xbb\xbf" + DOCUMENT) | st.binary(max_size=64))
@fuzzed
def test_texts_and_json(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    for read in (reading.read_text, reading.read_json, read_events):
        answered(lambda read=read: read(file))
    assert reading.read_bytes(file) == content


@given(content=damaged(network().SerializeToString()))
@fuzzed
def test_onnx_files(content: bytes) -> None:
    answered(lambda: read_model(content))


@given(content=damaged(DOCUMENT), mode=st.sampled_from(["file", "pipe", "folder", "loop", "long", "device"]))
@fuzzed
def test_what_is_no_file(file: Path, content: bytes, mode: str) -> None:
    path = file.with_name(mode if mode != "long" else "a" * 300)
    if mode == "device":
        path = Path("/dev/zero")
    elif not os.path.lexists(path):
        match mode:
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "loop":
                path.symlink_to(path)
            case "file":
                path.write_bytes(content)
    for read in (reading.read_bytes, reading.read_text, reading.read_json, read_model):
        answered(lambda read=read: read(path))


@given(
    address=TEXTS
    | changed({"a": "http://u:p@h:1/x"}).map(str)
    | st.from_regex(r"\A[a-z+]{1,6}://[\S]{0,12}\Z")
)
@fuzzed
def test_addresses_of_servers(address: Any) -> None:
    answered(lambda: check_own(address, "key", "say so", Path("folder")))
