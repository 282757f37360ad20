"""Data from S3 against moto's server: downloaded once, by one process, checked when used again, never half there."""

import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data import DataError, cache, load, open_data
from prunefront.pipelines.data.cache import local_copy
from prunefront.pipelines.data.source import places_of
from prunefront.pipelines.stores.s3 import S3Away, S3Error, S3Store, Version
from tests.pipelines.data.test_sources import split, write_parquet


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def bucket(client: Any) -> str:
    name = f"b-{uuid.uuid4()}"
    client.create_bucket(Bucket=name)
    return name


def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the key of each object that is read."""
    read: list[str] = []
    get = S3Store.get

    def counted(self: S3Store, key: str, file: Path, *, limit: int | None = None) -> None:
        read.append(key)
        get(self, key, file, limit=limit)

    monkeypatch.setattr(S3Store, "get", counted)
    return read


def kept(tmp_path: Path) -> list[str]:
    """Suffixes of what lies in the cache, locks aside."""
    return sorted(p.suffix for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock")


def test_a_study_reads_parquet_from_a_bucket(
    client: Any, bucket: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = downloads(monkeypatch)
    train, test = split(30), split(9, seed=1)
    for name, part in (("train", train), ("test", test)):
        client.upload_file(
            str(write_parquet(tmp_path / f"{name}.parquet", part)), bucket, f"d/{name}.parquet"
        )
    data = {
        "source": "parquet",
        "train": f"s3://{bucket}/d/train.parquet",
        "test": f"s3://{bucket}/d/test.parquet",
        "endpoint_url": server,
    }
    given = {"name": "s", "model": {"factory": "digits_cnn"}, "data": data}
    config = parse(given, source="s.toml", base=Path("/elsewhere"))
    assert config.data.stored
    assert DataSection.model_validate(json.loads(json.dumps(config.to_json()))["data"]) == config.data
    for _ in range(2):
        splits = load(config.data)
        np.testing.assert_array_equal(splits.train.images, train.images[:25])
        np.testing.assert_array_equal(splits.test.images, test.images)
    assert read == ["train.parquet", "test.parquet"], "the second study finds them here"
    assert kept(tmp_path) == [".json", ".json", ".parquet", ".parquet"]


def test_shards_in_a_bucket_are_found_by_a_pattern(
    client: Any, bucket: str, server: str, tmp_path: Path
) -> None:
    part, test = split(30), write_parquet(tmp_path / "test.parquet", split(9, seed=1))
    for i, rows in enumerate((part[:20], part[20:])):
        file = write_parquet(tmp_path / "shard.parquet", rows)
        client.upload_file(str(file), bucket, f"d/train-{i}.parquet")
    client.upload_file(str(test), bucket, "d/test.parquet")
    section = DataSection(
        source="parquet", train=f"s3://{bucket}/d/train-*.parquet", test=test, endpoint_url=server
    )
    np.testing.assert_array_equal(load(section).train.images, part.images[:25])
    with pytest.raises(DataError, match=r"no object matches s3://.*/d/x\*; 0 begin like it"):
        load(section.model_copy(update={"train": f"s3://{bucket}/d/x*"}))


def test_shards_in_a_bucket_are_unpacked_one_by_one(
    client: Any, bucket: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = downloads(monkeypatch)
    part, test = split(30), write_parquet(tmp_path / "test.parquet", split(9, seed=1))
    for i, rows in enumerate((part[:20], part[20:])):
        file = write_parquet(tmp_path / "shard.parquet", rows)
        client.upload_file(str(file), bucket, f"d/train-{i}.parquet")
    section = DataSection(
        source="parquet",
        train=f"s3://{bucket}/d/train-*.parquet",
        test=test,
        endpoint_url=server,
        stream=True,
        loaders=0,
        cache_gb=0,
    )
    for _ in range(2):
        found = open_data(section, say=lambda line: None)
        labels = [n for batch in found.part("train").batches(8) for n in batch.targets.tolist()]
        assert labels == part.labels[:25].tolist()
    assert read == ["train-0.parquet", "train-1.parquet"], "the second study finds them unpacked"
    assert kept(tmp_path) == [".images", ".images", ".npz", ".npz"], "and no copy is left"


def test_an_object_that_changed_is_another_one(client: Any, bucket: str, server: str, tmp_path: Path) -> None:
    uri = f"s3://{bucket}/a"
    contents = [b"first", b"other", b"longer than that"]
    copies = []
    for content in contents:
        client.put_object(Bucket=bucket, Key="a", Body=content)
        copies.append(local_copy(uri, server, key="data.train"))
    assert [copy.read_bytes() for copy in copies] == contents


def test_a_damaged_copy_is_downloaded_again(client: Any, bucket: str, server: str, tmp_path: Path) -> None:
    client.put_object(Bucket=bucket, Key="a.parquet", Body=b"content")
    uri = f"s3://{bucket}/a.parquet"
    copy = local_copy(uri, server, key="data.train")
    record = copy.with_suffix(".json")
    for damage in (
        lambda: copy.write_bytes(b"cont"),
        lambda: copy.write_bytes(b"conTent"),
        lambda: record.write_text('{"uri": '),
        record.unlink,
        copy.unlink,
    ):
        damage()
        assert local_copy(uri, server, key="data.train") == copy
        assert copy.read_bytes() == b"content"
    assert kept(tmp_path) == [".json", ".parquet"]


def test_an_object_that_is_replaced_meanwhile_is_read_again(
    client: Any, bucket: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.put_object(Bucket=bucket, Key="a", Body=b"old")
    get, version = S3Store.get, S3Store.version

    def replaced(self: S3Store, key: str, file: Path, *, limit: int | None = None) -> None:
        get(self, key, file, limit=limit)
        client.put_object(Bucket=bucket, Key="a", Body=b"new")

    monkeypatch.setattr(S3Store, "get", replaced)
    assert local_copy(f"s3://{bucket}/a", server, key="data.train").read_bytes() == b"new"
    etags = (str(n) for n in range(100))
    monkeypatch.setattr(S3Store, "version", lambda s, k: Version(next(etags), version(s, k).size_bytes))
    with pytest.raises(DataError, match=r"data\.train: s3://.*/a changed while it was read"):
        local_copy(f"s3://{bucket}/a", server, key="data.train")
    assert ".part" not in kept(tmp_path)


def test_those_that_start_together_download_once(
    client: Any, bucket: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand for processes: the kernel's lock belongs to an opened file, of which each has its own."""
    read = downloads(monkeypatch)
    content = np.random.default_rng(0).bytes(3 << 20)
    client.put_object(Bucket=bucket, Key="a", Body=content)
    together = threading.Barrier(3)

    def start(_: int) -> bytes:
        together.wait(60)
        return local_copy(f"s3://{bucket}/a", server, key="data.train").read_bytes()

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(start, range(3))) == [content] * 3
    assert read == ["a"]


