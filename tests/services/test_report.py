"""A study's page in a real browser: it chooses as `fetch` and `pick` do, works by keyboard, and asks for nothing."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page, expect

from prunefront.pipelines.artifacts.manifest import LIMITS
from prunefront.pipelines.artifacts.publish import publish
from prunefront.pipelines.cli.main import main
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.fronts.choice import best_row
from prunefront.pipelines.fronts.mistakes import Changed, Mistakes
from prunefront.pipelines.fronts.page import write_page
from prunefront.pipelines.fronts.report import document, write_report
from prunefront.pipelines.fronts.row import FrontError, FrontRow, read_rows
from prunefront.pipelines.fronts.unfinished import FrontSections
from prunefront.pipelines.journal.journal import write_json
from prunefront.pipelines.journal.layout import FRONT, JOURNAL, MISTAKES, STUDY
from prunefront.pipelines.stages.mistakes import thumbnail, to_json
from prunefront.pipelines.stores.folder import DirectoryStore

pytestmark = [pytest.mark.services, pytest.mark.slow]

HOSTILE = '</script><img src=x onerror="document.title=1"><b>'


def data(key: str, accuracy: float, ms: float, size: int, macs: int, **other: Any) -> dict[str, Any]:
    return {
        "key": key,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.012,
        "accuracy_high": min(1.0, accuracy + 0.012),
        "images": 400,
        "latency_ms": ms,
        "latency_ratio": ms / 2,
        "latency_ratio_low": ms / 2.1,
        "latency_ratio_high": ms / 1.9,
        "dense_latency_ms": 2.0,
        "size_bytes": size,
        "macs": macs,
        "params": size // 4,
        "achieved": {"conv1": 1 - ms / 2, HOSTILE: 0.5},
        "artifact": None,
        **other,
    }


# the answers are in the figures: `small` is the least, `quick` the fastest that is within a point of the dense network,
# `thin` beats `quick` in accuracy and loses in MACs alone
NETWORKS = [
    data("small", 0.801, 0.4, 40_123, 1_000_777),
    data("quick", 0.975, 0.7, 100_457, 4_100_123),
    data("thin", 0.978, 0.9, 81_017, 6_000_001),
    data("large", 0.981, 1.2, 251_003, 5_000_999, on_test_front=False),
    data("rival", 0.979, 0.72, 100_457, 4_100_123, control="scratch_e", of="quick"),
    data("dense", 0.983, 2.0, 400_001, 20_000_003),
]
ROWS = read_rows(NETWORKS)


def sections() -> tuple[dict[str, Any], FrontSections]:
    config = parse({"name": "known", "model": {"factory": "digits_cnn"}}, source="s.toml", base=Path())
    return config.to_json(), config.part(FrontSections)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current folder with the searched study `known`, whose networks are published."""
    here = tmp_path_factory.mktemp("here")
    study, settings = here / "studies" / "known", sections()
    store, made = DirectoryStore(study / "artifacts"), here / "made"
    made.mkdir()
    rows = []
    for row in NETWORKS:
        for name in LIMITS:
            (made / name).write_text(json.dumps({"key": row["key"]}))
        shutil.copy(onnx_file(here), made / "model.onnx")
        rows.append({**row, "artifact": publish(store, made, row["key"]).uri})
    write_json(study / STUDY, settings[0])
    write_json(study / FRONT, rows)
    changed = {"wrong": 3, "right": 1, "shown": [7, 9]}
    picture = thumbnail(torch.eye(8)[None])
    kept = Mistakes(300, {"quick": Changed(**changed)}, {"7": picture})
    write_json(study / MISTAKES, to_json(kept))
    failure = {"failure": "crashed", "reason": HOSTILE}
    (study / JOURNAL).write_text(json.dumps({"event": "told", "key": "broken", "outcome": failure}) + "\n")
    return here


