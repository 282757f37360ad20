"""Artifacts through folders and memory: round trips, interrupted uploads, and stores that lie."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.fetch import fetch, fetch_from, read_stored_front
from prunefront.pipelines.artifacts.manifest import (
    LIMITS,
    MANIFEST,
    PROGRAM,
    VERSION,
    Manifest,
    artifact_uri,
    check_digests,
    measure_file,
)
from prunefront.pipelines.artifacts.publish import Artifact, publish
from prunefront.pipelines.journal.layout import FRONT
from prunefront.pipelines.stores.folder import DirectoryStore
from prunefront.pipelines.stores.memory import MemoryStore
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.store import (
    ArtifactError,
    ArtifactNotFound,
    ArtifactStore,
    check_key,
    put_json,
    read_json,
    read_text,
)
from prunefront.pruners.saved import load_network
from tests.stores import (
    check_first_come_first_served,
    check_list_and_delete,
    check_two_studies_do_no_harm,
    file_of_artifact,
)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder as an evaluator leaves it."""
    folder = tmp_path / "made"
    folder.mkdir()
    save_file({"conv.weight": torch.arange(6.0).reshape(2, 3)}, folder / "weights.safetensors")
    (folder / "plan.json").write_text('{"classes": 10}')
    (folder / "measurement.json").write_text('{"accuracy": 0.5}')
    (folder / "model.onnx").write_bytes(file_of_artifact("model.onnx", bytes(range(256)) * 40))
    (folder / "model.pt2").write_bytes(bytes(range(256)) * 30)
    (folder / "card.md").write_text("# dense")
    return folder


