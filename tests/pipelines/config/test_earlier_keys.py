"""Study files of earlier versions: every key that has another name now still works, and is said once."""

import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest

import prunefront as pf
from prunefront.pipelines.config.differences import differences
from prunefront.pipelines.config.earlier_keys import MOVED, MovedKey, under_new_keys
from prunefront.pipelines.config.read import ConfigError, load, parse, settings

EARLIER = """
name = "s"
controls = ["scratch_b"]
controlled = 1
[model]
factory = "digits_cnn"
[space]
criteria = ["l1"]
bits = [32, 8]
quantiser = "affine"
per_channel = false
activations = "dorefa"
activation_bits = 4
[search]
candidates = 9
objectives = ["accuracy", "macs"]
constraints = ["macs <= 50%"]
allocators = ["erk"]
seeds = 3
warm_start = "s3://bucket/x"
train_images = 64
validation_limit = 100
"""
TODAY = """
name = "s"
[model]
factory = "digits_cnn"
[space]
criteria = ["l1"]
[quantisation]
bits = [32, 8]
quantiser = "affine"
per_channel = false
activations = "dorefa"
activation_bits = 4
[controls]
methods = ["scratch_b"]
networks = 1
[goal]
objectives = ["accuracy", "macs"]
constraints = ["macs <= 50%"]
[search]
candidates = 9
[start]
allocators = ["erk"]
seeds = 3
warm_start = "s3://bucket/x"
[scoring]
train_images = 64
validation_limit = 100
"""


def test_an_earlier_file_is_read_as_todays_and_each_key_is_named(tmp_path: Path) -> None:
    earlier, today = tmp_path / "earlier.toml", tmp_path / "today.toml"
    earlier.write_text(EARLIER)
    today.write_text(TODAY)
    with pytest.warns(MovedKey) as caught:
        found = load(earlier)
    assert found == load(today)
    lines = [str(warning.message) for warning in caught]
    assert len(lines) == len(MOVED)
    for before, now in MOVED.items():
        assert f"{earlier}: {before!r} is now called {now!r}; the old name still works" in lines


def test_a_mapping_from_python_is_read_alike_and_each_key_is_named() -> None:
    with pytest.warns(MovedKey) as caught:
        found = pf.load_study(tomllib.loads(EARLIER))
    assert found == pf.load_study(tomllib.loads(TODAY))
    assert {str(w.message) for w in caught} == {
        f"the study: {before!r} is now called {now!r}; the old name still works"
        for before, now in MOVED.items()
    }
    assert {Path(w.filename).name for w in caught} == {Path(__file__).name}, "who gave the keys is named"


def _places() -> dict[str, tuple[str, str]]:
    """Returns earlier key -> section and name of today's."""
    return {before: (now.split(".")[0], now.split(".")[1]) for before, now in MOVED.items()}


def test_a_study_begun_under_earlier_keys_goes_on_and_differs_only_in_what_was_changed() -> None:
    """The kept settings are those that an earlier version wrote: every key, under its name of then."""
    config = parse(tomllib.loads(TODAY), source="s.toml", base=Path())
    kept: dict[str, Any] = config.to_json()
    values = {before: config.to_json()[section][key] for before, (section, key) in _places().items()}
    for section in ("quantisation", "controls", "goal", "start", "scoring"):
        assert kept.pop(section).keys() == {key for s, key in _places().values() if s == section}
    for before, value in values.items():
        holder, _, name = before.rpartition(".")
        (kept[holder] if holder else kept)[name] = value
    assert differences(config, kept) == []
    kept["search"]["seeds"] = 4
    kept["search"]["constraints"] = []
    assert differences(config, kept) == ["goal.constraints", "start.seeds"]


def test_todays_keys_are_settings_and_earlier_ones_are_not() -> None:
    known = settings()
    assert set(MOVED.values()) <= set(known)
    assert set(MOVED).isdisjoint(known)


def test_what_a_study_keeps_is_read_without_a_word() -> None:
    data = {"name": "s", "model": {"factory": "digits_cnn"}, "controls": ["scratch_b"], "controlled": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = parse(data, source="study.json", base=Path())
    assert (config.controls.methods, config.controls.networks) == (("scratch_b",), 3)
    assert data["controls"] == ["scratch_b"], "what was given stays as it was"


def test_a_key_under_both_names_is_refused() -> None:
    data = {"name": "s", "model": {"factory": "f"}, "space": {"bits": [8]}, "quantisation": {"bits": [4]}}
    with pytest.raises(
        ConfigError, match=r"'space.bits' is now called 'quantisation.bits', and both are given"
    ):
        parse(data, source="s.toml", base=Path())


@pytest.mark.parametrize(
    "data", [{"space": 3}, {"controls": {"methods": ["a"]}}, {"quantisation": 1, "space": {"bits": 1}}]
)
def test_what_holds_no_earlier_key_stays_as_it_is(data: dict[str, object]) -> None:
    assert under_new_keys(data) == (data, [])
