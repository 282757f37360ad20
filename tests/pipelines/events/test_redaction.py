"""Secrets leave nothing behind in texts, in a study's folder, in errors and tracebacks. `test_study.py` looks through
all files of a whole study."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.execution import class_cache

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli.main import main
from prunefront.pipelines.config.differences import differences
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import ClusterSection, StudyConfig
from prunefront.pipelines.events.redaction import redact, without_password, without_secrets
from prunefront.pipelines.study.find import load_config, tracking_uri
from prunefront.pipelines.study.folder import open_folder
from prunefront.pipelines.workers.failures import failure
from prunefront.pipelines.workers.on_ray.trials import credentials_stay

SECRET = "Hx7-marked-secret"
word = st.text("abcXYZ019-_.~!$,;/@:", min_size=1, max_size=12).filter(lambda s: not s.startswith("@"))


@given(password=word, user=st.text("abc0", max_size=4), rest=st.sampled_from(["", "/db", ":5432/db?a=1"]))
def test_passwords_of_addresses_are_hidden_whatever_they_are_made_of(
    password: str, user: str, rest: str
) -> None:
    """Also with the characters that should have been escaped in them."""
    shown = without_password(f"cannot open postgresql://{user}:Q{password}Q@host{rest}: refused")
    assert f"Q{password}Q" not in shown
    assert f"host{rest}: refused" in shown


@pytest.mark.parametrize(
    "text",
    [
        f"https://b.s3.amazonaws.com/k?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
        f"https://host/x?a=1&access_token={SECRET}",
        f"postgresql://host/db?user=a&password={SECRET}",
    ],
)
def test_secrets_in_a_query_are_hidden(text: str) -> None:
    assert SECRET not in without_password(text)


@pytest.mark.parametrize(
    "text", ["s3://bucket/a@b:c", "http://host:5000", "sqlite:////x/mlflow.db", "a: b @ c"]
)
def test_addresses_without_a_secret_stay(text: str) -> None:
    assert without_secrets(text) == text


def test_values_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{SECRET}-longer")
    monkeypatch.setenv("SHORT_TOKEN", "a")  # would hide every a
    assert without_secrets(f"bad {SECRET}-longer and {SECRET}") == "bad *** and ***"
    assert SECRET not in failure(RuntimeError(f"denied: {SECRET}")).reason


def test_what_is_named_as_a_secret_is_not_told() -> None:
    data = {"options": {"api_key": SECRET, "width": 8, "tokens": [SECRET]}, "uri": f"http://a:{SECRET}@h"}
    assert redact(data) == {
        "options": {"api_key": "***", "width": 8, "tokens": "***"},
        "uri": "http://a:***@h",
    }


def config_of(folder: Path, **more: object) -> StudyConfig:
    data = {
        "name": "s",
        "folder": str(folder),
        "model": {"factory": "digits_cnn", "options": {"api_token": SECRET}},
        "tracking": {"uri": f"postgresql://me:{SECRET}@127.0.0.1:9/x"},
        "artifacts": {"endpoint_url": f"http://me:{SECRET}@127.0.0.1:9"},
    }
    return parse({**data, **more}, source="s.toml", base=folder)


def test_a_studys_folder_keeps_no_password_and_goes_on_with_it_all_the_same(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.path.mkdir()
    open_folder(config, resume=False, fresh=False)
    assert SECRET not in (config.path / "study.json").read_text()
    kept = json.loads((config.path / "study.json").read_text())
    assert differences(config, kept) == []
    other = config.model_copy(update={"cluster": ClusterSection(workers=3)})
    assert differences(other, kept) == []
    assert load_config(config.path).name == "s"
    with pytest.raises(PrunefrontError, match="name the study file"):
        tracking_uri(str(config.path))


def test_tune_hands_no_credentials_to_its_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray writes an actor's runtime environment into a log that everybody on the machine can read."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)

    def environment() -> str:
        made = class_cache._ActorClassCache().get(type("Trainable", (), {}))
        return str(made._default_options["runtime_env"])

    assert SECRET in environment()  # once Ray no longer does that, this test and what it is of can go
    with credentials_stay():
        assert SECRET not in environment()
    assert SECRET in environment()


@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_neither_an_error_nor_its_traceback_tells_a_password(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    debug: tuple[str, ...],
) -> None:
    """The database does not answer, and what SQLAlchemy says of it is part of the traceback."""
    (tmp_path / "s.toml").write_text(
        f'name = "s"\n[model]\nfactory = "digits_cnn"\n[tracking]\nuri = "postgresql://me:{SECRET}@127.0.0.1:9/x"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setattr(sys, "argv", ["prunefront", *debug, "search", "s.toml"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert "cannot be opened" in err
    assert ("Traceback" in err) == bool(debug)
    assert SECRET not in out + err
    assert all(
        SECRET.encode() not in p.read_bytes() for p in (tmp_path / "studies").rglob("*") if p.is_file()
    )
