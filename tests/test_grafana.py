"""The example dashboard asks for what a search exports, all of it, and for nothing else."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from prunefront.pipelines.events.metrics import FAMILIES

FILE = Path(__file__).parents[1] / "examples" / "grafana" / "prunefront.json"


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads(FILE.read_text())


def queries(dashboard: dict[str, Any]) -> list[str]:
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return found + [v["definition"] for v in dashboard["templating"]["list"] if v["type"] == "query"]


def test_it_shows_every_metric_and_no_other(dashboard: dict[str, Any]) -> None:
    asked = {name for query in queries(dashboard) for name in re.findall(r"\bray_\w+", query)}
    exported = {f"{f.exported_name}{'_bucket' if f.kind == 'histogram' else ''}" for f in FAMILIES}
    assert asked == exported


def test_labels_are_those_that_a_metric_has(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            names = re.findall(r"\bray_\w+", target["expr"])
            (family,) = [f for f in FAMILIES if names[0].removesuffix("_bucket") == f.exported_name]
            (kept,) = re.findall(r"by \(([^)]*)\)", target["expr"])
            has = {"study", *family.labels} | ({"le"} if family.kind == "histogram" else set())
            assert {*kept.split(", ")} <= has
            assert {*re.findall(r"{{(\w+)}}", target["legendFormat"])} == {*kept.split(", ")} - {"le"}
            assert '{study=~"$study"}' in target["expr"]


def test_panels_have_room_and_a_data_source(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    variables = {v["name"] for v in dashboard["templating"]["list"]}
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0
        for target in panel["targets"]:
            assert (
                target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            )
            assert {*re.findall(r"\$(\w+)", target["expr"])} <= variables | {"__rate_interval"}
    for a, b in combinations((p["gridPos"] for p in panels), 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
