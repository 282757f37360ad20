"""Starting Ray on this machine, or joining a cluster."""

import glob
import logging
import os
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.head_watch import watch_head
from prunefront.pipelines.cluster.ray_token import guarded_token
from prunefront.pipelines.cluster.stopping import keep_handler
from prunefront.pipelines.config.sections import ClusterSection, MeasureSection
from prunefront.reading import read_text
from prunefront.strict_json import loads

ANSWER_SECONDS = 5.0
"""Seconds that a machine may take to accept a connection."""

START_SECONDS = 90
"""Seconds that Ray's own node may take to come up on this machine."""

KEPT_WARM = 8
"""Most worker processes that Ray keeps, beside one for each CPU, for the next tasks: importing takes each seconds."""

START_TRIES = 3
"""Tries to start Ray on this machine."""

START_PAUSE = 5.0
"""Seconds between two tries."""

SLOW_SIGNS = (
    "timed out",
    "timeout",
    "failed to connect to gcs",
    "failed to start gcs",
    "cannot find the node",
)
"""Parts of what Ray says of a start that took too long, in small letters."""

CLIENT_PORT = 10001
"""Port on which Ray listens for ray:// unless set otherwise."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that a study runs on. workers: processes that the study uses. nodes: machines that they may be on.

    remote: the study itself runs outside the cluster, through ray://.
    """

    workers: int
    nodes: int
    remote: bool


@contextmanager
def connect(
    address: str | None,
    section: ClusterSection,
    metrics_port: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Cluster]:
    """Connects to Ray for the length of a study; a cluster that is started here also ends here.

    address: as for `cluster_address`. metrics_port: port at which Ray, if it starts here, exports metrics; None = a
    free one. say: takes lines for people. Raises PrunefrontError where Ray does not start here in START_TRIES tries,
    and within seconds where no cluster answers, or has no room for one worker.
    """
    set_up_tune()
    # Ray's warning that it leaves GPUs visible to workers that asked for none
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    address = cluster_address(address)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
        if section.workers is not None:
            options["num_cpus"] = max(section.workers * section.cpus_per_worker, 1)
        cpus = options.get("num_cpus") or os.cpu_count() or 1
        # those that gathered statistics make the report; Ray would end them while others hold the CPUs
        options["_system_config"] = {"num_workers_soft_limit": cpus + min(cpus, KEPT_WARM)}
        if metrics_port is not None:
            options["_metrics_export_port"] = metrics_port
    else:
        options["address"] = address
        if _remote(address) and "RAY_RUNTIME_ENV" in os.environ:
            # Ray 2.60 documents the variable and does not read it for ray://
            options["runtime_env"] = _runtime_env(os.environ["RAY_RUNTIME_ENV"])
    if (line := guarded_token(create=address is None)) != "":
        say(line)
    try:
        if address is not None:
            _reach(address)
        with warnings.catch_warnings(), keep_handler():
            # what it says is in the error, too
            warnings.filterwarnings("ignore", "Ray Client connection timed out")
            _start(options, say)
    except PrunefrontError:
        raise
    except Exception as error:  # Ray raises plain Exception, too
        _shut_down()  # ends the part of it that did start
        if address is None:
            raise PrunefrontError(f"Ray could not be started on this machine: {_why(error)}") from error
        raise PrunefrontError(
            f"no Ray cluster at --address {address}: {_why(error)}; start one with `ray start --head` or `ray up "
            "cluster.yaml`, or leave --address out to use this machine"
        ) from error
    remote = address is not None and _remote(address)
    # through ray:// the client itself notices, and raises
    with nullcontext() if remote else watch_head(ray.get_runtime_context().gcs_address):
        try:
            yield _room(section, remote=remote)
        finally:
            _shut_down()


def _start(options: dict[str, Any], say: Callable[[str], None]) -> None:
    """Starts or joins Ray, which is tried again where it took too long. Raises what Ray raised last."""
    import ray

    local = options["address"] == "local"
    if local:  # Ray's own 30 s are too few on a machine with other work
        os.environ.setdefault("RAY_raylet_start_wait_time_s", str(START_SECONDS))
    for left in reversed(range(START_TRIES if local else 2)):
        before = _children()
        try:
            ray.init(**options)
            return
        except ConnectionAbortedError:
            # the head could not start this client's process of its own; one that has only just begun may at once
            if not left:
                raise
            _shut_down()
        except Exception as error:
            _shut_down()
            if not (left and local and _slow(error)):
                raise
            _end(_children() - before)
            say(f"Ray did not start in time on this busy machine ({_why(error)}); it is tried again")
            time.sleep(START_PAUSE)


def _slow(error: Exception) -> bool:
    """Tells whether a start failed for a reason that may be gone in a while."""
    text = str(error).lower()
    signs = any(sign in text for sign in SLOW_SIGNS)
    return isinstance(error, TimeoutError) or (signs and "unauthenticated" not in text)


def _shut_down() -> None:
    """Ends Ray here. What fails in that is no news: something failed before."""
    import ray

    with suppress(Exception):
        ray.shutdown()


