"""Real servers, each started once per session where its programs are installed."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.services import ceph


def require(*programs: str) -> None:
    """Skips with the reason where a program is absent; fails where PRUNEFRONT_REQUIRE_SERVICES=1 (in CI)."""
    path = os.pathsep.join(
        (os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")
    )  # sshd is rarely in PATH
    if all(shutil.which(program, path=path) for program in programs):
        return
    reason = f"needs {' '.join(programs)} (scripts/install-test-services.sh)"
    if os.environ.get("PRUNEFRONT_REQUIRE_SERVICES") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def ceph_s3() -> Iterator[ceph.S3Server]:
    """A Ceph RGW server without buckets."""
    require(*ceph.PROGRAMS)
    with ceph.running() as server:
        yield server
