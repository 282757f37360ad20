"""A real S3 server for tests: one-node Ceph with its gateway, in memory, on free loopback ports."""

import base64
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw")
_TOOLS = ("monmaptool", "ceph", "radosgw-admin")  # come with the same packages
_START_SECONDS = 60.0

_CONF = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 1073741824
osd memory target = 939524096
run dir = {folder}/run
admin socket = {folder}/run/$name.$pid.asok
log file = {folder}/$name.log
keyring = {folder}/keyring
[mon]
mon data = {folder}/mon
mon data avail crit = 1
[osd]
osd data = {folder}/osd
osd class load list = *
osd class default list = *
[client]
rgw frontends = beast endpoint=127.0.0.1:{s3_port}
rgw data = {folder}/rgw
rgw thread pool size = 16
rgw run sync thread = false
"""

_KEYRING = {
    "mon.": ("mon 'allow *'",),
    "client.admin": ("mon 'allow *'", "osd 'allow *'", "mgr 'allow *'"),
    "osd.0": ("mon 'allow profile osd'", "osd 'allow *'"),
}


@dataclass(frozen=True)
class S3Server:
    """Where a running server listens, and the keys of its only user."""

    endpoint: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """Variables for boto3, and for programs that a test starts."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> None:
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=name)
        client.close()


@contextmanager
def running() -> Iterator[S3Server]:
    """Starts the server, about ten seconds, and ends it. Raises RuntimeError if it does not start."""
    # not pytest's tmp_path: the path of a unix socket may have only 107 characters
    folder = Path(tempfile.mkdtemp(prefix="ceph-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        yield _start(folder, stack)


def _start(folder: Path, stack: ExitStack) -> S3Server:
    mon_port, s3_port = _free_ports(2)
    fsid = str(uuid.uuid4())
    for name in ("mon", "osd", "run", "rgw"):
        (folder / name).mkdir()
    conf = folder / "ceph.conf"
    conf.write_text(_CONF.format(fsid=fsid, folder=folder, mon_port=mon_port, s3_port=s3_port))
    (folder / "keyring").write_text("".join(_keyring_entry(name, caps) for name, caps in _KEYRING.items()))
    (folder / "keyring").chmod(0o600)
    environment = {**os.environ, "CEPH_CONF": str(conf), "CEPH_ARGS": "", "LC_ALL": "C"}

    def call(*arguments: str) -> None:
        _call(arguments, environment)

    def serve(*arguments: str) -> None:
        stack.enter_context(_served(arguments, environment, folder / f"{arguments[0]}.out"))

    keyring, monmap = str(folder / "keyring"), str(folder / "monmap")
    address = f"[v2:127.0.0.1:{mon_port}]"
    call("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, monmap)
    call("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
    serve("ceph-mon", "-f", "-i", "a")
    osd = str(uuid.uuid4())
    call("ceph", "--connect-timeout", "30", "osd", "new", osd)
    call("ceph", "auth", "import", "-i", keyring)
    call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    serve("ceph-osd", "-f", "-i", "0")
    call("ceph", "config", "set", "global", "mon_allow_pool_size_one", "true")
    serve("radosgw", "-f", "-n", "client.admin")
    server = S3Server(f"http://127.0.0.1:{s3_port}", "testkey", "testsecrettestsecret")
    _wait_until_answering(server.endpoint, folder / "radosgw.out")
    user = ("--uid=test", "--display-name=test")
    keys = (f"--access-key={server.access_key}", f"--secret-key={server.secret_key}")
    call("radosgw-admin", "user", "create", *user, *keys)
    return server


def _keyring_entry(name: str, caps: Sequence[str]) -> str:
    # a cephx key: type 1 (AES), creation time, length, 16 random bytes
    key = base64.b64encode(struct.pack("<hiih", 1, int(time.time()), 0, 16) + os.urandom(16)).decode()
    lines = "".join(
        f'\tcaps {who} = "{what.strip(chr(39))}"\n' for who, what in (c.split(" ", 1) for c in caps)
    )
    return f"[{name}]\n\tkey = {key}\n{lines}"


def _call(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, timeout=_START_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:3])} ended with {done.returncode}: {done.stderr[-800:]}")


@contextmanager
def _served(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            arguments, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except (
            subprocess.TimeoutExpired
        ):  # without its monitor a gateway waits for minutes; nothing is to be kept
            process.kill()
            process.wait()


def _wait_until_answering(endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    # no proxy that the environment may name: this is loopback
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        try:
            opener.open(endpoint, timeout=2).close()
        except urllib.error.HTTPError as answer:
            answer.close()
        except OSError:
            time.sleep(0.2)
            continue
        return
    raise RuntimeError(f"radosgw did not answer at {endpoint}: {log.read_text()[-800:]}")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