@pytest.fixture(params=["directory", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return DirectoryStore(tmp_path / "store") if request.param == "directory" else MemoryStore()


def test_round_trip(store: ArtifactStore, made: Path, tmp_path: Path) -> None:
    store.probe()
    artifact = publish(store, made, "dense")
    out = fetch_from(store, artifact.id, tmp_path / "deep" / "best")
    assert artifact.uri == f"{store.uri}/{artifact.id}"
    assert artifact.id == f"dense-{artifact.sha256[:12]}"
    assert artifact.size_bytes == sum((made / name).stat().st_size for name in LIMITS)
    assert {f.name for f in out.iterdir()} == {*LIMITS, MANIFEST}
    assert all((out / name).read_bytes() == (made / name).read_bytes() for name in LIMITS)
    assert check_digests(out).sha256 == artifact.sha256
    assert load_file(out / "weights.safetensors")["conv.weight"].equal(torch.arange(6.0).reshape(2, 3))


def test_what_every_store_does(store: ArtifactStore, tmp_path: Path) -> None:
    check_list_and_delete(store, tmp_path)
    check_first_come_first_served(store, tmp_path)


def test_two_studies_in_one_folder(tmp_path: Path) -> None:
    check_two_studies_do_no_harm(lambda: DirectoryStore(tmp_path / "store"), tmp_path)


def test_a_folder_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    check_first_come_first_served(DirectoryStore(tmp_path / "store"), tmp_path)


def test_the_same_content_is_sent_once(made: Path) -> None:
    store = _Counting()
    first = publish(store, made, "dense")
    assert store.sent == [f"{first.id}/{name}" for name in (*LIMITS, MANIFEST)]  # the manifest last
    assert publish(store, made, "dense") == first
    assert len(store.sent) == len(LIMITS) + 1


@pytest.mark.parametrize("damage", ["absent", "truncated", "not text"])
def test_an_upload_that_was_cut_short_is_mended(made: Path, tmp_path: Path, damage: str) -> None:
    store = MemoryStore()
    artifact = publish(store, made, "dense")
    key = f"{artifact.id}/{MANIFEST}"
    text = store.objects.pop(key)
    store.objects[f"{artifact.id}/model.onnx"] = b"half"
    if damage != "absent":
        store.objects[key] = text[:-9] if damage == "truncated" else b"\xff\xfe"
    with pytest.raises(ArtifactError):
        fetch_from(store, artifact.id, tmp_path / "out")
    assert publish(store, made, "dense") == artifact
    fetch_from(store, artifact.id, tmp_path / "out")


def test_a_network_off_the_front_has_no_program(store: ArtifactStore, made: Path, tmp_path: Path) -> None:
    whole = publish(store, made, "dense")
    (made / PROGRAM).unlink()
    artifact = publish(store, made, "dense")
    assert artifact.id != whole.id
    out = fetch_from(store, artifact.id, tmp_path / "out")
    assert {f.name for f in out.iterdir()} == {*LIMITS, MANIFEST} - {PROGRAM}
    assert check_digests(out).sha256 == artifact.sha256
    # who takes away the file of one that has it has another artifact, or none
    store.put(f"{whole.id}/{MANIFEST}", made / MANIFEST)
    with pytest.raises(ArtifactError, match=f"belongs to {artifact.id}, not to {whole.id}"):
        fetch_from(store, whole.id, tmp_path / "other")


@pytest.mark.parametrize("missing", sorted(LIMITS.keys() - {PROGRAM}))
def test_nothing_is_published_without_all_files(made: Path, missing: str) -> None:
    store = MemoryStore()
    (made / missing).unlink()
    with pytest.raises(ArtifactError, match=missing):
        publish(store, made, "dense")
    assert store.objects == {}


def test_other_content_or_name_is_another_artifact(store: ArtifactStore, made: Path) -> None:
    ids = {publish(store, made, "a").id, publish(store, made, "b").id}
    (made / "plan.json").write_text('{"classes": 11}')
    assert len({*ids, publish(store, made, "a").id}) == 3


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a" * 101, "a b", "a\n"])
def test_a_name_that_is_no_name(store: ArtifactStore, made: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="cannot name an artifact"):
        publish(store, made, name)


def test_fetch_by_uri_and_from_a_relative_folder(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    artifact = publish(open_store("store"), made, "dense")
    assert artifact.uri == str(tmp_path / "store" / artifact.id)
    for out, uri in enumerate((artifact.uri, f"file://{artifact.uri}", f"store/{artifact.id}/")):
        assert check_digests(fetch(uri, Path(str(out)))).id == artifact.id


def test_fetch_keeps_what_is_in_the_way(store: ArtifactStore, made: Path, tmp_path: Path) -> None:
    artifact = publish(store, made, "dense")
    (tmp_path / "empty").mkdir()
    out = fetch_from(store, artifact.id, tmp_path / "empty")
    inode = (out / "model.onnx").stat().st_ino
    assert fetch_from(store, artifact.id, out) == out
    assert (out / "model.onnx").stat().st_ino == inode  # the same artifact was left as it was

    other = publish(store, made, "other")
    with pytest.raises(ArtifactError, match="not empty and does not hold other-"):
        fetch_from(store, other.id, out)
    (out / "plan.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not empty and is no whole artifact"):
        fetch_from(store, artifact.id, out)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="not empty"):
        fetch_from(store, artifact.id, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failed_fetch_leaves_nothing(made: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    artifact = publish(store, made, "dense")
    store.objects[f"{artifact.id}/model.onnx"] = bytes((made / "model.onnx").stat().st_size)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ArtifactError, match=r"model\.onnx has sha256"):
        fetch_from(store, artifact.id, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "cut short"),
        (lambda data: data + b"x", "at most"),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "damaged"),
        (None, "there is no"),
    ],
    ids=["truncated", "longer", "one bit", "absent"],
)
@pytest.mark.parametrize("name", sorted(LIMITS))
def test_every_change_of_a_stored_file_is_found(
    made: Path, tmp_path: Path, name: str, damage: Callable[[bytes], bytes] | None, message: str
) -> None:
    store = MemoryStore()
    artifact = publish(store, made, "dense")
    data = store.objects.pop(f"{artifact.id}/{name}")
    if damage is not None:
        store.objects[f"{artifact.id}/{name}"] = damage(data)
    with pytest.raises(ArtifactError, match=message):
        fetch_from(store, artifact.id, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_consistent_forgery_has_another_id(made: Path, tmp_path: Path) -> None:
    """Files and manifest changed together fit each other, but not the id under which they were published."""
    store = MemoryStore()
    artifact = publish(store, made, "dense")
    (made / "plan.json").write_text('{"classes": 99}')
    forged = publish(store, made, "dense")
    for name in (*LIMITS, MANIFEST):
        store.objects[f"{artifact.id}/{name}"] = store.objects[f"{forged.id}/{name}"]
    with pytest.raises(ArtifactError, match=f"belongs to {forged.id}, not to {artifact.id}"):
        fetch_from(store, artifact.id, tmp_path / "out")


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a list": lambda m: [m],
    "a string": lambda m: "manifest",
    "another format": lambda m: m | {"format": "other"},
    "a later version": lambda m: m | {"version": 3},
    "version true": lambda m: m | {"version": True},
    "an extra entry": lambda m: m | {"hooks": "rm"},
    "name with a path": lambda m: m | {"name": "../../etc"},
    "name not text": lambda m: m | {"name": 3},
    "files a list": lambda m: m | {"files": list(m["files"])},
    "no files": lambda m: m | {"files": {}},
    "a traversal": lambda m: m | {"files": m["files"] | {"../../.bashrc": m["files"]["plan.json"]}},
    "an absolute name": lambda m: m | {"files": m["files"] | {"/etc/passwd": m["files"]["plan.json"]}},
    "an extra file": lambda m: m | {"files": m["files"] | {"setup.py": m["files"]["plan.json"]}},
    "a file missing": lambda m: m | {"files": {n: r for n, r in m["files"].items() if n != "plan.json"}},
    "record a list": lambda m: _with(m, ["sha", 1]),
    "record with more": lambda m: _with(m, m["files"]["plan.json"] | {"path": "/etc/passwd"}),
    "size below zero": lambda m: _with(m, m["files"]["plan.json"] | {"size_bytes": -1}),
    "size beyond the limit": lambda m: _with(m, m["files"]["plan.json"] | {"size_bytes": 1 << 40}),
    "size a float": lambda m: _with(m, m["files"]["plan.json"] | {"size_bytes": 15.0}),
    "size true": lambda m: _with(m, m["files"]["plan.json"] | {"size_bytes": True}),
    "digest short": lambda m: _with(m, m["files"]["plan.json"] | {"sha256": "ab"}),
    "digest in capitals": lambda m: _with(m, m["files"]["plan.json"] | {"sha256": "A" * 64}),
    "digest with a line end": lambda m: _with(m, m["files"]["plan.json"] | {"sha256": "a" * 64 + "\n"}),
    "digest null": lambda m: _with(m, m["files"]["plan.json"] | {"sha256": None}),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_is_one_clear_error(
    made: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    store = MemoryStore()
    artifact = publish(store, made, "dense")
    manifest = json.loads(store.objects[f"{artifact.id}/{MANIFEST}"])
    store.objects[f"{artifact.id}/{MANIFEST}"] = json.dumps(change(manifest)).encode()
    _refused(store, artifact, tmp_path)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff", b"[" * 60_000, b'{"a": NaN}', b"1" * 60_000, b" " * (65 << 10)],
    ids=["empty", "cut", "not text", "nested", "nan", "huge number", "too long"],
)
def test_a_manifest_that_is_not_json_is_one_clear_error(made: Path, tmp_path: Path, text: bytes) -> None:
    store = MemoryStore()
    artifact = publish(store, made, "dense")
    store.objects[f"{artifact.id}/{MANIFEST}"] = text
    _refused(store, artifact, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
ALMOST = st.fixed_dictionaries(
    {
        "format": st.just("prunefront-artifact"),
        "version": st.just(1),
        "name": st.text() | st.just("dense"),
        "files": st.dictionaries(st.sampled_from([*LIMITS]) | st.text(), JSON),
    }
)


@given(data=JSON | ALMOST)
def test_no_json_breaks_the_manifest_reader(data: object) -> None:
    with contextlib.suppress(ArtifactError):
        assert {*Manifest.parse(json.dumps(data), source="here").files, PROGRAM} == set(LIMITS)


@given(
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,30}", fullmatch=True),
    sizes=st.lists(st.integers(0, 1 << 20), min_size=len(LIMITS), max_size=len(LIMITS)),
    seed=st.integers(0, 2**32),
)
def test_a_manifest_survives_its_own_text(name: str, sizes: list[int], seed: int) -> None:
    digest = np.random.default_rng(seed).bytes(32).hex()
    files = {n: {"sha256": digest, "size_bytes": size} for n, size in zip(LIMITS, sizes, strict=True)}
    text = json.dumps({"format": "prunefront-artifact", "version": VERSION, "name": name, "files": files})
    manifest = Manifest.parse(text, source="here")
    assert Manifest.parse(manifest.text(), source="there") == manifest
    assert artifact_uri("s3://b/p", f"s3://b/p/{manifest.id}") == f"s3://b/p/{manifest.id}"


def test_what_does_not_fit_the_disk_is_not_read(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _Counting()
    artifact = publish(store, made, "dense")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=artifact.size_bytes - 1))
    with pytest.raises(ArtifactError, match=f"only {artifact.size_bytes - 1} free"):
        fetch_from(store, artifact.id, tmp_path / "out")
    assert store.got == [f"{artifact.id}/{MANIFEST}"]


KEYS = [
    "",
    "/etc/passwd",
    "../x",
    "a/../b",
    "a//b",
    "a/",
    "./a",
    "a/.b",
    "a\\b",
    "a\0b",
    "a\n",
    "ä",
    "a" * 513,
]


@pytest.mark.parametrize("key", KEYS)
def test_no_store_takes_a_bad_key(store: ArtifactStore, tmp_path: Path, key: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for call in (
        lambda: store.put(key, file),
        lambda: store.get(key, tmp_path / "out"),
        lambda: store.exists(key),
        lambda: store.put_new(key, file),
        lambda: store.delete(key),
    ):
        with pytest.raises(ArtifactError, match="cannot be a key"):
            call()


@given(key=st.text(alphabet="ab./_-\\", max_size=12))
def test_an_accepted_key_stays_below_the_root(key: str) -> None:
    with contextlib.suppress(ArtifactError):
        root = Path("/root-of-store")
        assert (root / check_key(key)).resolve().is_relative_to(root)
        assert Path(key).as_posix() == key


def test_what_a_store_does_not_hold(store: ArtifactStore, tmp_path: Path) -> None:
    assert not store.exists("a/b")
    with pytest.raises(ArtifactNotFound, match="there is no a/b"):
        store.get("a/b", tmp_path / "out")
    with pytest.raises(ArtifactNotFound, match="or its upload never finished"):
        fetch_from(store, "dense-0123456789ab", tmp_path / "out")


def test_a_limit_is_kept(store: ArtifactStore, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    store.put("a", file)
    store.get("a", tmp_path / "out", limit=5)
    assert (tmp_path / "out").read_bytes() == b"12345"
    with pytest.raises(ArtifactError, match="5 bytes where at most 4"):
        store.get("a", tmp_path / "out2", limit=4)


def test_json_and_text(store: ArtifactStore) -> None:
    rows = [{"key": "dense", "accuracy": 0.5, "name": "ü"}]
    put_json(store, FRONT, rows)
    assert read_json(store, FRONT) == rows
    assert json.loads(read_text(store, FRONT)) == rows
    with pytest.raises(ArtifactError, match="at most 3"):
        read_text(store, FRONT, limit=3)
    with pytest.raises(ValueError, match="not JSON compliant"):
        put_json(store, FRONT, [float("nan")])


def test_a_front_leads_to_its_artifacts(store: ArtifactStore, made: Path, tmp_path: Path) -> None:
    artifact = publish(store, made, "dense")
    put_json(
        store, FRONT, [{"key": "a", "artifact": artifact.uri}, {"key": "b", "artifact": artifact.id}, {}]
    )
    rows = read_stored_front(store)
    assert [row.get("artifact") for row in rows] == [artifact.uri, artifact.uri, None]
    fetch_from(store, rows[0]["artifact"].rpartition("/")[2], tmp_path / "out")


@pytest.mark.parametrize(
    "artifact",
    [
        "s3://other-bucket/prefix/dense-0123456789ab",
        "/etc/dense-0123456789ab",
        "{root}/../dense-0123456789ab",
        "{root}/sub/dense-0123456789ab",
        "{root}-evil/dense-0123456789ab",
        "{root}/dense",
        "{root}",
        "",
        3,
        ["x"],
    ],
)
def test_a_front_cannot_point_elsewhere(store: ArtifactStore, artifact: object) -> None:
    named = artifact.format(root=store.uri) if isinstance(artifact, str) else artifact
    with pytest.raises(ArtifactError, match="names an artifact that is not under it"):
        artifact_uri(store.uri, named)
    put_json(store, FRONT, [{"key": "a", "artifact": named}])
    with pytest.raises(ArtifactError, match="names an artifact that is not under it"):
        read_stored_front(store)


@pytest.mark.parametrize("front", [{}, [1], "x", None])
def test_a_front_that_is_none(store: ArtifactStore, front: object) -> None:
    put_json(store, FRONT, front)
    with pytest.raises(ArtifactError, match="is not a front"):
        read_stored_front(store)


@pytest.mark.parametrize("uri", ["", "file://", "gs://bucket/x", "http://host/x", "memory://x"])
def test_an_address_that_no_store_has(uri: str) -> None:
    with pytest.raises(ArtifactError, match="possible: a folder, s3://bucket/prefix"):
        open_store(uri)


@pytest.mark.parametrize("uri", ["", "store", "store/dense", "s3://bucket", "s3://bucket/x/.."])
def test_an_address_without_an_artifact(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not name an artifact"):
        fetch(uri, tmp_path / "out")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = DirectoryStore(tmp_path / "file" / "store")
    with pytest.raises(ArtifactError, match="check path, permissions"):
        store.probe()
    with pytest.raises(ArtifactError, match="check path, permissions"):
        store.put("a", tmp_path / "file")


def test_a_folder_probe_leaves_nothing(tmp_path: Path) -> None:
    DirectoryStore(tmp_path / "store").probe()
    assert list((tmp_path / "store").iterdir()) == []


def test_weights_are_checked_before_they_are_read(made: Path, tmp_path: Path) -> None:
    store, net = MemoryStore(), nn.Sequential()
    out = fetch_from(store, publish(store, made, "dense").id, tmp_path / "out")
    (out / "weights.safetensors").write_bytes(b"x" * (out / "weights.safetensors").stat().st_size)
    with pytest.raises(PrunefrontError, match=r"does not match manifest\.json"):
        load_network(net, out)
    (made / "plan.json").write_text('{"plan": {"groups": []}}')
    (made / "weights.safetensors").write_bytes(b"\x80\x04pickle")
    other = fetch_from(store, publish(store, made, "dense").id, tmp_path / "other")
    with pytest.raises(PrunefrontError, match="cannot be read as safetensors"):
        load_network(net, other)


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFound, match="prunefront fetch"):
        check_digests(tmp_path)


def test_a_digest_is_the_files_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    record = measure_file(tmp_path / "file")
    # FIPS 180-2, appendix B.1
    assert record.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record.size_bytes == 3


class _Counting(MemoryStore):
    """Remembers which objects went in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.got: list[str] = []

    def put(self, key: str, file: Path) -> str:
        self.sent.append(key)
        return super().put(key, file)

    def get(self, key: str, file: Path, *, limit: int | None = None) -> None:
        self.got.append(key)
        super().get(key, file, limit=limit)


def _with(manifest: dict[str, Any], record: object) -> dict[str, Any]:
    return manifest | {"files": manifest["files"] | {"plan.json": record}}


def _refused(store: ArtifactStore, artifact: Artifact, folder: Path) -> None:
    before = sorted(_all(folder))
    with pytest.raises(PrunefrontError) as caught:
        fetch_from(store, artifact.id, folder / "out")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert sorted(_all(folder)) == before


def _all(folder: Path) -> Iterator[Path]:
    return folder.rglob("*")
