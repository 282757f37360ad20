"""Studies as jobs of a Ray cluster: submits, follows, finds and stops them through the cluster's jobs server."""

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
from prunefront.text import one_line

ANSWER_SECONDS = (5.0, 30.0)
"""Seconds that a jobs server may take to accept a connection, and to answer."""

UPLOAD_SECONDS = 1800.0
"""Seconds that the upload of a package may take; Ray has no limit of its own, and reports no progress."""

STOP_SECONDS = 60
"""Seconds that a study gets to end cleanly before Ray kills it; by itself Ray gives three."""

LOST_SECONDS = 120.0
"""Seconds to wait for a log when the connection broke."""

POLL_SECONDS = 1.0
"""Seconds between two questions to the server."""

LOST = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
"""Errors of a server that is away."""

STUDY, FOLDER = "prunefront_study", "prunefront_folder"
"""Keys of a job's metadata."""

ENDED = {"SUCCEEDED": 0, "STOPPED": 143, "FAILED": 1}
"""Final states, with the exit code of a job that has none of its own; 143 is that of SIGTERM."""

NOT_FOUND = 127
"""Exit code of a shell for a command that does not exist."""


class JobsError(PrunefrontError):
    """A jobs server cannot be used, or has no such job."""


class NoAnswer(JobsError):
    """The jobs server cannot be reached; it may be again later."""


@dataclass(frozen=True, slots=True)
class Job:
    """A study as a job.

    state: PENDING, RUNNING, SUCCEEDED, STOPPED or FAILED. folder: the study's, on the cluster's head. message: Ray's.
    started, ended: seconds since the epoch. exit_code: None unless the job ended by itself.
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
        """Its end, in words."""
        if self.state != "FAILED":
            return self.state.lower()
        if self.exit_code == NOT_FOUND:
            return "failed: the cluster's head has no command `prunefront` on the path that `ray start` was run with"
        if self.exit_code is not None:
            return f"failed with exit code {self.exit_code}"
        reason = one_line(self.message, 300) or "Ray gives no reason; `prunefront logs` may"
        return f"failed before it began: {reason}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Client(JobSubmissionClient):
    """Ray's client with time limits; Ray's own would wait for an answer for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        limit = UPLOAD_SECONDS if method == "PUT" else ANSWER_SECONDS
        return super()._do_request(method, endpoint, **{"timeout": limit, **options})


class JobsServer:
    """The jobs server of a cluster, at the HTTP address of its dashboard. All errors are a JobsError of one line."""

    def __init__(self, address: str) -> None:
        """Connects. Raises JobsError, within seconds, where no jobs server answers or the token is not taken."""
        self.address = server_address(address)
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
            logging.getLogger(name).setLevel(logging.WARNING)  # we report ourselves what is sent
        with self._one_line_errors(), _environment("RAY_API_SERVER_ADDRESS", self.address):
            self._client = _Client(self.address)

    def jobs(self) -> list[Job]:
        """Returns the studies among the cluster's jobs: those that run first, then the newest."""
        with self._one_line_errors():
            found = [
                _job(details)
                for details in self._client.list_jobs()
                if details.submission_id and STUDY in (details.metadata or {})
            ]
        return sorted(found, key=lambda job: (not job.over, job.started or 0.0), reverse=True)

    def job(self, id: str) -> Job:
        """Returns a job as it is now."""
        with self._one_line_errors():
            return _job(self._client.get_job_info(id))

    def find(self, wanted: str) -> Job:
        """Finds a job by its id or its study's name; of several, the one that runs, else the newest.

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
        """Uploads a study and starts it. folder: for results, on the head. options: for `prunefront search`."""
        search = ["prunefront", "search", package.study, "--address", "auto", "--folder", folder, *options]
        with tempfile.TemporaryDirectory(prefix="prunefront-job-") as staging:
            package.write(Path(staging))
            environment = {
                "working_dir": staging,
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
            }
            with self._one_line_errors():
                id = self._client.submit_job(
                    entrypoint=f"exec {shlex.join(search)}",
                    submission_id=f"{package.name}-{secrets.token_hex(3)}",
                    metadata={STUDY: package.name, FOLDER: f"{folder.rstrip('/')}/{package.name}"},
                    runtime_env=environment,
                )
        return self.job(id)

    def log(self, job: Job) -> str:
        """Returns the output of a job so far."""
        with self._one_line_errors():
            return str(self._client.get_job_logs(job.id))

    def follow(self, job: Job, write: Callable[[str], None], say: Callable[[str], None]) -> Job:
        """Writes the log of a job until it ends; returns the job as it is then. say: gets a line about the connection.

        The server is asked again and again, because a tunnel or a sleeping laptop would lose a lasting connection.
        Raises NoAnswer when the server has not answered for LOST_SECONDS.
        """
        written, lost = 0, None
        while True:
            try:
                job = self.job(job.id)  # first: its last words are in the log that is read next
                text = self.log(job)
            except NoAnswer as error:
                if lost is None:
                    lost = time.monotonic()
                    say(f"no answer from {self.address}, asking again; the job continues")
                if time.monotonic() - lost > LOST_SECONDS:
                    raise NoAnswer(
                        f"{error}; the job may still be running: {self.command('logs', job)}"
                    ) from None
                time.sleep(POLL_SECONDS)
                continue
            lost = None
            write(text[written:])
            written = len(text)
            if job.over:
                return job
            time.sleep(POLL_SECONDS + len(text) / 1e6)  # every answer holds the whole log

    def stop(self, job: Job) -> Job:
        """Ends a job and waits until it has ended. A job that is over stays as it is."""
        if not job.over:
            with self._one_line_errors():
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
        """Returns the `prunefront` command of this name for a job, to be typed."""
        return shlex.join(["prunefront", name, job.study, "--jobs-server", self.address])

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Turns the errors of Ray and requests into a JobsError, one line that says what to do."""
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
            raise JobsError(
                f"{self.address} refuses, or is no Ray jobs server: {one_line(error, 300)}"
            ) from None


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable within: Ray prefers the address in the environment to the one that it is given."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def server_address(address: str) -> str:
    """Returns the address of a jobs server with its scheme. Raises JobsError for anything else."""
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


def _denied(address: str, message: str) -> str:
    if message.startswith("Authentication failed"):  # 403; 401 is a token that was not sent
        return f"{address} does not accept this token; ~/.ray/auth_token must be the one that its cluster has"
    set_already = os.environ.get("RAY_AUTH_MODE") == "token"
    there = "there is none in ~/.ray/auth_token" if set_already else "RAY_AUTH_MODE=token is not set"
    return (
        f"{address} requires a token, and {there}; copy the cluster's to ~/.ray/auth_token and set "
        "RAY_AUTH_MODE=token"
    )


def _cause(error: BaseException) -> str:
    """Returns the innermost reason of an error in a few words."""
    if isinstance(error, requests.Timeout):
        return "it took too long"
    seen = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    return getattr(seen, "strerror", None) or type(seen).__name__