def _children() -> set[int]:
    """Returns the processes that this one has started and that still live; none where the system does not say."""
    found: set[int] = set()
    for task in glob.glob("/proc/self/task/*/children"):
        with suppress(OSError):
            found |= {int(number) for number in read_text(task).split()}
    return found


def _end(processes: set[int]) -> None:
    """Ends what a start of Ray that failed has left, so that the next one has the machine for itself."""
    for number in processes:
        with suppress(OSError):
            name = read_text(f"/proc/{number}/cmdline")
            if "ray" in name:
                os.kill(number, signal.SIGKILL)


def fewer_workers(section: ClusterSection, cluster: Cluster) -> list[str]:
    """Returns a line where the cluster has room for fewer workers than the study asks for."""
    asked = section.workers or 0
    if asked <= cluster.workers:
        return []
    return [
        f"[cluster] workers = {asked}, but Ray has room for {cluster.workers}; the study uses {cluster.workers}"
    ]


def cluster_address(address: str | None) -> str | None:
    """The cluster to join: the given one, else RAY_ADDRESS, which Ray sets within a submitted job. None: here."""
    return address or os.environ.get("RAY_ADDRESS") or None


def set_up_tune() -> None:
    """Sets the environment variables that Tune reads in the process that it runs in; the user's own settings stay."""
    # its CSV, JSON and TensorBoard files cost the driver two thirds of its time and nobody reads them
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # its banner and its result table, which our own display replaces
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # the traceback of every dead worker, though its trial is tried once more; lasting failures are recorded
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    # it would take Ctrl-C for "report what there is", and the front of half a study would look like a whole one
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # a user's `module:callable` is imported from the folder that the search was started in
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")


def check_metrics_port(address: str | None, port: int) -> None:
    """Raises PrunefrontError where Ray cannot export metrics at a port. address: as for `cluster_address`.

    That is so on a cluster, whose port was set when it was started, and where something listens at the port already:
    Ray would go on without metrics.
    """
    if (address := cluster_address(address)) is not None:
        raise PrunefrontError(
            f"--metrics-port {port} cannot be combined with the address {address}, since a cluster's port for "
            f"metrics is set when it is started; use `ray start --metrics-export-port {port}`"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise PrunefrontError(
                f"metrics cannot be exported at port {port}: {error.strerror}; give --metrics-port another one"
            ) from error


def _remote(address: str) -> bool:
    return address.startswith("ray://")


def _runtime_env(text: str) -> dict[str, Any]:
    try:
        found = loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PrunefrontError(
            f"""RAY_RUNTIME_ENV = {text!r} is not a JSON object such as '{{"working_dir": "."}}'"""
        )
    return found


def _reach(address: str) -> None:
    """Checks that somebody listens at HOST:PORT or ray://HOST[:PORT]; other addresses are left to Ray.

    Raises OSError within seconds, where Ray itself would go on asking for half a minute, and ValueError for a malformed
    port.
    """
    parts = urlsplit(address if _remote(address) else f"//{address}")
    port = parts.port or (CLIENT_PORT if _remote(address) else None)
    if parts.hostname and port:
        socket.create_connection((parts.hostname, port), timeout=ANSWER_SECONDS).close()


def _why(error: Exception) -> str:
    """Returns the reason of an error as one line, without a full stop."""
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    if text == "ray client connection timeout":
        # Ray says no more when the port is another service's, nor when the token is missing or wrong
        return (
            f"something answers there, but refuses this client; ray:// is port {CLIENT_PORT} of the head unless "
            "set otherwise, and a cluster that was started with a token needs RAY_AUTH_MODE=token and ~/.ray/auth_token"
        )
    # of several lines the first says what, and the last, the end of a traceback, why
    lines = [line.strip().rstrip(".:") for line in text.splitlines() if line.strip(" .:")]
    return ": ".join(dict.fromkeys((lines[0], lines[-1])))


def _room(section: ClusterSection, *, remote: bool) -> Cluster:
    from prunefront.pipelines.cluster.nodes import live_nodes

    nodes = live_nodes()
    # by node: Ray would wait without end for a worker that fits on none of them
    rooms = [room for node in nodes if (room := node.room(section))]
    room = sum(rooms)
    if room < 1:
        cpus, gpus = (max((n.resources.get(r, 0) for n in nodes), default=0) for r in ("CPU", "GPU"))
        raise PrunefrontError(
            f"Ray has at most {cpus:g} CPUs and {gpus:g} GPUs on one node, but one worker asks for "
            f"{section.cpus_per_worker} and {section.gpus_per_worker:g}; lower [cluster] cpus_per_worker or "
            "gpus_per_worker"
        )
    return Cluster(min(section.workers or room, room), len(rooms), remote)


def check_address(section: MeasureSection, address: str | None) -> None:
    """Raises PrunefrontError for a device without a cluster that it could be in."""
    if section.device is not None and cluster_address(address) is None:
        raise PrunefrontError(
            f"measure.device = {section.device!r} is a node of a Ray cluster, and without --address this machine works "
            "alone; start a cluster here with `ray start --head`, let the device join it, and give --address auto "
            "(docs/placement.md)"
        )
