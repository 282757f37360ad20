"""Real servers, each started once per session where its programs are installed."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.services import ceph

FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
)


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a page."""
    require("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=FLAGS.split(), timeout=60_000
        )
        yield browser
        browser.close()
