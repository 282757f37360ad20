"""Studies as jobs of a Ray cluster: sent, followed, found again and stopped through the cluster's jobs server."""

import logging
import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray.exceptions
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.job_submission import JobSubmissionClient

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.package import Package

ANSWER_SECONDS = (5.0, 30.0)
"""How long a jobs server may take to accept a connection, and to answer."""

UPLOAD_SECONDS = 1800.0
"""What a package may take; Ray knows no limit, nor does it say how far it is."""

STOP_SECONDS = 60
"""What a study gets to end cleanly before Ray kills it; by itself Ray gives three seconds."""

LOST_SECONDS = 120.0
"""How long a log is waited for when the connection broke."""

POLL_SECONDS = 1.0

LOST = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
"""What a server raises that is not there, or no longer."""

STUDY, FOLDER = "prunefront_study", "prunefront_folder"
"""Keys of a job's metadata."""

ENDED = {"SUCCEEDED": 0, "STOPPED": 143, "FAILED": 1}
"""States that last, and the exit code where the job has none of its own; 143 is what SIGTERM leaves."""


NOT_FOUND = 127
"""A shell's exit code for a command that there is not."""


class JobsError(PrunefrontError):
    """A jobs server cannot be used, or has no such job."""


class NoAnswer(JobsError):
    """The jobs server cannot be reached; it may be again later."""


@dataclass(frozen=True, slots=True)
class Job:
    """A study as a job.

    state: PENDING, RUNNING, SUCCEEDED, STOPPED or FAILED. folder: where the study is, on the cluster's head. message:
    Ray's. started, ended: seconds since the epoch. exit_code: None until it ended by itself.
    """

    id: str
    study: str
    state: str
    folder: str
    message: str
    started: float | None
    ended: float | None
    exit_code: int | None

    @property
    def over(self) -> bool:
        return self.state in ENDED

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        if self.state != "FAILED":
            return self.state.lower()
        if self.exit_code == NOT_FOUND:
            return "failed: the cluster's head has no command `prunefront` on the path that `ray start` was run with"
        if self.exit_code is not None:
            return f"failed with exit code {self.exit_code}"
        return f"failed before it began: {_line(self.message)}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's own, which would wait for an answer for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        limit = UPLOAD_SECONDS if method == "PUT" else ANSWER_SECONDS
        return super()._do_request(method, endpoint, **{"timeout": limit, **options})


