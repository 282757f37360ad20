"""Study files: what is right comes through unchanged, what is wrong is told in one line."""

from pathlib import Path

import pytest

from pipelines.config import ConfigError, StudyConfig, load, parse, settings

BASE = {"name": "s", "model": {"factory": "digits_cnn"}}


def refusal(**sections: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(BASE | sections, source="s.toml", base=Path("folder"))
    message = str(caught.value)
    assert message.startswith("s.toml: ")
    assert "\n" not in message
    return message


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
    assert "did you mean 'high'" in refusal(search={"constraints": {"macs": {"hihg": 1.0}}})


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("search", {"candidates": 0}, "greater than or equal to 1"),
        ("space", {"max_ratio": 1.0}, "less than 1"),
        ("space", {"round_to": "eight"}, "integer"),
        ("training", {"precision": "fp8"}, "'auto', 'float32' or 'bfloat16'"),
        ("data", {"validation": 1}, "greater than or equal to 2"),
        ("search", {"objectives": ["accuracy", "latency_ms"]}, "latency is measured"),
        ("search", {"objectives": ["macs"]}, "include 'accuracy'"),
        ("search", {"constraints": {"speed": {"low": 1}}}, "'speed'"),
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
    studies = sorted(Path(__file__).parents[2].glob("examples/*.toml"))
    assert studies
    assert all(isinstance(load(study), StudyConfig) for study in studies)


def test_every_setting_is_described() -> None:
    described = settings()
    assert "training.distill" in described
    assert not [name for name, text in described.items() if "None" in text]
