"""Whole artifacts, their manifests and the fronts that name them, by somebody who may write to the store."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from prunefront.choice import GroupChoice, pattern
from prunefront.pipelines.artifacts.fetch import fetch, read_stored_front
from prunefront.pipelines.artifacts.manifest import LIMITS, MANIFEST, PROGRAM, Manifest
from prunefront.pipelines.artifacts.publish import publish
from prunefront.pipelines.artifacts.verify import torch_network, verify
from prunefront.pipelines.config.sections import ModelSection
from prunefront.pipelines.data import Split, Splits, Transform
from prunefront.pipelines.fronts.page import page
from prunefront.pipelines.fronts.report import document
from prunefront.pipelines.fronts.row import FrontRow, read_rows
from prunefront.pipelines.fronts.table import table
from prunefront.pipelines.journal.layout import FRONT
from prunefront.pipelines.models import build
from prunefront.pipelines.stores.folder import DirectoryStore
from prunefront.pipelines.stores.store import read_json
from prunefront.pipelines.study.fetch import fetch_best
from prunefront.pruners.cut import surgery
from prunefront.pruners.plan.decide import plan
from prunefront.pruners.trace.tracer import trace
from tests.hostile.strategies import TEXTS, answered, damaged, documents, fuzzed
from tests.hostile.test_weights import safetensors
from tests.pipelines.artifacts.test_verify import publish_network
from tests.pipelines.fronts.test_front import DATA, SECTIONS

ROW = {**DATA[0], "artifact": None}


@cache
def splits() -> Splits:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8), rng.integers(0, 3, 40)
    part = Split(images[:10], labels[:10]), Split(images[10:20], labels[10:20])
    return Splits(*part, Split(images[20:], labels[20:]), Transform((0.5,), (0.25,)), 3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DirectoryStore:
    """A store with the genuine artifact and a front that names it."""
    folder = tmp_path_factory.mktemp("genuine")
    dense = build(ModelSection(factory="digits_cnn", options={"width": 4}), classes=3, input_shape=(1, 8, 8))
    graph = trace(dense, torch.zeros(2, 1, 8, 8))
    halves = {g.name: GroupChoice("any", 0.5, keep=pattern([*range(0, g.units, 2)])) for g in graph.groups}
    cut = plan(graph, halves, {})
    model: nn.Module = surgery.apply(dense, graph, cut)
    made = publish_network(folder, model, "digits_cnn", cut, splits())
    opened = DirectoryStore(folder / "store")
    row = {**ROW, "artifact": publish(opened, made, "genuine").uri}
    (opened.root / FRONT).write_text(json.dumps([row]))
    return opened


@contextmanager
def untouched(folder: Path, *but: str) -> Iterator[None]:
    """Fails where anything in the folder is made or changed, but for these names."""

    def found() -> dict[Path, tuple[int, int]]:
        files = (p for p in folder.rglob("*") if p.relative_to(folder).parts[0] not in but)
        return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in files}

    before = found()
    yield
    assert found() == before


def shown(rows: list[FrontRow]) -> None:
    """A front as a terminal and a browser get it."""
    console = Console(file=StringIO(), width=500)
    console.print(table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.replace("\n", "").isprintable()
    made = page(document(SECTIONS, (), rows, source="s"))
    assert "<script>alert" not in made
    assert made.count("</script>") == 2


@given(content=st.data())
@fuzzed
def test_manifests(store: DirectoryStore, tmp_path: Path, content: st.DataObject) -> None:
    genuine = read_json(store, next(key for key in _keys(store) if key.endswith(MANIFEST)))
    given_ = content.draw(documents(genuine))
    manifest = answered(lambda: Manifest.parse(given_.decode(errors="replace"), source="x"))
    if manifest is not None:
        assert {*manifest.files, PROGRAM} == set(LIMITS)
        assert Manifest.parse(manifest.text(), source="x") == manifest
    root = tmp_path / "store"
    identity = manifest.id if manifest is not None else "genuine-0123456789ab"
    shutil.rmtree(root, ignore_errors=True)
    (root / identity).mkdir(parents=True)
    (root / identity / MANIFEST).write_bytes(given_)
    (root / identity / "plan.json").write_bytes(given_)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with untouched(tmp_path, "out"):
        answered(lambda: fetch(f"{root}/{identity}", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@given(data=st.data())
@fuzzed
def test_consistent_forgeries(store: DirectoryStore, tmp_path: Path, data: st.DataObject) -> None:
    """Whoever can publish makes digests that fit: fetched, measured again, rebuilt, its card read."""
    forged = tmp_path / "forged"
    shutil.rmtree(forged, ignore_errors=True)
    genuine = next(p.parent for p in store.root.rglob(MANIFEST))
    shutil.copytree(genuine, forged)
    for name in data.draw(
        st.sets(st.sampled_from(["plan.json", "measurement.json", "onnx", "weights"]), min_size=1)
    ):
        match name:
            case "onnx":
                (forged / "model.onnx").write_bytes(data.draw(damaged((genuine / "model.onnx").read_bytes())))
            case "weights":
                content = (genuine / "weights.safetensors").read_bytes()
                (forged / "weights.safetensors").write_bytes(data.draw(safetensors(content)))
            case _:
                content = data.draw(documents(json.loads((genuine / name).read_text())))
                (forged / name).write_bytes(content)
    (forged / MANIFEST).unlink()
    elsewhere, out = DirectoryStore(tmp_path / "store"), tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(elsewhere.root, ignore_errors=True)
    uri = publish(elsewhere, forged, "genuine").uri
    with untouched(tmp_path, "out"):
        if answered(lambda: fetch(uri, out)) is None:
            return
        found = answered(lambda: verify(out, splits=lambda section: splits()))
        answered(lambda: torch_network(out))
    if found is not None:
        texts = [*(t for c in found.checks for t in (c.name, c.recorded, c.measured)), *found.skipped]
        assert all(t.isprintable() and len(t) <= 2000 for t in texts)


@given(content=documents([ROW, {**ROW, "key": "b", "artifact": "genuine-0123456789ab"}]))
@fuzzed
def test_fronts(store: DirectoryStore, tmp_path: Path, content: bytes) -> None:
    root = tmp_path / "store"
    root.mkdir(exist_ok=True)
    (root / FRONT).write_bytes(content)
    rows = answered(lambda: read_stored_front(DirectoryStore(root)))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with untouched(tmp_path, "out"):
        answered(lambda: fetch_best(str(root), {}, "accuracy", None, tmp_path / "out", None))
    front = None if rows is None else answered(lambda: read_rows(rows))
    if front is not None:
        assert all(r.artifact is None or r.artifact.startswith(f"{root}/") for r in front)
        shown(front)


@given(uri=st.one_of(TEXTS, TEXTS.map("s3://{}".format), TEXTS.map("/x/{}-0123456789ab".format)), key=TEXTS)
@fuzzed
def test_addresses(store: DirectoryStore, tmp_path: Path, uri: str, key: str) -> None:
    with untouched(tmp_path):
        answered(lambda: fetch(uri, tmp_path / "out"))
        answered(
            lambda: fetch_best(uri, {key: 1.0}, "accuracy", None, tmp_path / "out", "http://127.0.0.1:1")
        )
        answered(lambda: fetch_best(str(store.root), {}, key, None, tmp_path / "out", None))


def _keys(store: DirectoryStore) -> list[str]:
    return [str(p.relative_to(store.root)) for p in store.root.rglob("*") if p.is_file()]
