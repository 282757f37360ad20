"""`ui.serve` looked at in a real browser: the study, its candidates, the front as page and table."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from prunefront.pipelines.config.read import parse
from prunefront.pipelines.fronts.report import write_report
from prunefront.pipelines.fronts.row import read_rows
from prunefront.pipelines.fronts.unfinished import FrontSections
from prunefront.pipelines.tracking.tracker import MlflowTracker
from prunefront.search.outcomes.measurement import Failure, Measurement
from tests.services.ports import free_port

pytestmark = [
    pytest.mark.services,
    pytest.mark.slow,
    # MLflow 3.17 uses an option that SQLAlchemy 2.1 deprecates
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]


def row(key: str, kept: float) -> dict[str, object]:
    accuracy = 0.97 - 0.1 * (1 - kept) ** 2
    return {
        "key": key,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.015,
        "accuracy_high": accuracy + 0.012,
        "images": 360,
        "latency_ms": 0.2 * kept,
        "latency_ratio": kept,
        "latency_ratio_low": kept - 0.01,
        "latency_ratio_high": kept + 0.01,
        "dense_latency_ms": 0.2,
        "size_bytes": int(50_000 * kept),
        "macs": int(900_000 * kept),
        "params": int(12_000 * kept),
        "achieved": {"conv1": 1 - kept, "conv2": 1 - kept},
        "artifact": f"artifacts/{key}",
        "on_test_front": key != "c3",
    }


ROWS = [row("a1", 0.2), row("b2", 0.4), row("c3", 0.6), row("dense", 1.0)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Tracking address, experiment id and run id of a study with four candidates and a front."""
    folder = tmp_path_factory.mktemp("study")
    config = parse({"name": "digits", "model": {"factory": "digits_cnn"}}, source="s.toml", base=Path())
    write_report(config.part(FrontSections), folder, read_rows(ROWS))
    uri = f"sqlite:///{folder}/mlflow.db"
    tracker = MlflowTracker(uri, "prunefront", folder)
    run_id = tracker.start({"name": "digits", "seed": 7, "search": {"candidates": 4}})
    for step, (key, kept) in enumerate((("a1", 0.2), ("b2", 0.4), ("c3", 0.6))):
        params = {"criterion": "l1", "ratio/conv1": 1 - kept, "ratio/conv2": 1 - kept}
        values = {"accuracy": 0.9 + kept / 20, "macs": 9e5 * kept}
        tracker.log(key, params, Measurement(values, {"accuracy": 0.01}), f"artifacts/{key}", seconds=2.5)
        tracker.log_progress(step, 0.2 + kept, step + 1)
    tracker.log("d4", {"criterion": "l1", "ratio/conv1": 0.95}, Failure("diverged", "loss is nan in epoch 1"))
    tracker.log_front(ROWS, [folder / "report.html"])
    assert tracker.finish() == ()
    return uri, tracker._experiment_id, run_id


@pytest.fixture(scope="module")
def address(study: tuple[str, str, str]) -> Iterator[str]:
    """`serve` in a process of its own, ended as Ctrl-C ends it."""
    port = free_port()
    code = "import sys; from prunefront.pipelines.cli.mlflow_ui import serve; serve(sys.argv[1], int(sys.argv[2]))"
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        # a test run that was started in the background ignores Ctrl-C, and so would what it starts
        ["env", "--default-signal=INT", sys.executable, "-u", "-c", code, study[0], str(port)],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    assert f"http://127.0.0.1:{port}" in said
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert (process.returncode, rest) == (0, "ended\n")
    with pytest.raises(OSError, match="refused"):
        open_socket(port)


def open_socket(port: int) -> None:
    import socket

    socket.create_connection(("127.0.0.1", port), timeout=2).close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Page]:
    """A new page for each address: MLflow's navigation within one keeps the artifact before on the screen."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    yield page
    page.screenshot(path=Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{request.node.name}.png")
    page.close()


def test_the_study_opens_to_its_candidates(page: Page, address: str, study: tuple[str, str, str]) -> None:
    page.goto(f"{address}/#/experiments/{study[1]}/runs")
    expect(page.get_by_role("link", name="digits")).to_be_visible()
    # the [+] before the name; it has neither a role nor a name of its own
    page.locator("[role=gridcell]").filter(has_text="digits").locator("svg, button").first.click()
    for key in ("a1", "b2", "c3", "d4"):
        expect(page.get_by_role("link", name=key)).to_be_visible()


def test_the_run_shows_params_and_hypervolume(page: Page, address: str, study: tuple[str, str, str]) -> None:
    page.goto(f"{address}/#/experiments/{study[1]}/runs/{study[2]}")
    expect(page.get_by_text("hypervolume", exact=True).first).to_be_visible()
    expect(page.get_by_text("search.candidates", exact=True).first).to_be_visible()


def test_the_front_is_a_page(page: Page, address: str, study: tuple[str, str, str]) -> None:
    page.goto(f"{address}/#/experiments/{study[1]}/runs/{study[2]}/artifacts/report.html")
    frame = page.frame_locator("iframe")
    expect(frame.locator("#front .point")).to_have_count(len(ROWS))
    frame.get_by_role("button", name="MACs", exact=True).click()
    expect(frame.get_by_text("MACs [thousand]", exact=True).first).to_be_visible()
    frame.locator('#front .point[data-key="a1"]').press("Enter")
    expect(frame.get_by_text("prunefront fetch", exact=False).last).to_contain_text("--key a1")


def test_the_front_is_a_table(page: Page, address: str, study: tuple[str, str, str]) -> None:
    page.goto(f"{address}/#/experiments/{study[1]}/runs/{study[2]}/artifacts/front_table.json")
    expect(page.get_by_text("accuracy_low", exact=True).first).to_be_visible()
    expect(page.get_by_text("dense", exact=True).first).to_be_visible()
