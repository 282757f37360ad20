"""MLflow's web server on the tracking store of a study, for this machine alone."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from urllib.request import urlopen

from prunefront.pipelines.events.redaction import without_password
from prunefront.pipelines.tracking.reach import TrackingError, reach, sqlite_file
from prunefront.pipelines.tracking.tracker import ARTIFACTS

START_SECONDS = 90.0
"""Longest wait for the server's first answer."""


def serve(
    tracking_uri: str,
    port: int = 5000,
    host: str = "127.0.0.1",
    say: Callable[[str], None] = print,
    on_ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serves the pages until Ctrl-C or SIGTERM. Where the records are on a server already, nothing is served.

    say: gets lines for people. on_ready: gets the pages' address once they can be opened. Raises TrackingError: no such
    database, a port that is taken, a server that does not start.
    """
    if tracking_uri.startswith(("http://", "https://")):
        reach(tracking_uri)
        on_ready(without_password(tracking_uri))
        say(f"MLflow is at {without_password(tracking_uri)}")
        return
    file = sqlite_file(tracking_uri)
    if file is not None and not file.is_file():
        raise TrackingError(
            f"there is no tracking database {file}; run `prunefront search STUDY.toml` first, or name another study"
        )
    if not _is_loopback(host):
        raise TrackingError(
            f"at {host}, everybody who reaches this machine could read, change and delete the record without a "
            "password; leave --host out and use ssh (ssh -L 5000:127.0.0.1:5000 THIS_MACHINE), or start a "
            "server that asks for a password, as examples/mlflow/README.md shows"
        )
    reach(tracking_uri)
    _claim(host, port)
    address = f"http://{host}:{port}"
    with tempfile.TemporaryFile() as output:
        server = _start(tracking_uri, file, host, port, output.fileno())
        previous = [(number, signal.signal(number, _interrupt)) for number in (signal.SIGTERM, signal.SIGHUP)]
        try:
            _await(server, address, lambda: _last_lines(output.fileno()))
            on_ready(address)
            say(f"MLflow on {without_password(tracking_uri)}: {address} (Ctrl-C ends it)")
            code = server.wait()
            raise TrackingError(f"the MLflow server ended with code {code}: {_last_lines(output.fileno())}")
        except KeyboardInterrupt:
            say("ended")
        finally:
            _end(server)
            for number, handler in previous:
                signal.signal(number, handler)


def _is_loopback(host: str) -> bool:
    """Tells whether only this machine gets there. Raises TrackingError for a name that is none."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise TrackingError(f"--host {host} is no address of this machine: {error.strerror}") from None
    return all(ip_address(address.partition("%")[0]).is_loopback for address in map(str, found))


def _start(uri: str, file: Path | None, host: str, port: int, output: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        host,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    if file is not None:
        # otherwise the server makes ./mlartifacts where it was started
        command += ["--artifacts-destination", str((file.parent / ARTIFACTS).absolute())]
    # the job runner would be eight more processes; an address may hold a password and is not for the process list
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    # a session of its own, so that the server and its workers can be ended together
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _await(server: subprocess.Popen[bytes], address: str, output: Callable[[], str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(f"{address}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise TrackingError(f"the MLflow server did not start: {output()}")


def _claim(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), reuse_port=False):
            return
    except OSError as error:
        raise TrackingError(
            f"port {port} on {host} cannot be used ({error.strerror}); choose another one with --port"
        ) from error


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the server and its workers, which may outlive it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):  # all of them are gone already
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(3)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _last_lines(output: int) -> str:
    """Returns the end of the server's output, on one line."""
    size = os.fstat(output).st_size
    text = os.pread(output, 2000, max(0, size - 2000)).decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return without_password(re.sub(r"\s+", " ", " | ".join(lines[-3:])))[:400] or "it wrote nothing"
