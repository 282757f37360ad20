"""Lag of a study's state in its store behind its journal, and the cost of the upload for the driver.

The benchmark starts a real S3 server (Ceph RGW, in memory) and appends events of a usual size at a steady rate, like a
driver. The lag of an event is the time from its line on the disk to a snapshot with it in the store. A machine that
vanishes at a random moment loses the events of the lag at that moment.

    python -m benchmarks.state_lag [--quick] [--json] [--seconds 60] [--events 20]
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import boto3

from benchmarks.harness import arguments, report, table
from prunefront.pipelines.journal.journal import Journal
from prunefront.pipelines.journal.layout import JOURNAL
from prunefront.pipelines.recovery.owner import claim_root
from prunefront.pipelines.recovery.restore import fetch_events
from prunefront.pipelines.recovery.state_store import StateStore
from prunefront.pipelines.recovery.upload import StateUploader
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.s3 import S3Store
from tests.services import ceph

VALUES = {"accuracy": 0.9123, "macs": 12345678.0, "params": 234567.0, "size_bytes": 938268.0}
OUTCOME = {"values": VALUES, "noise": {"accuracy": 0.0174}}
CHOICES = {f"layer{i}": {"criterion": "taylor", "ratio": i / 64} for i in range(32)}


class Timed(S3Store):
    """A store that records the time of each snapshot's put, and the bytes of all puts."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.snapshots: list[tuple[float, int]] = []
        self.puts, self.bytes, self.segment = 0, 0, -1

    def put(self, key: str, file: Path) -> str:
        text = file.read_text()
        uri = super().put(key, file)
        self.puts, self.bytes = self.puts + 1, self.bytes + len(text)
        if "/objects/" in key:  # a closed segment: this study has no other files
            self.segment = _last(text)
        elif key.endswith("snapshot.json"):
            self.snapshots.append((time.perf_counter(), max(self.segment, _last(json.loads(text)["tail"]))))
        return uri


def _last(lines: str) -> int:
    """Returns the number of the last event; -1 without one."""
    return int(json.loads(lines.splitlines()[-1])["number"]) if lines else -1


def append(
    folder: Path, seconds: float, events: float, uploader: StateUploader | None
) -> tuple[list[float], list[float]]:
    """Returns the time at which each event was on the disk, and the duration of its append, in seconds."""
    written, took = [], []
    with Journal(folder / JOURNAL, guard=uploader.check if uploader else lambda: None) as journal:
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            before = time.perf_counter()
            journal.append("told", number=len(written), key="0" * 16, outcome=OUTCOME, choices=CHOICES)
            written.append(time.perf_counter())
            took.append(written[-1] - before)
            time.sleep(max(0.0, start + len(written) / events - time.perf_counter()))
    return written, took


def measure(seconds: float, events: float) -> Mapping[str, float]:
    """Returns the figures, in seconds, bytes and counts."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, plain = Path(temporary) / "study", Path(temporary) / "plain"
        folder.mkdir()
        plain.mkdir()
        boto3.session.Session().client("s3", region_name="us-east-1").create_bucket(Bucket="lag")
        store = Timed("s3://lag/study")
        owner = claim_root(store, folder, "study", begun=False)
        state = StateStore(store, owner.id)
        uploader = StateUploader(state, state.begin(1, folder), folder, None, print)
        _, without = append(plain, seconds / 4, events, None)
        uploader.start()
        written, took = append(folder, seconds, events, uploader)
        uploader.close()
        snapshot = StateStore(open_store(store.uri), owner.id).latest().snapshot
        assert snapshot is not None
        assert len(fetch_events(state, snapshot)) == len(written)
        lags, at = [], 0
        for moment, last in store.snapshots:
            while at <= last:
                lags.append(moment - written[at])
                at += 1
        lags.sort()
        return {
            "events": len(written),
            "lag_median_s": statistics.median(lags),
            "lag_p99_s": lags[int(0.99 * len(lags))],
            "lag_max_s": lags[-1],
            "append_median_ms": 1000 * statistics.median(took),
            "append_median_without_ms": 1000 * statistics.median(without),
            "puts": store.puts,
            "bytes_put": store.bytes,
            "journal_bytes": (folder / JOURNAL).stat().st_size,
        }


def main() -> None:
    parser = arguments(__doc__, quick="4 seconds instead of 60")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--events", type=float, default=20.0, help="per second")
    given = parser.parse_args()
    with ceph.running() as server:
        os.environ.update(server.environment())
        found = measure(given.seconds or (4.0 if given.quick else 60.0), given.events)
    cells = [(name, f"{v:,.4g}" if isinstance(v, float) else f"{v:,}") for name, v in found.items()]
    report(given, found, table(("Ceph RGW in memory", ""), cells), ("boto3", "prunefront"))


if __name__ == "__main__":
    main()
