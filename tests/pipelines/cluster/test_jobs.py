"""What is said when a jobs server is not there, slow, another kind of server, or lost on the way.

The server here plays those parts; tests/services/test_cluster.py submits to a real one.
"""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli.main import app
from prunefront.pipelines.cluster import jobs
from prunefront.pipelines.cluster.jobs import (
    FOLDER,
    STUDY,
    Job,
    JobsError,
    JobsServer,
    NoAnswer,
    server_address,
)
from tests.pipelines.cluster.test_package import pack_file

Answer = tuple[int, Any]


class Server(ThreadingHTTPServer):
    """Answers what `answers` says for a path, as JSON; None hangs up. asked: (method, path, body) of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Callable[[], Answer | None]] = {"/api/version": lambda: (200, VERSION)}
        self.asked: list[tuple[str, str, bytes]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


VERSION = {"ray_version": "2.60.0", "version": "4", "ray_commit": "", "session_name": ""}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None: ...

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, body))
        found = self.server.answers.get(self.path, lambda: (404, "nothing here"))()
        if found is None:
            self.close_connection = True
            return
        text = json.dumps(found[1]).encode()
        self.send_response(found[0])
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def details(id: str, study: str | None, status: str, **more: Any) -> dict[str, Any]:
    metadata = None if study is None else {STUDY: study, FOLDER: f"~/prunefront/studies/{study}"}
    given = {
        "type": "SUBMISSION",
        "submission_id": id,
        "status": status,
        "entrypoint": "",
        "metadata": metadata,
    }
    return given | {"start_time": 1000} | more


def job(state: str = "RUNNING") -> Job:
    return Job("s-1", "s", state, "~/prunefront/studies/s", "", 1.0, None, None)


@pytest.mark.parametrize(
    ("status", "mode", "said"),
    [
        (401, None, "RAY_AUTH_MODE=token is not set"),
        (403, "token", "does not accept this token"),
        (500, None, "Internal Server Error"),
        (404, None, "refuses, or is no Ray jobs server"),
    ],
)
def test_a_server_that_refuses(
    server: Server, monkeypatch: pytest.MonkeyPatch, status: int, mode: str | None, said: str
) -> None:
    server.answers["/api/version"] = lambda: (status, "Forbidden: Invalid authentication token")
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    with pytest.raises(JobsError) as refused:
        JobsServer(server.address)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_another_kind_of_server(server: Server) -> None:
    server.answers["/api/version"] = lambda: (200, ["a list"])
    with pytest.raises(JobsError, match="is no Ray jobs server"):
        JobsServer(server.address)


def test_nobody_listens_and_a_server_that_never_answers(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoAnswer, match=r"127\.0\.0\.1:1 \(Connection refused\)"):
        JobsServer("127.0.0.1:1")
    end = threading.Event()
    server.answers["/api/version"] = lambda: (end.wait(60), None)[1]
    monkeypatch.setattr(jobs, "ANSWER_SECONDS", (5.0, 0.2))
    with pytest.raises(NoAnswer, match="it took too long"):
        JobsServer(server.address)
    end.set()


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "http://", "head:port", "ftp://head"])
def test_addresses_of_something_else(address: str) -> None:
    with pytest.raises(JobsError, match="looks like http://HEAD:8265"):
        server_address(address)
    assert server_address("head:8265/") == "http://head:8265"


def test_the_address_that_is_given_is_the_one_that_is_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    JobsServer(server.address)
    assert server.asked


def test_of_a_study_that_was_sent_again_the_job_that_runs_is_found(server: Server) -> None:
    server.answers["/api/jobs/"] = lambda: (
        200,
        [
            details("s-1", "s", "FAILED", start_time=1000),
            details("s-2", "s", "RUNNING", start_time=2000),
            details("s-3", "s", "SUCCEEDED", start_time=3000),
            details("t-1", "t", "SUCCEEDED", start_time=4000),
            details("t-2", "t", "STOPPED", start_time=5000),
            details("foreign", None, "RUNNING", start_time=6000),
        ],
    )
    there = JobsServer(server.address)
    assert {wanted: there.find(wanted).id for wanted in ("s", "t", "s-1", "t-1")} == {
        "s": "s-2",
        "t": "t-2",
        "s-1": "s-1",
        "t-1": "t-1",
    }
    with pytest.raises(JobsError, match=r"no job of a study 'foreign'.*: s, t$"):
        there.find("foreign")
    there.check_free("t")
    with pytest.raises(
        JobsError, match=r"study 's' is running there as job s-2; `prunefront logs s --jobs-server"
    ):
        there.check_free("s")


def test_a_study_is_sent_with_what_it_needs(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a b.toml").write_text('name = "s"\n[model]\nfactory = "digits_cnn"\n')
    sent: list[dict[str, Any]] = []

    def submitted() -> Answer:
        sent.append(json.loads(server.asked[-1][2]))
        return 200, {"job_id": sent[-1]["submission_id"], "submission_id": sent[-1]["submission_id"]}

    server.answers["/api/jobs/"] = submitted

    def unpacked() -> Answer:
        return 200, details(sent[-1]["submission_id"], "s", "PENDING")

    class Any_(dict[str, Callable[[], Answer | None]]):
        """Packages are known already; a job is asked for by its new name."""

        def get(self, path: str, default: Any = None) -> Any:
            if path.startswith("/api/packages/"):
                return lambda: (200, {})
            return unpacked if path.startswith("/api/jobs/s-") else super().get(path, default)

    server.answers = Any_(server.answers)
    packed = pack_file(tmp_path / "a b.toml", here=tmp_path)
    made = JobsServer(server.address).submit(packed, "~/my results/", ["--resume"])
    assert made.id.startswith("s-")
    assert made.state == "PENDING"
    (request,) = sent
    assert request["entrypoint"] == (
        "exec prunefront search 'a b.toml' --address auto --folder '~/my results/' --resume"
    )
    assert request["metadata"] == {STUDY: "s", FOLDER: "~/my results/s"}
    assert request["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": str(jobs.STOP_SECONDS)}


def test_a_log_is_written_once_though_the_connection_breaks(server: Server) -> None:
    states = iter(["RUNNING", None, "RUNNING", None, None, "SUCCEEDED"])
    log = iter(["one\n", "one\ntwo\n", "one\ntwo\nthree\n"])

    def info() -> Answer | None:
        state = next(states)
        return None if state is None else (200, details("s-1", "s", state))

    server.answers |= {
        "/api/jobs/s-1": info,
        "/api/jobs/s-1/logs": lambda: (200, {"logs": next(log)}),
    }
    written: list[str] = []
    said: list[str] = []
    ended = JobsServer(server.address).follow(job(), written.append, said.append)
    assert "".join(written) == "one\ntwo\nthree\n"
    assert ended.state == "SUCCEEDED"
    assert len(said) == 2, "one line for each time that it broke"


def test_a_connection_that_stays_lost_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    there = JobsServer(server.address)
    server.answers["/api/jobs/s-1"] = lambda: None
    monkeypatch.setattr(jobs, "LOST_SECONDS", 0.0)
    with pytest.raises(NoAnswer, match="the job may still be running: prunefront logs s --jobs-server"):
        there.follow(job(), print, lambda line: None)


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0, "job s-1: succeeded"),
        ({"status": "FAILED", "driver_exit_code": 2}, 2, "failed with exit code 2"),
        ({"status": "FAILED", "driver_exit_code": 127}, 127, "has no command `prunefront`"),
        ({"status": "FAILED", "message": "no\nroom"}, 1, "failed before it began: no room"),
        ({"status": "STOPPED"}, 143, "job s-1: stopped"),
    ],
)
def test_the_exit_code_is_the_jobs(server: Server, end: dict[str, Any], code: int, said: str) -> None:
    status = end.pop("status")
    server.answers |= {
        "/api/jobs/": lambda: (200, [details("s-1", "s", "RUNNING")]),
        "/api/jobs/s-1": lambda: (200, details("s-1", "s", status, **end)),
        "/api/jobs/s-1/logs": lambda: (200, {"logs": "[red]the log\n"}),
    }
    done = CliRunner().invoke(app, ["logs", "s", "--jobs-server", server.address])
    assert done.exit_code == code
    assert "[red]the log\n" in done.stdout
    assert said in done.stderr


def test_ctrl_c_ends_the_following_and_not_the_job(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers["/api/jobs/"] = lambda: (200, [details("s-1", "s", "RUNNING")])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(JobsServer, "follow", interrupted)
    done = CliRunner().invoke(app, ["logs", "s", "--jobs-server", server.address])
    assert done.exit_code == 130
    assert f"prunefront stop s --jobs-server {server.address}" in done.stderr
    assert not any(method == "POST" for method, _, _ in server.asked)


def test_stopping_waits_for_the_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(["RUNNING", "RUNNING", "STOPPED"])
    server.answers |= {
        "/api/jobs/s-1/stop": lambda: (200, {"stopped": True}),
        "/api/jobs/s-1": lambda: (200, details("s-1", "s", next(states))),
    }
    there = JobsServer(server.address)
    assert there.stop(job()).state == "STOPPED"
    asked = len(server.asked)
    assert there.stop(job("FAILED")).state == "FAILED"
    assert len(server.asked) == asked, "what is over is left alone"
    monkeypatch.setattr(jobs, "STOP_SECONDS", -100)
    server.answers["/api/jobs/s-1"] = lambda: (200, details("s-1", "s", "RUNNING"))
    with pytest.raises(PrunefrontError, match="job s-1 is still running"):
        there.stop(job())
