"""Files that are whole or not there at all."""

from pathlib import Path
from typing import Any

import pytest

from prunefront.atomic import move_whole, target_name, temporary, write_whole


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def half(out: Any) -> None:
        out.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(target, half)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]
    assert target.read_text() == "old"


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    source, target = tmp_path / "new", tmp_path / "file"
    source.write_text("new")
    target.write_text("old")
    move_whole(source, target)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]
    assert target.read_text() == "new"


def test_what_a_killed_writer_leaves_is_known_by_its_name(tmp_path: Path) -> None:
    with temporary(tmp_path / "front.json", lambda out: out.write(b"[]")) as path:
        assert target_name(path.name) == "front.json"
    assert [target_name(name) for name in ("front.json", ".front.json", ".front.json.new")] == [None] * 3
