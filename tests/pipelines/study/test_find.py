"""A study is found by its file, its name or its folder; what is not found is one error that lists what there is."""

import json
from pathlib import Path

import pytest

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import ConfigError, load
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.study.find import NoStudy, find
from prunefront.pipelines.study.folder import open_folder

FILE = """
name = "small"

[model]
factory = "digits_cnn"

[data]
source = "digits"

[artifacts]
uri = "s3://bucket/small"
endpoint_url = "https://me:secret@store:9000"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(FILE)
    return load(Path("small.toml"))


def search(config: StudyConfig) -> None:
    config.path.mkdir(parents=True)
    open_folder(config, resume=False, fresh=False)


def test_a_study_file_is_found_before_its_first_search(config: StudyConfig) -> None:
    found = find("small.toml")
    assert (found.folder, found.config, found.file) == (Path("studies/small"), config, Path("small.toml"))
    with pytest.raises(NoStudy, match=r"start with: prunefront search small\.toml"):
        found.searched_folder()
    search(config)
    assert find("small.toml").searched_folder() == Path("studies/small")


def test_a_name_and_a_folder_give_what_the_search_was_started_with(config: StudyConfig) -> None:
    search(config)
    by_name, by_folder = find("small"), find("studies/small")
    assert by_name == by_folder
    assert by_name.file is None
    assert by_name.searched_folder() == Path("studies/small")
    assert by_name.config.model == config.model


def test_a_password_is_asked_for_where_the_folder_has_none(config: StudyConfig) -> None:
    search(config)
    assert find("small.toml").endpoint_url() == "https://me:secret@store:9000"
    with pytest.raises(PrunefrontError, match=r"name the study file, which gives artifacts\.endpoint_url"):
        find("small").endpoint_url()


def test_what_is_not_found_lists_what_there_is(config: StudyConfig) -> None:
    with pytest.raises(
        NoStudy, match=r"no study 'small'; did you mean the study file small\.toml\? give a study"
    ):
        find("small")
    search(config)
    Path("studies/other").mkdir()
    Path("studies/other/study.json").write_text(json.dumps({}))
    with pytest.raises(NoStudy, match=r"no study 'smal'; in studies/ there are: other, small$"):
        find("smal")
    with pytest.raises(NoStudy):
        find("x" * 5000)  # too long to be a path
    with pytest.raises(ConfigError, match=r"there is no study file other\.toml"):
        find("other.toml")
