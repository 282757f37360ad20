"""Artifacts in a real S3 server (Ceph RGW): what it enforces, and what it leaves to us."""

import json
import uuid
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from prunefront.pipelines.artifacts.fetch import fetch, read_stored_front
from prunefront.pipelines.artifacts.manifest import LIMITS, MANIFEST, check_digests
from prunefront.pipelines.artifacts.publish import publish
from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data import load, open_data
from prunefront.pipelines.data.cache import FOLDER_VARIABLE
from prunefront.pipelines.journal.layout import FRONT
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.s3 import PART_BYTES, S3Error, S3Store
from prunefront.pipelines.stores.spool import Spool, SpoolingStore
from prunefront.pipelines.stores.store import ArtifactError, ArtifactNotFound, StoreRefused, put_json
from tests.pipelines.data.test_sources import split, write_parquet
from tests.services.ceph import S3Server
from tests.services.s3_proxy import FAULTS, proxied
from tests.stores import (
    check_first_come_first_served,
    check_list_and_delete,
    check_two_studies_do_no_harm,
    file_of_artifact,
)

pytestmark = pytest.mark.services

LARGE = 64 << 20


@pytest.fixture(autouse=True)
def environment(ceph_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ceph_s3.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(environment: None) -> str:
    """A new bucket's name."""
    name = f"b-{uuid.uuid4()}"
    _client().create_bucket(Bucket=name)
    return name


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Random files, the weights large enough for several parts."""
    folder = tmp_path / "made"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in LIMITS:
        content = rng.bytes(3 * PART_BYTES if name == "weights.safetensors" else 1000)
        (folder / name).write_bytes(file_of_artifact(name, content))
    return folder


def test_publish_find_and_fetch(bucket: str, made: Path, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}/studies/one")
    store.probe()
    artifact = publish(store, made, "dense")
    put_json(store, FRONT, [{"key": "dense", "artifact": artifact.uri}])
    listed = _listed(bucket)
    assert listed == {
        f"studies/one/{name}" for name in (FRONT, *(f"{artifact.id}/{n}" for n in (*LIMITS, MANIFEST)))
    }
    assert publish(store, made, "dense") == artifact

    (row,) = read_stored_front(open_store(f"s3://{bucket}/studies/one/"))
    out = fetch(row["artifact"], tmp_path / "out")
    assert check_digests(out).sha256 == artifact.sha256
    assert all((out / name).read_bytes() == (made / name).read_bytes() for name in LIMITS)


def test_what_every_store_does(bucket: str, tmp_path: Path) -> None:
    check_list_and_delete(S3Store(f"s3://{bucket}/p"), tmp_path)
    check_first_come_first_served(S3Store(f"s3://{bucket}/p"), tmp_path)


def test_two_studies_under_one_prefix(bucket: str, tmp_path: Path) -> None:
    check_two_studies_do_no_harm(lambda: S3Store(f"s3://{bucket}/p"), tmp_path)


def test_an_upload_that_was_never_ended_is_found_and_dropped(bucket: str) -> None:
    client = _client()
    begun = client.create_multipart_upload(Bucket=bucket, Key="p/a/model.onnx")
    client.upload_part(
        Bucket=bucket, Key="p/a/model.onnx", UploadId=begun["UploadId"], PartNumber=1, Body=b"12345"
    )
    store = S3Store(f"s3://{bucket}/p")
    (upload,) = store.uploads()
    assert (upload.key, upload.size_bytes) == ("a/model.onnx", 5)
    store.abort(upload)
    store.abort(upload)
    assert list(store.uploads()) == []


def test_64_megabytes_travel_in_parts(bucket: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(np.random.default_rng(1).bytes(LARGE))
    store = S3Store(f"s3://{bucket}")
    store.put("large", file)
    assert _client().head_object(Bucket=bucket, Key="large")["ETag"].endswith(f'-{LARGE // PART_BYTES}"')
    store.get("large", tmp_path / "back", limit=LARGE)
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    with pytest.raises(ArtifactError, match=f"at most {LARGE - 1}"):
        store.get("large", tmp_path / "back", limit=LARGE - 1)


def test_training_images_are_kept_on_this_machine(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several parts, and anew when the object is another one."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    test = write_parquet(tmp_path / "test.parquet", split(9, size=128))
    for seed in (1, 2):
        part = split(240, seed=seed, size=128)
        file = write_parquet(tmp_path / "train.parquet", part)
        assert file.stat().st_size > PART_BYTES
        uri = S3Store(f"s3://{bucket}/d").put("train.parquet", file)
        section = DataSection(source="parquet", train=uri, test=test)
        for _ in range(2):
            np.testing.assert_array_equal(load(section).train.images, part.images[:200])
    assert len([*(tmp_path / "cache").glob("*.parquet")]) == 2


def test_shards_are_read_as_a_stream(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    store, part = S3Store(f"s3://{bucket}/d"), split(30, size=32)
    for i in range(3):
        store.put(f"train/{i}.parquet", write_parquet(tmp_path / "shard.parquet", part[10 * i : 10 * i + 10]))
    store.put("test.parquet", write_parquet(tmp_path / "test.parquet", split(9, seed=1, size=32)))
    for train in ("train/?.parquet", "train/"):  # a pattern, and all shards below a prefix
        section = DataSection(
            source="parquet",
            train=f"s3://{bucket}/d/{train}",
            test=f"s3://{bucket}/d/test.parquet",
            stream=True,
        )
        found = open_data(section, say=lambda line: None)
        labels = [n for batch in found.part("train").batches(8) for n in batch.targets.tolist()]
        assert labels == part.labels[:25].tolist()
    assert not [*(tmp_path / "cache").glob("*.parquet")]


def test_a_corrupt_object_is_found(bucket: str, made: Path, tmp_path: Path) -> None:
    artifact = publish(open_store(f"s3://{bucket}/p"), made, "dense")
    body = (made / "weights.safetensors").read_bytes()
    _client().put_object(
        Bucket=bucket, Key=f"p/{artifact.id}/weights.safetensors", Body=bytes([body[0] ^ 1]) + body[1:]
    )
    with pytest.raises(ArtifactError, match=r"weights\.safetensors has sha256"):
        fetch(artifact.uri, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_secret(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(S3Error, match="does not accept the credentials \\(SignatureDoesNotMatch\\)"):
        S3Store(f"s3://{bucket}").probe()
    with pytest.raises(S3Error, match="check that AWS_SECRET_ACCESS_KEY is right"):
        fetch(f"s3://{bucket}/dense-0123456789ab", tmp_path / "out")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(S3Error, match="does not accept the credentials \\(InvalidAccessKeyId\\)"):
        S3Store(f"s3://{bucket}").probe()


def test_without_the_right_to_write(bucket: str) -> None:
    _client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(no_writing(bucket)))
    with pytest.raises(S3Error, match=r"cannot write .*access denied.*s3:PutObject"):
        S3Store(f"s3://{bucket}/p").probe()


def no_writing(bucket: str) -> dict[str, Any]:
    """A policy that lets nobody put objects."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:PutObject",
                "Resource": f"arn:aws:s3:::{bucket}/*",
            }
        ],
    }