def onnx_file(here: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper

    file = here / "model.onnx"
    if not file.exists():
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
        onnx.save(helper.make_model(graph), file)
    return file


@pytest.fixture
def page(browser: Browser, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """The study's page, opened from disk without a network; anything that it complains of or asks for is a failure."""
    monkeypatch.chdir(folder)
    write_report(sections()[1], Path("studies/known"))
    context = browser.new_context(offline=True, viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda request: wrong.append(request.url) if not request.url.startswith("file:") else None
    )
    page.goto((folder / "studies/known/report.html").as_uri())
    yield page
    context.close()
    assert wrong == []


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """The document of `prunefront … --json`."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [*words, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    return json.loads(out)


def chosen(page: Page) -> tuple[str, list[str]]:
    """The network that the page names, and the words of the command that it shows."""
    return (
        page.locator("#chosen").get_attribute("data-key") or "",
        shlex.split(page.locator("#choice code").inner_text()),
    )


@pytest.mark.parametrize(
    ("bounds", "by", "answer"),
    [
        ({}, "accuracy", "dense"),
        ({"latency_ms": "1"}, "accuracy", "rival"),
        ({"latency_ms": "0.7"}, "accuracy", "quick"),
        ({"latency_ms": "1", "size_bytes": "90"}, "accuracy", "thin"),
        ({"null": "97.3"}, "latency_ms", "quick"),
        ({"null": "97.8", "macs": "6.5"}, "size_bytes", "thin"),
    ],
)
def test_page_fetch_and_pick_name_the_same_network(
    page: Page,
    bounds: dict[str, str],
    by: str,
    answer: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in bounds.items():
        page.locator(f"#number-{name}").fill(value)
    page.locator("#by").select_option(by)
    key, words = chosen(page)
    assert key == answer
    assert words[:3] == ["prunefront", "fetch", "studies/known"]
    out = tmp_path / "best"
    fetched = run(capsys, monkeypatch, *words[:-1], str(out))
    assert fetched["row"]["key"] == answer
    assert json.loads((out / "plan.json").read_text())["key"] == answer
    picked = run(capsys, monkeypatch, "prunefront", "pick", *words[2:-2])
    assert picked["key"] == answer
    assert shlex.split(picked["fetch"])[2:-2] == words[2:-2]


def test_every_place_of_every_slider_chooses_what_python_chooses(page: Page) -> None:
    """The bound that a slider shows admits the network that it stands at, and no later one."""
    seen = 0
    for name in ("latency_ms", "size_bytes", "macs", "params", "null"):
        slider = page.locator(f"#range-{name}")
        for place in range(int(slider.get_attribute("max") or 0) + 1):
            slider.fill(str(place))
            key, words = chosen(page)
            under = dict(w.split("=") for w, flag in zip(words[1:], words, strict=False) if flag == "--under")
            needed = [w for w, flag in zip(words[1:], words, strict=False) if flag == "--require"]
            limits = {column: float(value) for column, value in under.items()}
            assert key == best_row(ROWS, limits, None, needed).key
            if name != "null" and limits:
                assert sum(getattr(row, name) <= limits[name] for row in ROWS) >= place + 1
            seen += 1
        page.locator("#reset").click()
    assert seen > 20
    page.locator("#number-latency_ms").fill("0.1")
    expect(page.locator("#choice")).to_contain_text("no network is within these bounds")
    expect(page.locator("#choice")).to_contain_text("latency goes down to 0.4 ms")
    with pytest.raises(FrontError, match=r"smallest latency_ms possible is 0\.4"):
        best_row(ROWS, {"latency_ms": 0.1})


def test_networks_are_compared_by_keyboard_and_those_alike_are_said_to_be(page: Page) -> None:
    mark = page.locator('#front .point[data-key="quick"]')
    mark.focus()
    expect(page.locator("#tip")).to_contain_text("accuracy 97.50 % (96.30 to 98.70)")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.key") == "rival"
    page.locator('#front .point[data-key="thin"]').press("Enter")
    compared = page.locator("#compared")
    expect(compared).to_contain_text("accuracy: cannot be told apart: their 95 % intervals overlap")
    expect(compared).to_contain_text("latency: differ: their 95 % intervals do not overlap")
    expect(compared).to_contain_text("quick newly gets 3 of 300 validation samples wrong, and 1 right")
    assert compared.locator("img").evaluate_all("all => all.map((one) => one.naturalWidth)") == [8]
    expect(compared).to_contain_text("sample 9")
    expect(compared.locator("code").first).to_have_text("prunefront fetch studies/known --key quick -o best/")
    page.reload()
    expect(compared.locator("thead th")).to_have_count(3)  # the address keeps what was picked
    for name, key in (("fastest", "small"), ("best", "dense")):
        page.locator(f'#front [data-name="{name}"]').click()
        expect(page.locator(f'#front .point.picked[data-key="{key}"]')).to_have_count(1)


def test_what_a_study_says_is_shown_as_text(page: Page) -> None:
    assert page.title() == "known"
    assert page.locator("img").count() == 0
    expect(page.locator("#reasons")).to_contain_text(HOSTILE)
    expect(page.locator("#kept")).to_contain_text(HOSTILE)


@pytest.mark.parametrize("width", [420, 1600])
def test_it_fits_its_window_and_draws_within_it(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if "SCREENSHOTS" in os.environ:
            page.screenshot(path=f"{os.environ['SCREENSHOTS']}/report-{width}-{scheme}.png", full_page=True)
    bars = page.evaluate(
        """() => [...document.querySelectorAll("#front .bar")].map(
            (bar) => ["x1", "x2", "y1", "y2"].map((end) => Number(bar.getAttribute(end))))"""
    )
    box = page.locator("#front svg[role=group]").get_attribute("viewBox") or ""
    right, bottom = map(float, box.split()[2:])
    assert len(bars) == 2 * len(ROWS)
    assert all(0 < x < right and 0 < y < bottom for x1, x2, y1, y2 in bars for x, y in ((x1, y1), (x2, y2)))


def many(count: int) -> list[dict[str, Any]]:
    """A journal of so many scored candidates."""
    rng = np.random.default_rng(0)
    events = []
    for i, (kept, luck) in enumerate(rng.random((count, 2))):
        values = {"accuracy": float(kept**0.2 * (0.9 + 0.1 * luck)), "macs": float(int(1e7 * kept) + 1)}
        values |= {"params": float(int(1e5 * kept) + 1), "size_bytes": float(int(4e5 * kept) + 1)}
        key = f"{i:016x}" if i else "dense"
        events.append(
            {"event": "told", "key": key, "outcome": {"values": values, "noise": {"accuracy": 0.01}}}
        )
    return events


def test_five_thousand_candidates_make_a_page_of_a_few_hundred_kilobytes(
    browser: Browser, tmp_path: Path
) -> None:
    rows: list[FrontRow] = ROWS
    write_page(document(sections()[1], many(5000), rows, source="s"), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    expect(page.locator("#charts")).to_contain_text("5,000 candidates")
    page.locator("#number-latency_ms").fill("0.7")
    expect(page.locator("#chosen")).to_have_attribute("data-key", "quick")
    page.close()