def test_what_cannot_be_had_is_one_line(
    client: Any, bucket: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(error: type[PrunefrontError], uri: str, endpoint: str = server) -> str:
        with pytest.raises(error) as info:
            local_copy(uri, endpoint, key="data.train")
        assert "\n" not in str(info.value)
        return str(info.value)

    assert "there is no gone in s3://" in refused(PrunefrontError, f"s3://{bucket}/gone")
    assert "create it or correct data.train" in refused(S3Error, "s3://no-such-bucket-here/a")
    assert "check data.endpoint_url" in refused(S3Away, f"s3://{bucket}/a", "http://127.0.0.1:1")
    client.put_object(Bucket=bucket, Key="a", Body=b"content")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("U", (), {"free": 3}))
    assert "has 7 bytes, but 3 are free" in refused(DataError, f"s3://{bucket}/a")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "file"))
    assert f"set {cache.FOLDER_VARIABLE} to a folder that can" in refused(DataError, f"s3://{bucket}/a")


@pytest.mark.parametrize(
    "place", ["s3://bucket", "s3://bucket/", "s3:///a", "s3://b/a", "gs://bucket/a", "", 3]
)
def test_places_that_are_none(place: object) -> None:
    given = {"name": "s", "model": {"factory": "digits_cnn"}, "data": {"train": place}}
    with pytest.raises(
        PrunefrontError, match=r"^s\.toml: data\.train = .*: should be a path or s3://bucket/key$"
    ):
        parse(given, source="s.toml", base=Path())


def test_a_range_of_numbers_names_files_as_webdataset_writes_it(tmp_path: Path) -> None:
    for number in range(8, 12):
        (tmp_path / f"{number:03}.tar").touch()

    def named(train: str) -> list[str]:
        section = DataSection(source="webdataset", train=train, test=train)
        return [Path(place).name for place in places_of(section, "train")]

    assert named(f"{tmp_path}/{{008..011}}.tar") == ["008.tar", "009.tar", "010.tar", "011.tar"]
    assert named("s3://bucket/a-{9..10}.tar") == ["a-9.tar", "a-10.tar"]
    with pytest.raises(DataError, match=r"there is no file .*/012\.tar"):
        named(f"{tmp_path}/{{011..012}}.tar")
    for wrong in ("{2..1}", "{0..999999}"):
        with pytest.raises(DataError, match="should name 1 to 100,000 files"):
            named(f"{tmp_path}/{wrong}.tar")


def test_a_folder_of_images_cannot_lie_in_a_bucket() -> None:
    with pytest.raises(DataError, match="images in S3 come as parquet files"):
        load(DataSection(source="folder", train="s3://bucket/train", test="s3://bucket/test"))


def test_copies_are_kept_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cache.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert cache.cache_folder() == Path("/c/prunefront/data")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert cache.cache_folder() == Path("/h/.cache/prunefront/data")
