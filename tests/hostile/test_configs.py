"""Study files: TOML as text, and nested dicts."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.pipelines.config.read import load, parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.search.outcomes.constraints import parse as parse_bound
from tests.hostile.strategies import NUMBERS, TEXTS, answered, as_lists, changed, damaged, fuzzed

TEXT = (Path(__file__).parents[2] / "examples" / "digits-everything.toml").read_text()
STUDY: dict[str, Any] = {
    "name": "s",
    "controls": ["scratch_e"],
    "seed": 1,
    "folder": "studies",
    "model": {"factory": "digits_cnn", "options": {"width": 8}, "weights": "w.pt", "license": "mit"},
    "data": {"source": "parquet", "train": "a.parquet", "mean": [0.5], "std": [0.2], "options": {"a": [1]}},
    "dense": {"epochs": 1, "learning_rate": 0.1},
    "space": {"per_group": {"conv1": ["l1"]}, "bits": [8, 32], "densities": [0.5], "max_ratio": 0.5},
    "goal": {
        "objectives": ["accuracy", "macs"],
        "constraints": ["accuracy >= -1pt", "latency_ms <= 60%"],
    },
    "search": {"options": {"population": 8}},
    "start": {"warm_start": ["s3://bucket/x"]},
    "scoring": {"train_images": 0},
    "training": {"epochs": 2, "options": {"rounds": 5}, "weight_decay": 0.1},
    "tracking": {"uri": "http://host:5000"},
    "artifacts": {"uri": "s3://bucket/x", "endpoint_url": "http://host:9000"},
    "cluster": {"workers": 2, "gpus_per_worker": 0.5},
}
BOUNDED = {**STUDY, "goal": {"constraints": {"macs": {"low": 1, "high": 1e9}}}}


def round_trip(config: StudyConfig | None) -> None:
    """What was taken is kept in study.json, read back the same, and quoted by nothing that a terminal obeys."""
    if config is None:
        return
    text = json.dumps(config.to_json(), allow_nan=False)
    text.encode()
    kept = parse(json.loads(text), source="study.json", base=Path())
    assert kept.to_json() == config.to_json()
    assert all(str(name).isprintable() for name in (config.name, config.artifact_uri, config.tracking_uri))


@given(data=st.sampled_from([STUDY, BOUNDED]).flatmap(changed))
@fuzzed
def test_nested_dicts(data: Any) -> None:
    round_trip(answered(lambda: parse(as_lists(data), source="s.toml", base=Path("/x"))))


@st.composite
def toml(draw: st.DrawFn) -> bytes:
    """A study file with lines of it changed, doubled or made up."""
    lines = TEXT.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        name, equals, _ = lines[at].partition("=")
        match draw(st.integers(0, 5)):
            case 0:
                lines.insert(at, lines[draw(st.integers(0, len(lines) - 1))])
            case 1:
                lines.insert(at, draw(TEXTS))
            case 2 if equals:
                deep = draw(st.sampled_from([3, 2000]))
                lines[at] = f"{name}= " + draw(
                    st.sampled_from(["[" * deep + "]" * deep, "{a=" * deep + "1" + "}" * deep, "1979-05-27"])
                )
            case 3 if equals:
                lines[at] = f"{name}= {draw(NUMBERS)}".replace("True", "true")
            case 4:
                lines.insert(at, ".".join(["a"] * draw(st.sampled_from([2, 400]))) + " = 1")
            case _ if equals:
                lines[at] = f"{name}= {json.dumps(draw(TEXTS))}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


@given(content=toml() | damaged(TEXT.encode()) | st.binary(max_size=60))
@fuzzed
def test_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "s.toml"
    file.write_bytes(content)
    round_trip(answered(lambda: load(file)))


@pytest.mark.parametrize(
    "text",
    [
        "a." * 30_000 + "a = 1",
        "x = {" + "a . " * 15_000 + "a = 1}",
        'x = "' + "a" * 100_000 + '"',
        "x = " + "[" * 30_000,
        "x = 1979-13-40",
        "x = " + "1" * 5_000,
        "x = nan",
    ],
)
def test_files_that_take_long_or_never_end(tmp_path: Path, text: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(text)
    assert answered(lambda: load(file)) is None


@given(
    text=st.one_of(
        st.tuples(
            st.sampled_from(["accuracy", "latency_ms", "latency_ratio", "size_bytes", "macs", "speed", ""]),
            st.sampled_from(["<=", ">=", "=", "≤", "<", ""]),
            st.sampled_from(["", "-", "+", "−"]),
            st.one_of(
                st.decimals(allow_nan=False).map(str),
                st.sampled_from(
                    ["1e999999999", "1e-999999999", "9" * 500, "1_0", ".5", "0.5.5", "1e", "nan"]
                ),
            ),
            st.sampled_from(["", "%", "pt", "ms", "kB", "G", "% of dense", "of dense", "\x1b[1m", "\n"]),
        ).map(" ".join),
        TEXTS,
    )
)
@fuzzed
def test_bounds_in_words(text: str) -> None:
    bound = answered(lambda: parse_bound(text))
    if bound is not None:
        assert parse_bound(str(bound)) == bound
