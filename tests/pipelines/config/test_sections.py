"""Study files: what is right comes through unchanged, what is wrong is told in one line."""

import ast
import importlib
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from prunefront.pipelines.config.read import ConfigError, load, parse, settings
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.search.outcomes.constraints import parse as parse_bound

ROOT = Path(__file__).parents[3]
BASE = {"name": "s", "model": {"factory": "digits_cnn"}}


def refusal(**sections: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(BASE | sections, source="s.toml", base=Path("folder"))
    message = str(caught.value)
    assert message.startswith("s.toml: ")
    assert "\n" not in message
    return message


def test_latency_may_be_asked_for_and_its_table_is_relative_to_the_study_file() -> None:
    sections = {
        "goal": {"objectives": ["accuracy", "latency_ratio"], "constraints": {"latency_ms": {"high": 2.0}}},
        "measure": {"latency_table": "t.json"},
    }
    config = parse(BASE | sections, source="s.toml", base=Path("folder"))
    assert config.measure.latency_table == Path("folder/t.json")
    assert parse(config.to_json(), source="again", base=Path()) == config


def test_defaults_round_trip_through_json() -> None:
    config = parse(BASE, source="s.toml", base=Path())
    assert parse(config.to_json(), source="again", base=Path()) == config


def test_an_unknown_key_names_the_nearest_and_all_known_ones() -> None:
    message = refusal(search={"candidate": 3})
    assert "'search.candidate'" in message
    assert "'candidates'" in message
    assert "searcher" in message


def test_an_unknown_section() -> None:
    assert "did you mean 'training'" in refusal(trainings={})


def test_an_unknown_key_below_a_name_of_the_users_own() -> None:
    assert "did you mean 'high'" in refusal(goal={"constraints": {"macs": {"hihg": 1.0}}})


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (["accuracy >= -1pt", "latency_ms<=60%", "size_bytes <= 250kB"], None),
        ("macs <= 50%", ["macs <= 50%"]),
        ({"macs": {"high": 1e7}, "accuracy": {"low": 0.85}}, ["macs <= 10M", "accuracy >= 85%"]),
        ({"latency_ms": {"high": 2.5}, "params": {"low": 1e3, "high": 2e3}}, None),
        ([], []),
    ],
)
def test_bounds_are_given_as_texts_or_as_a_table_and_kept_as_texts(
    given: object, texts: list[str] | None
) -> None:
    config = parse(BASE | {"goal": {"constraints": given}}, source="s.toml", base=Path())
    kept = config.to_json()["goal"]["constraints"]
    assert texts is None or kept == texts
    assert [parse_bound(text) for text in kept] == list(config.goal.constraints)
    assert parse(config.to_json(), source="again", base=Path()) == config


def test_every_part_of_a_study_has_names_and_types_of_the_whole() -> None:
    """`StudyConfig.part` goes by field names alone, which no type checker follows."""
    whole = get_type_hints(StudyConfig)
    properties = {n: p for n, p in vars(StudyConfig).items() if isinstance(p, property)}
    whole |= {name: get_type_hints(p.fget)["return"] for name, p in properties.items()}
    asked = set()
    for room in ("study", "cli"):
        for path in sorted((ROOT / "pipelines" / room).glob("*.py")):
            tree = ast.parse(path.read_text())
            origin = {
                a.name: n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names
            }
            for call in ast.walk(tree):
                if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".part"):
                    name = ast.unparse(call.args[0])
                    if name.startswith("'"):  # a part of the data
                        continue
                    asked.add(getattr(importlib.import_module(origin[name] or ""), name))
    assert len(asked) >= 10
    for part in asked:
        wanted = {field.name: get_type_hints(part)[field.name] for field in fields(part)}
        assert wanted == {name: whole.get(name) for name in wanted}, part
        assert len(wanted) < len(StudyConfig.model_fields), f"{part} is the whole again"


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("search", {"candidates": 0}, "greater than or equal to 1"),
        ("space", {"max_ratio": 1.0}, "less than 1"),
        ("space", {"round_to": "eight"}, "integer"),
        ("space", {"round_to": 0}, "greater than or equal to 1"),
        ("space", {"round_to": {"*": 8, "head*": 0}}, "greater than or equal to 1 for 'head*'"),
        ("space", {"round_to": {"*": "8"}}, "integer for '*', or a table"),
        ("space", {"round_to": {}}, "or a table of them"),
        ("training", {"precision": "fp8"}, "'auto', 'float32' or 'bfloat16'"),
        ("data", {"validation": 1}, "greater than or equal to 2"),
        ("goal", {"objectives": ["accuracy", "predicted_latency_ms"]}, "cannot be an objective"),
        ("goal", {"objectives": ["macs"]}, "include 'accuracy'"),
        ("goal", {"constraints": {"speed": {"low": 1}}}, "'speed'"),
        ("goal", {"constraints": {"accuracy": {"high": 0.9}}}, "write accuracy >="),
        ("goal", {"constraints": {"macs": {"high": "50%"}}}, "texts such as '60%' go into a list"),
        ("goal", {"constraints": {"macs": {"high": float("inf")}}}, "finite"),
        (
            "goal",
            {"constraints": {"macs": {"low": 2e6, "high": 1e6}}},
            "'macs >= 2M' and 'macs <= 1M' contradict",
        ),
        ("goal", {"constraints": {"macs": 1e6}}, "low or a high side"),
        ("goal", {"constraints": ["macs <= 50%", "size_bytes <= 250KB"]}, "did you mean 'kB'"),
        ("goal", {"constraints": [3]}, "list of bounds such as"),
        ("goal", {"constraints": 3}, "list of bounds such as"),
        ("training", {"early_stopping": True, "epochs": 1}, "epochs = 2 or more"),
        ("training", {"eta": 1}, "greater than or equal to 2"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(section: str, values: dict[str, object], said: str) -> None:
    assert said in refusal(**{section: values})


def test_a_missing_model() -> None:
    with pytest.raises(ConfigError, match=r"'model' is missing"):
        parse({"name": "s"}, source="s.toml", base=Path())


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-x", "a" * 101])
def test_a_name_that_is_no_folder_name(name: str) -> None:
    assert "name" in refusal(name=name)


def test_paths_are_relative_to_the_study_file(tmp_path: Path) -> None:
    study = tmp_path / "s.toml"
    study.write_text('name = "s"\n[model]\nfactory = "m:f"\nweights = "w.safetensors"\n')
    assert load(study).model.weights == tmp_path / "w.safetensors"


@pytest.mark.parametrize(
    ("content", "said"), [(None, "there is no study file"), ("name = ", "not valid TOML"), ("\xff", "TOML")]
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: str | None, said: str) -> None:
    study = tmp_path / "s.toml"
    if content is not None:
        study.write_text(content)
    with pytest.raises(ConfigError, match=said):
        load(study)


def test_the_examples_are_valid() -> None:
    studies = sorted(Path(__file__).parents[3].glob("examples/*.toml"))
    assert studies
    assert all(isinstance(load(study), StudyConfig) for study in studies)


def test_every_setting_is_described() -> None:
    described = settings()
    assert "training.distill" in described
    assert not [name for name, text in described.items() if "None" in text]