class JobsServer:
    """The jobs server of a cluster: the HTTP address of its dashboard. What goes wrong is a JobsError of one line."""

    def __init__(self, address: str) -> None:
        """Raises JobsError when no jobs server answers there, within seconds, or does not take the token."""
        self.address = checked(address)
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.WARNING)  # we say what is sent
        with self._clear(), _environment("RAY_API_SERVER_ADDRESS", self.address):
            self._client = _Client(self.address)

    def jobs(self) -> list[Job]:
        """The studies among the cluster's jobs, the newest first."""
        with self._clear():
            found = [
                _job(details)
                for details in self._client.list_jobs()
                if details.submission_id and STUDY in (details.metadata or {})
            ]
        return sorted(found, key=lambda job: (not job.over, job.started or 0.0), reverse=True)

    def job(self, id: str) -> Job:
        with self._clear():
            return _job(self._client.get_job_info(id))

    def find(self, wanted: str) -> Job:
        """The job of a study, by its name or by the job's. Of several, the one that runs, else the newest.

        Raises JobsError, which lists the studies that there are.
        """
        jobs = self.jobs()
        for job in jobs:
            if wanted in (job.study, job.id):
                return job
        known = ", ".join(dict.fromkeys(job.study for job in jobs)) or "none"
        raise JobsError(f"there is no job of a study {wanted!r} at {self.address}; studies there: {known}")

    def check_free(self, study: str) -> None:
        """Raises JobsError while a job of a study of that name has not ended."""
        for job in self.jobs():
            if job.study == study and not job.over:
                raise JobsError(
                    f"study {study!r} is {job.state.lower()} there as job {job.id}; `{self.command('logs', job)}` "
                    f"follows it, `{self.command('stop', job)}` ends it, another `name` makes it another study"
                )

    def submit(self, package: Package, folder: str, options: Sequence[str] = ()) -> Job:
        """Sends a study and starts it. folder: of results, on the head. options: of `prunefront search`."""
        search = ["prunefront", "search", package.study, "--address", "auto", "--folder", folder, *options]
        with tempfile.TemporaryDirectory(prefix="prunefront-job-") as staging:
            package.write(Path(staging))
            environment = {
                "working_dir": staging,
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
            }
            with self._clear():
                id = self._client.submit_job(
                    entrypoint=f"exec {shlex.join(search)}",
                    submission_id=f"{package.name}-{secrets.token_hex(3)}",
                    metadata={STUDY: package.name, FOLDER: f"{folder.rstrip('/')}/{package.name}"},
                    runtime_env=environment,
                )
        return self.job(id)

    def log(self, job: Job) -> str:
        """What the job wrote so far."""
        with self._clear():
            return str(self._client.get_job_logs(job.id))

    def follow(self, job: Job, write: Callable[[str], None], say: Callable[[str], None]) -> Job:
        """Writes the job's log until it ends; returns it as it is then. say: gets a line about the connection.

        Asks again and again rather than holding a connection, which a tunnel or a sleeping laptop would lose. Raises
        NoAnswer when there was none for LOST_SECONDS.
        """
        written, lost = 0, None
        while True:
            try:
                job = self.job(job.id)  # first: what it wrote last is in the log that is read next
                text = self.log(job)
            except NoAnswer as error:
                if lost is None:
                    lost = time.monotonic()
                    say(f"no answer from {self.address}, asking again; the job goes on")
                if time.monotonic() - lost > LOST_SECONDS:
                    raise NoAnswer(f"{error}; the job may go on: {self.command('logs', job)}") from None
                time.sleep(POLL_SECONDS)
                continue
            lost = None
            write(text[written:])
            written = len(text)
            if job.over:
                return job
            time.sleep(POLL_SECONDS + len(text) / 1e6)  # every answer holds the whole log

    def stop(self, job: Job) -> Job:
        """Ends a job and waits until it has ended; one that is over stays as it is."""
        if not job.over:
            with self._clear():
                self._client.stop_job(job.id)
        deadline = time.monotonic() + STOP_SECONDS + ANSWER_SECONDS[1]
        while not job.over:
            if time.monotonic() > deadline:
                raise JobsError(
                    f"job {job.id} is still {job.state.lower()}; ask again: {self.command('stop', job)}"
                )
            time.sleep(POLL_SECONDS)
            job = self.job(job.id)
        return job

    def command(self, name: str, job: Job) -> str:
        """What to type about a job."""
        return shlex.join(["prunefront", name, job.study, "--jobs-server", self.address])

    @contextmanager
    def _clear(self) -> Iterator[None]:
        """Turns what Ray and requests raise into one line that says what to do."""
        try:
            yield
        except ray.exceptions.AuthenticationError as error:
            raise JobsError(_denied(self.address, str(error))) from None
        except (*LOST, ConnectionError) as error:
            raise NoAnswer(
                f"no jobs server answers at {self.address} ({_cause(error)}); it is the dashboard of the cluster's "
                "head, port 8265 there, which listens on loopback only: reach it through `ray dashboard cluster.yaml` "
                "or `ssh -L 8265:localhost:8265 HEAD`"
            ) from None
        except (requests.RequestException, RuntimeError, ValueError, KeyError, TypeError) as error:
            # what Ray's client makes of a refusal, and of the answer of another kind of server
            raise JobsError(f"{self.address} refuses, or is no Ray jobs server: {_line(error)}") from None


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Ray prefers the address that it finds in the environment to the one that it is given."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def checked(address: str) -> str:
    """The address of a jobs server with its scheme. Raises JobsError for what is none."""
    whole = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(whole)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        usable = False
    if not usable or address == "auto":
        raise JobsError(
            f"--jobs-server {address} is no jobs server, which is the dashboard of the cluster's head and looks like "
            "http://HEAD:8265"
        )
    return whole.rstrip("/")


def _job(details: JobDetails) -> Job:
    metadata: Mapping[str, str] = details.metadata or {}
    return Job(
        id=details.submission_id or "",
        study=metadata.get(STUDY, ""),
        state=str(getattr(details.status, "value", details.status)),
        folder=metadata.get(FOLDER, ""),
        message=details.message or "",
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
    )


def _denied(address: str, said: str) -> str:
    if said.startswith("Authentication failed"):  # 403, where 401 is a token that was not sent
        return f"{address} does not take this token; ~/.ray/auth_token must be the one that its cluster has"
    set_already = os.environ.get("RAY_AUTH_MODE") == "token"
    there = "there is none in ~/.ray/auth_token" if set_already else "RAY_AUTH_MODE=token is not set"
    return f"{address} wants a token, and {there}; copy the cluster's to ~/.ray/auth_token and set RAY_AUTH_MODE=token"


def _cause(error: BaseException) -> str:
    """The innermost reason in a few words."""
    if isinstance(error, requests.Timeout):
        return "it took too long"
    seen = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    return getattr(seen, "strerror", None) or type(seen).__name__


def _line(said: Exception | str) -> str:
    text = " ".join(str(said).split()) or type(said).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"
