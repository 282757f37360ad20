"""A private PostgreSQL server: its own data, socket and port, nothing of the machine's."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.services.ports import free_port

USER = "postgres"
"""Whom it runs as when we are root, which PostgreSQL refuses; the package makes this user."""


def programs() -> Path | None:
    """The folder of the newest installed server's programs; Debian keeps them off the path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
    return folders[-1] if folders else None


@dataclass
class Postgres:
    """A server with one database that everyone on this machine may use."""

    folder: Path
    bin: Path
    port: int = field(default_factory=free_port)

    @property
    def uri(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def initialise(self) -> None:
        if os.geteuid() == 0:
            found = pwd.getpwnam(USER)
            os.chown(self.folder, found.pw_uid, found.pw_gid)
        self._run("initdb", "-D", f"{self.folder}/data", "-U", USER, "-A", "trust", "--no-sync")

    def start(self) -> None:
        """Returns when it takes connections."""
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run(
            "pg_ctl", "-D", f"{self.folder}/data", "-w", "-l", f"{self.folder}/log", "-o", options, "start"
        )

    def stop(self) -> None:
        """At once, as a crash would."""
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "-w", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        line = [str(self.bin / program), *arguments]
        if os.geteuid() == 0:
            line = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", *line]
        done = subprocess.run(
            line,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a pipe would stay open in the server
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            log = self.folder / "log"
            raise RuntimeError(
                f"{program} ended with {done.returncode}: {log.read_text() if log.exists() else ''}"
            )


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server. Raises RuntimeError where none is installed."""
    found = programs()
    if found is None:
        raise RuntimeError("PostgreSQL is not installed (scripts/install-test-services.sh)")
    folder = Path(tempfile.mkdtemp(prefix="pf-pg-"))
    server = Postgres(folder, found)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        if (folder / "data/postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