def test_what_is_not_there(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(S3Error, match="there is no bucket 'no-such-bucket'"):
        S3Store("s3://no-such-bucket").probe()
    with pytest.raises(S3Error, match="there is no bucket 'no-such-bucket'"):
        fetch("s3://no-such-bucket/dense-0123456789ab", tmp_path / "out")
    with pytest.raises(ArtifactNotFound, match="or its upload never finished"):
        fetch(f"s3://{bucket}/dense-0123456789ab", tmp_path / "out")


def test_the_probe_leaves_nothing(bucket: str) -> None:
    S3Store(f"s3://{bucket}/p").probe()
    assert _listed(bucket) == set()


def _client() -> Any:
    return boto3.session.Session().client("s3")


def _listed(bucket: str) -> set[str]:
    return {item["Key"] for item in _client().list_objects_v2(Bucket=bucket).get("Contents", [])}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_bad_network_keeps_back_arrives(
    fault: str, ceph_s3: S3Server, bucket: str, made: Path, tmp_path: Path
) -> None:
    """Publishing goes on at once, and everything is there, whole, soon after the fault has passed."""
    said: list[str] = []
    with proxied(ceph_s3.endpoint) as proxy:
        behind = S3Store(f"s3://{bucket}/p", endpoint_url=proxy.endpoint)
        behind.probe()
        proxy.fault = fault
        store = SpoolingStore(behind, Spool(tmp_path / "spool"), said.append, pause=0.05)
        artifact = publish(store, made, "dense")
        put_json(store, FRONT, [{"key": "dense", "artifact": artifact.uri}])
        if fault == "slow":  # no fault in the end
            assert not said
            assert proxy.requests > len(LIMITS)
        else:
            assert MANIFEST not in "".join(_listed(bucket))
        proxy.fault = ""
        store.close(drain=True)
    (row,) = read_stored_front(open_store(f"s3://{bucket}/p"))
    assert check_digests(fetch(row["artifact"], tmp_path / "out")).sha256 == artifact.sha256


def test_credentials_that_are_taken_back_are_no_outage(bucket: str, made: Path, tmp_path: Path) -> None:
    store = SpoolingStore(S3Store(f"s3://{bucket}/p"), Spool(tmp_path / "spool"), lambda line: None)
    _client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(no_writing(bucket)))
    with pytest.raises(StoreRefused, match="access denied"):
        publish(store, made, "dense")
    assert not store.spool.entries()
    store.close(drain=True)
