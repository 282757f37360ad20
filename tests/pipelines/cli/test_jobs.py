"""The commands about submitted studies, on a jobs server that answers at once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunefront.pipelines.cluster import jobs
from prunefront.pipelines.cluster.jobs import Job
from prunefront.pipelines.cluster.package import Package
from tests.pipelines.cli.conftest import Run

RUNNING = Job("digits4-1", "digits4", "RUNNING", "~/prunefront/studies/digits4", "", 1.0, None, None)
URL = "http://head:8265"


class Fake:
    """What a command asks of a `JobsServer`; each question is kept."""

    asked: list[tuple[str, Any]] = []  # noqa: RUF012  # of all servers of a test
    ends = "SUCCEEDED"

    def __init__(self, address: str) -> None:
        self.asked.append(("server", address))

    def check_free(self, study: str) -> None: ...

    def find(self, wanted: str) -> Job:
        self.asked.append(("find", wanted))
        return RUNNING

    def submit(self, package: Package, folder: str, options: list[str]) -> Job:
        self.asked.append(("submit", (package.name, folder, options)))
        return replace(RUNNING, state="PENDING")

    def log(self, job: Job) -> str:
        return "one\ntwo\n"

    def follow(self, job: Job, write: Callable[[str], None], say: Callable[[str], None]) -> Job:
        write("one\ntwo\n")
        return replace(job, state=self.ends, exit_code=0 if self.ends == "SUCCEEDED" else 3)

    def stop(self, job: Job) -> Job:
        return replace(job, state="STOPPED")

    def command(self, name: str, job: Job) -> str:
        return f"prunefront {name} {job.study}"


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setattr(jobs, "JobsServer", Fake)
    monkeypatch.setattr(Fake, "asked", [])
    return Fake


@pytest.mark.parametrize("study", ["s.toml", "digits4", "studies/digits4"])
def test_a_study_in_every_way(study: str, searched: Path, run: Run, server: type[Fake]) -> None:
    for command in ("logs", "stop", "status"):
        ended = run(command, study, "--jobs-server", URL, "--json")
        assert (ended.code, ended.document["id"]) == (0, "digits4-1")
    assert run("submit", study, "--jobs-server", URL, "--detach").code == 0
    assert {wanted for what, wanted in server.asked if what == "find"} == {"digits4"}
    assert ("submit", ("digits4", "~/prunefront/studies", [])) in server.asked


def test_a_job_by_its_id(here: Path, run: Run, server: type[Fake]) -> None:
    assert run("stop", "digits4-1", "--jobs-server", URL).code == 0
    assert ("find", "digits4-1") in server.asked


@pytest.mark.parametrize("variable", ["PRUNEFRONT_JOBS_SERVER", "RAY_API_SERVER_ADDRESS"])
def test_the_server_from_the_environment(
    variable: str, here: Path, run: Run, server: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, URL)
    assert run("stop", "digits4").code == 0
    assert server.asked[0] == ("server", URL)
    assert "has not been searched yet" in run("status", "s.toml").err, "here, unless a server is named"


@pytest.mark.parametrize("command", ["submit", "logs", "stop", "status"])
def test_the_old_word_for_one_release(command: str, searched: Path, run: Run, server: type[Fake]) -> None:
    ended = run(command, "s.toml", "--address", URL, "--json")
    assert ended.code == 0
    assert ended.err.startswith(f"notice: `prunefront {command} --address` is spelled --jobs-server now")
    assert ended.document["study"] == "digits4"
    assert server.asked[0] == ("server", URL)


def test_what_is_on_stdout(here: Path, run: Run, server: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run("logs", "digits4", "--jobs-server", URL)
    assert (plain.out, plain.code) == ("one\ntwo\n", 0)
    logged = run("logs", "digits4", "--jobs-server", URL, "--json")
    assert logged.document["log"] == ["one", "two"]
    assert logged.err.startswith("one\ntwo\n")
    assert (
        run("logs", "digits4", "--jobs-server", URL, "--no-follow", "--json").document["state"] == "RUNNING"
    )
    assert run("stop", "digits4", "--jobs-server", URL, "--json").document["state"] == "STOPPED"
    assert run("status", "digits4", "--jobs-server", URL, "--json").document["log"] == ["one", "two"]
    sent = run("submit", "s.toml", "--jobs-server", URL, "--detach", "--json")
    assert sent.document["state"] == "PENDING"
    assert "follow it with" in sent.err
    monkeypatch.setattr(Fake, "ends", "FAILED")
    failed = run("submit", "s.toml", "--jobs-server", URL, "--resume", "--json")
    assert (failed.code, failed.document["state"]) == (3, "FAILED")
    assert "one\ntwo\n" in failed.err
    assert server.asked[-1][1][2] == ["--resume"]
