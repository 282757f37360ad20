"""A second machine on this one, for tests that cross hosts: namespaces with sshd in them.

It has an address of its own at the end of a virtual cable, its own home folder, and sees only its own
processes, so `ray stop` there stops only Ray there. It is gone, with every process in it, when the context
ends or the test process dies. Needs root.
"""

import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("unshare", "setpriv", "ip", "ssh", "ssh-keygen", "sshd", "rsync")
"""What must be installed."""


@dataclass(frozen=True)
class Host:
    """A running machine. `home` is its user's home folder, seen from outside; `outside` this machine's address as it
    sees it, at the other end of `cable`; `process` what runs it."""

    address: str
    user: str
    private_key: Path
    home: Path
    outside: str
    cable: str
    process: "subprocess.Popen[bytes]"

    def ssh(self, command: str, *, seconds: float = 60) -> str:
        """The output of a command there. Raises CalledProcessError with what it said."""
        line = ["ssh", "-i", str(self.private_key), *SSH_OPTIONS, f"{self.user}@{self.address}", command]
        return subprocess.run(line, check=True, capture_output=True, text=True, timeout=seconds).stdout

    def switch_off(self) -> None:
        """Ends every process of it at once."""
        self.process.kill()  # and with it process 1 of the namespace, then all the others and the cable
        self.process.wait()

    def unplug(self) -> None:
        """Its processes live, but nobody hears of them: no connection is closed."""
        _run("ip", "link", "set", self.cable, "down")


_made = itertools.count()

SSH_OPTIONS = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")


@contextmanager
def host(folder: Path, *, bashrc: str = "", start_seconds: float = 20.0) -> Iterator[Host]:
    """Runs a machine whose files lie in `folder`; `bashrc` is what its shells read.

    Raises RuntimeError, with sshd's log, if it cannot be reached within `start_seconds`.
    """
    count = next(_made)
    # a /30 network for each host: the cable of an earlier one goes some time after its namespace
    number = (os.getpid() * 7 + count) % 2**14
    base = f"10.78.{number >> 6}"
    outside, inside = f"{base}.{(number & 63) * 4 + 1}", f"{base}.{(number & 63) * 4 + 2}"
    cable = f"host{os.getpid()}-{count}"

    for name in ("home/.ssh", "ray"):
        (folder / name).mkdir(parents=True, mode=0o700)
    for key in ("hostkey", "key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
    (folder / "home/.ssh/authorized_keys").write_text((folder / "key.pub").read_text())
    (folder / "home/.bashrc").write_text(bashrc)

    script = Path(__file__).with_name("host.sh")
    unshare = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    log = folder / "sshd.log"
    with log.open("wb") as stderr:
        machine = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                *unshare,
                "bash",
                script,
                folder,
                f"{inside}/30",
                outside,
                "root",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    running = Host(inside, "root", folder / "key", folder / "home", outside, cable, machine)
    try:
        assert machine.stdin is not None
        assert machine.stdout is not None
        if machine.stdout.readline().strip() != b"namespaces":
            raise RuntimeError(f"the host's namespaces could not be made: {log.read_text()}")
        _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(machine.pid))
        _run("ip", "address", "add", f"{outside}/30", "dev", cable)
        _run("ip", "link", "set", cable, "up")
        machine.stdin.write(b"\n")
        machine.stdin.close()
        _wait_for_ssh(running, log, time.monotonic() + start_seconds)
        yield running
    finally:
        running.switch_off()
        if machine.stdout is not None:
            machine.stdout.close()


def _run(*line: str) -> None:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)}: {done.stderr.strip()}")


def _wait_for_ssh(running: Host, log: Path, deadline: float) -> None:
    while True:
        try:
            running.ssh("true", seconds=10)
        except subprocess.CalledProcessError as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"ssh: {error.stderr.strip()}; sshd: {log.read_text()}") from None
            time.sleep(0.2)
        else:
            return
