"""A study by its file, its name and its folder."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli.resolve import study_config, study_file, study_name, to_toml
from prunefront.pipelines.config.read import load, parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.events.redaction import redact
from prunefront.pipelines.journal.journal import write_json
from prunefront.pipelines.study.find import find
from tests.pipelines.cli.conftest import TEXT, Run
from tests.pipelines.cluster.test_package import pack_file

WAYS = ("s.toml", "digits4", "studies/digits4", "studies/digits4/")


@pytest.mark.parametrize("study", WAYS)
def test_the_same_study_in_every_way(study: str, searched: Path) -> None:
    config = study_config(study)
    assert config == load(Path("s.toml"))
    assert find(study).searched_folder().samefile(searched)
    if "/" in study or study.endswith(".toml"):
        assert study_name(study) == "digits4"


def test_a_word_that_is_nothing_here_may_be_a_study_elsewhere(searched: Path) -> None:
    assert study_name("digits4-3f2a91") == "digits4-3f2a91"


def test_from_within_its_folder_and_from_elsewhere(
    searched: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that is named is the one that is used, wherever the study file said that results go."""
    searched = searched.absolute()
    monkeypatch.chdir(searched)
    assert study_config(".").path.samefile(searched)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert study_config(str(searched)).path.samefile(searched)
    copy = shutil.copytree(searched, Path("copies") / "digits4")
    assert study_config("copies/digits4").path == copy
    assert study_config("copies/digits4").artifact_uri == str((copy / "artifacts").absolute())


@pytest.mark.parametrize("command", ["inspect", "search", "submit", "latency-table"])
def test_before_its_search_a_study_is_named_by_its_file(command: str, here: Path, run: Run) -> None:
    server = ["--jobs-server", "http://127.0.0.1:1"] if command == "submit" else []
    ended = run(command, "digits4", *server)
    assert ended.code == 2
    assert "there is no study 'digits4'" in ended.err
    assert "before its first search a study is named by its file" in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("command", ["front", "status", "rehearse", "fetch", "gc"])
@pytest.mark.parametrize("study", ["s.toml", "digits4"])
def test_commands_on_results_say_that_there_are_none(command: str, study: str, here: Path, run: Run) -> None:
    ended = run(command, study)
    assert ended.code == 2
    said = "has not been searched yet" if study == "s.toml" else "there is no study 'digits4'"
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_folder_with_another_name_than_its_study(searched: Path) -> None:
    searched.rename("studies/renamed")
    with pytest.raises(PrunefrontError, match="renamed holds the study 'digits4'"):
        study_config("renamed")


def test_a_password_that_is_not_kept(searched: Path) -> None:
    """A study's folder keeps no secrets, so a search by name would record nowhere."""
    config = load(Path("s.toml"))
    tracking = config.tracking.model_copy(update={"uri": "http://me:s3cret@host:5000"})
    write_json(searched / "study.json", redact(config.model_copy(update={"tracking": tracking}).to_json()))
    with pytest.raises(PrunefrontError, match=r"name the study file, which gives tracking\.uri") as refused:
        study_config("digits4")
    assert "s3cret" not in str(refused.value)


def test_a_study_by_name_becomes_a_file_that_can_be_sent(searched: Path) -> None:
    with study_file("s.toml") as file:
        assert file == Path("s.toml")
    with study_file("digits4") as file:
        assert load(file) == load(Path("s.toml"))
        package = pack_file(file)
        assert (package.name, package.study, list(package.files)) == ("digits4", file.name, [file.name])
    assert not file.exists()


def test_what_lies_beside_a_study_goes_along_by_name_too(searched: Path, here: Path) -> None:
    (here / "w.safetensors").write_bytes(b"weights")
    (here / "s.toml").write_text(TEXT.replace("[search]", 'weights = "w.safetensors"\n[search]'))
    write_json(searched / "study.json", load(Path("s.toml")).to_json())
    with study_file("digits4") as file:
        assert sorted(pack_file(file).files) == sorted([file.name, "w.safetensors"])


NAMES = st.text(min_size=1, max_size=5)
VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=10,
)


@given(data=st.dictionaries(NAMES, VALUES, max_size=4))
def test_toml_says_the_same(data: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(data)) == data
    assert tomllib.loads(to_toml({**data, "nothing": None})) == data | {}


def test_a_whole_study_as_toml() -> None:
    """Every example, with all its defaults written out."""
    for path in sorted((Path(__file__).parents[3] / "examples").glob("*.toml")):
        config: StudyConfig = load(path)
        again = parse(tomllib.loads(to_toml(config.to_json())), source="again", base=Path())
        assert again == config
