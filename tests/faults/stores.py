"""Faults of the S3 server that networks are published to, made by a proxy in front of a real one."""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.fetch import fetch_from
from prunefront.pipelines.stores.s3 import S3Store
from tests.faults.study import Events, Fault, Study
from tests.services.ceph import PROGRAMS, running
from tests.services.s3_proxy import Proxy, proxied

AWAY_SECONDS = 60.0
BUCKET = "faults"


def published(study: Study) -> Proxy:
    """A study that publishes to Ceph through a proxy."""
    server = study.stack.enter_context(running())
    proxy = study.stack.enter_context(proxied(server.endpoint))
    study.environment |= {k: v for k, v in server.environment().items() if k != "AWS_ENDPOINT_URL"}
    server.make_bucket(BUCKET)
    study.more = f'[artifacts]\nuri = "s3://{BUCKET}/s"\nendpoint_url = "{proxy.endpoint}"\n'
    study.records = lambda events: (unreadable(events, server.environment(), server.endpoint), 0)
    return proxy


def unreadable(events: Events, environment: dict[str, str], endpoint: str) -> int:
    """How many networks that a journal calls trained are not in the bucket, whole, with every digest right."""
    with patch.dict(os.environ, environment), tempfile.TemporaryDirectory() as folder:
        store = S3Store(f"s3://{BUCKET}/s", endpoint_url=endpoint)
        missing = 0
        for event in events:
            if event["event"] == "trained" and event["artifact"]:
                try:
                    shutil.rmtree(fetch_from(store, event["artifact"], Path(folder) / event["name"]))
                except PrunefrontError:
                    missing += 1
        return missing


def bad(fault: str, seconds: float = 0.0) -> Callable[[Study, int, random.Random], None]:
    """A fault: every request goes wrong in one way while networks are published, until the journal has told of two more
    and `seconds` have gone by."""

    def strikes(study: Study, n: int, rng: random.Random) -> None:
        proxy = published(study)
        study.start()
        for _ in range(n):
            trained = sum(e["event"] == "trained" for e in study.events())
            if not study.wait_for("trained", trained + 1):
                return
            before, since = len(study.events()), time.monotonic()
            proxy.fault = fault
            study.strike()
            study.wait_until_it_goes_on(since, before)
            study.wait_for("trained", trained + 3)
            time.sleep(max(0.0, since + seconds - time.monotonic()))
            proxy.fault = ""

    return strikes


def driver_dies_meanwhile(study: Study, n: int, rng: random.Random) -> None:
    """The server is gone, networks wait for it on disk, and the driver is killed; then both come back."""
    proxy = published(study)
    study.start()
    for i in range(n):
        if not study.wait_for("trained", 1 + 2 * i):
            return
        proxy.fault = "down"
        if not study.wait_for("trained", 3 + 2 * i):
            return
        assert study.search is not None
        study.search.kill()
        study.search.wait()
        study.strike()
        proxy.fault = ""
        study.go_on()


def needs_ceph() -> str:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    missing = [program for program in PROGRAMS if not shutil.which(program, path=path)]
    return f"needs {' '.join(missing)} (scripts/install-test-services.sh)" if missing else ""


FAULTS = {
    "s3-down": Fault("S3 away for 60 s", bad("down", AWAY_SECONDS), 2, needs_ceph),
    "s3-500": Fault("S3 answers 500", bad("500"), 2, needs_ceph),
    "s3-503": Fault("S3 answers 503", bad("503"), 2, needs_ceph),
    "s3-slow": Fault("S3 is slow", bad("slow"), 2, needs_ceph),
    "s3-torn": Fault("S3 requests are broken off", bad("torn"), 2, needs_ceph),
    "s3-driver": Fault("SIGKILL of the driver, S3 away", driver_dies_meanwhile, 2, needs_ceph),
}
