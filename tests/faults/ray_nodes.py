"""A Ray cluster of several nodes on this machine: each is a `ray start` of its own, with ports of its own.

They are what Ray calls nodes in every respect but that they share a kernel: a node has a raylet, its own object store
and workers, and can die alone.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.services.ports import free_port

START_SECONDS = 90.0
RAY = str(Path(sys.executable).with_name("ray"))
ROOT = Path(__file__).parents[2]
COMMON = (
    "--disable-usage-stats",
    "--min-worker-port=0",
    "--max-worker-port=0",
    "--object-store-memory=200000000",
)
"""Ports that no other node of this machine takes, and memory that all of them together have."""


MARK = "PRUNEFRONT_NODE"
"""A variable in the environment of a node's processes, by which they are found again."""


@dataclass(frozen=True)
class Node:
    """What one `ray start` began; `mark` tells its processes."""

    mark: str

    def processes(self) -> list[psutil.Process]:
        """Raylet, agents and, on a head, the cluster's own server, and all that they began."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    # a worker writes its title over its environment, so it is found as the raylet's child
                    found |= {p.pid: p for p in (process, *process.children(recursive=True))}
        return list(found.values())

    def called(self, name: str) -> list[psutil.Process]:
        """Its processes whose title begins with `name`, as in `ray::ScoringWorker`, or whose program is called so."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                line = process.cmdline()
                if line and (line[0].startswith(name) or Path(line[0]).name == name):
                    found.append(process)
        return found

    def kill(self) -> None:
        """All at once and without a word to anyone, as when a machine loses its power."""
        there = self.processes()
        for process in there:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(there, timeout=10)


@dataclass
class RayNodes:
    """A running cluster: `head`, and `others` that joined it."""

    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=free_port)
    client_port: int = field(default_factory=free_port)
    head: Node | None = None
    others: list[Node] = field(default_factory=list)

    ip: str = "127.0.0.1"

    @property
    def address(self) -> str:
        return f"{self.ip}:{self.port}"

    def start_head(self, cpus: int = 1) -> Node:
        """Also again, after the last one died."""
        options = ["--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        options += [f"--ray-client-server-port={self.client_port}"]
        if self.ip != "127.0.0.1":
            options += [f"--node-ip-address={self.ip}"]
        self.head = self._start(options, cpus)
        return self.head

    def join(self, cpus: int = 1) -> Node:
        """One node more."""
        self.others.append(self._start([f"--address={self.address}"], cpus))
        return self.others[-1]

    def kill(self) -> None:
        for node in (*self.others, *([self.head] if self.head else [])):
            node.kill()
        self.others, self.head = [], None

    def _start(self, options: list[str], cpus: int) -> Node:
        node = Node(uuid.uuid4().hex)
        line = [RAY, "start", f"--num-cpus={cpus}", *COMMON, *options]
        with (self.folder / f"{node.mark}.txt").open("w+") as output:
            done = subprocess.run(
                line,
                env=self.environment | {MARK: node.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=START_SECONDS,
                check=False,
            )
            if done.returncode:
                output.seek(0)
                raise RuntimeError(f"a node of Ray did not start: {output.read()[-2000:]}")
        return node


@contextmanager
def ray_nodes(others: int = 2, ip: str = "127.0.0.1") -> Iterator[RayNodes]:
    """A head and so many other nodes, of one CPU each; `environment` is what a driver needs to join them."""
    folder = Path(tempfile.mkdtemp(prefix="pf-"))  # short: Ray's sockets lie deep below it
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment = kept | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.urandom(16).hex(),
    }
    cluster = RayNodes(folder, environment, ip=ip)
    try:
        cluster.start_head()
        for _ in range(others):
            cluster.join()
        yield cluster
    finally:
        cluster.kill()
        shutil.rmtree(folder, ignore_errors=True)
