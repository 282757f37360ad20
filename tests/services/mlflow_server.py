"""A real MLflow server that can be paused, killed and started again on its port."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from tests.services.ports import free_port

START_SECONDS = 120.0


@dataclass
class MlflowServer:
    """One server; its files lie in `folder`. store: the address of its database, "" = an SQLite file in there."""

    folder: Path
    store: str = ""
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += [
            "--backend-store-uri",
            self.store or f"sqlite:///{self.folder}/server.db",
            "--workers",
            "1",
        ]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        output = self.folder / "server.log"
        with output.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start: {output.read_text()[-2000:]}") from None
                time.sleep(0.2)

    def signal(self, number: signal.Signals) -> None:
        """To all of its processes: SIGSTOP pauses it, with its port open; SIGCONT lets it go on."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def mlflow_server(folder: Path, port: int | None = None, store: str = "") -> Iterator[MlflowServer]:
    """A running server, killed at the end."""
    server = MlflowServer(folder, store, free_port() if port is None else port)
    try:
        server.start()
        yield server
    finally:
        server.kill()
