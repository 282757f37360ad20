"""The S3 store against moto's server: what is sent, and one clear line for everything that can be wrong."""

import gc
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.fetch import fetch
from prunefront.pipelines.artifacts.manifest import LIMITS, MANIFEST, check_digests
from prunefront.pipelines.artifacts.publish import publish
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.s3 import PART_BYTES, S3Error, S3Store
from prunefront.pipelines.stores.store import ArtifactError, ArtifactNotFound, StoreAway, Upload
from tests.stores import (
    check_first_come_first_served,
    check_list_and_delete,
    check_two_studies_do_no_harm,
    file_of_artifact,
)

SECRET = "never-printed"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture(autouse=True)
def environment(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AWS_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_ENDPOINT_URL_S3",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)


@pytest.fixture
def bucket(environment: None) -> str:
    """A new bucket's name."""
    name = f"b-{uuid.uuid4()}"
    _client().create_bucket(Bucket=name)
    return name


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    for name in LIMITS:
        (folder / name).write_bytes(file_of_artifact(name, name.encode() * 100))
    return folder


def test_round_trip(bucket: str, made: Path, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}/studies/one/")
    assert store.uri == f"s3://{bucket}/studies/one"
    store.probe()
    artifact = publish(store, made, "dense")
    assert artifact.uri == f"s3://{bucket}/studies/one/{artifact.id}"
    assert _keys(bucket) == {f"studies/one/{artifact.id}/{name}" for name in (*LIMITS, MANIFEST)}
    out = fetch(artifact.uri, tmp_path / "out")
    assert check_digests(out).id == artifact.id
    assert all((out / name).read_bytes() == (made / name).read_bytes() for name in LIMITS)


def test_a_bucket_without_prefix(bucket: str, made: Path, tmp_path: Path) -> None:
    artifact = publish(open_store(f"s3://{bucket}"), made, "dense")
    assert artifact.uri == f"s3://{bucket}/{artifact.id}"
    fetch(artifact.uri, tmp_path / "out")


def test_publishing_twice_sends_nothing(bucket: str, made: Path) -> None:
    store = open_store(f"s3://{bucket}/p")
    artifact = publish(store, made, "dense")
    before = _stored(bucket)
    assert publish(store, made, "dense") == artifact
    assert _stored(bucket) == before


def test_large_files_travel_in_parts(bucket: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * (PART_BYTES // 256) + b"and a bit")
    store = S3Store(f"s3://{bucket}/p")
    store.put("big", file)
    store.get("big", tmp_path / "back", limit=PART_BYTES + 9)
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert _client().head_object(Bucket=bucket, Key="p/big")["ETag"].endswith('-2"')
    with pytest.raises(ArtifactError, match="at most"):
        store.get("big", tmp_path / "back", limit=PART_BYTES)


def test_what_every_store_does(bucket: str, tmp_path: Path) -> None:
    check_list_and_delete(S3Store(f"s3://{bucket}/p"), tmp_path)
    check_first_come_first_served(S3Store(f"s3://{bucket}/p"), tmp_path)


def test_two_studies_under_one_prefix(bucket: str, tmp_path: Path) -> None:
    check_two_studies_do_no_harm(lambda: S3Store(f"s3://{bucket}/p"), tmp_path)


def test_more_objects_than_a_page_holds(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = _client()
    for number in range(7):
        client.put_object(Bucket=bucket, Key=f"p/{number}")
    client.put_object(Bucket=bucket, Key="p/.strange key ä")  # one of somebody else's
    store = S3Store(f"s3://{bucket}/p")
    asked: list[dict[str, Any]] = []

    def two_at_a_time(params: dict[str, Any], **_: object) -> None:
        params["MaxKeys"] = 2
        asked.append(params)

    store._client.meta.events.register("before-parameter-build.s3.ListObjectsV2", two_at_a_time)
    assert {s.key for s in store.list()} == {*map(str, range(7)), ".strange key ä"}
    assert len(asked) == 4


def test_an_upload_that_was_never_ended_is_found_and_dropped(bucket: str) -> None:
    client = _client()
    for key in ("p/a/model.onnx", "p-other/b"):
        begun = client.create_multipart_upload(Bucket=bucket, Key=key)
        client.upload_part(Bucket=bucket, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=b"12345")
    store = S3Store(f"s3://{bucket}/p")
    (upload,) = store.uploads()
    assert (upload.key, upload.size_bytes) == ("a/model.onnx", 5)
    store.abort(upload)
    store.abort(upload)
    assert list(store.uploads()) == []
    assert len(client.list_multipart_uploads(Bucket=bucket)["Uploads"]) == 1


@pytest.mark.parametrize("answer", ["ignores", "refuses"])
def test_a_server_without_conditional_writes_is_found_out(bucket: str, tmp_path: Path, answer: str) -> None:
    store = S3Store(f"s3://{bucket}/p")

    def without(params: dict[str, Any], **_: object) -> None:
        if params["headers"].pop("If-None-Match", None) and answer == "refuses":
            raise ClientError({"Error": {"Code": "NotImplemented", "Message": "no"}}, "PutObject")

    store._client.meta.events.register("before-call.s3.PutObject", without)
    store.probe()
    assert not store.conditional
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    assert store.put_new("key", tmp_path / "a")
    assert not store.put_new("key", tmp_path / "b")  # one after the other it holds all the same
    store.get("key", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "a"


def test_a_write_that_another_is_in_the_middle_of_is_tried_again(bucket: str, tmp_path: Path) -> None:
    store, answers = S3Store(f"s3://{bucket}/p"), ["ConditionalRequestConflict", "ConditionalRequestConflict"]

    def busy(**_: object) -> None:
        if answers:
            raise ClientError({"Error": {"Code": answers.pop(), "Message": "busy"}}, "PutObject")

    store._client.meta.events.register("before-call.s3.PutObject", busy)
    (tmp_path / "a").write_text("a")
    assert store.put_new("key", tmp_path / "a")
    answers += ["ConditionalRequestConflict"] * 9
    _one_line(lambda: store.put_new("other", tmp_path / "a"), "ConditionalRequestConflict|busy")


@pytest.mark.parametrize(
    ("call", "rights"),
    [
        (lambda store: store.delete("a"), "s3:DeleteObject"),
        (
            lambda store: list(store.uploads()),
            "s3:ListBucketMultipartUploads and s3:ListMultipartUploadParts",
        ),
        (lambda store: store.abort(Upload("a", "1", 0, 0.0)), "s3:AbortMultipartUpload"),
        (lambda store: list(store.list()), "s3:PutObject, s3:GetObject and s3:ListBucket"),
    ],
)
def test_what_gc_may_not_do_is_named(call: Callable[[S3Store], object], rights: str) -> None:
    with _refusing("AccessDenied", 403) as url:
        store = S3Store("s3://bucket/p", endpoint_url=url)
        _one_line(lambda: call(store), f"may {rights} in bucket 'bucket'")


def test_a_corrupt_object_is_found(bucket: str, made: Path, tmp_path: Path) -> None:
    artifact = publish(open_store(f"s3://{bucket}/p"), made, "dense")
    key = f"p/{artifact.id}/model.onnx"
    body = (made / "model.onnx").read_bytes()
    _client().put_object(Bucket=bucket, Key=key, Body=bytes([body[0] ^ 1]) + body[1:])
    with pytest.raises(ArtifactError, match=r"model\.onnx has sha256"):
        fetch(artifact.uri, tmp_path / "out")
    _client().delete_object(Bucket=bucket, Key=key)
    with pytest.raises(ArtifactError, match=r"there is no .*model\.onnx"):
        fetch(artifact.uri, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_probe_leaves_nothing(bucket: str) -> None:
    S3Store(f"s3://{bucket}/p").probe()
    assert _keys(bucket) == set()


def test_the_argument_goes_before_the_environment(
    bucket: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = S3Store(f"s3://{bucket}", endpoint_url=server)
    assert store.endpoint == server
    store.probe()
    assert S3Store(f"s3://{bucket}").endpoint == "http://127.0.0.1:9"


def test_what_is_not_there(bucket: str, tmp_path: Path) -> None:
    store = S3Store(f"s3://{bucket}/p")
    assert not store.exists("a")
    with pytest.raises(ArtifactNotFound, match=f"there is no a in s3://{bucket}/p"):
        store.get("a", tmp_path / "out")
    with pytest.raises(ArtifactNotFound, match="or its upload never finished"):
        fetch(f"s3://{bucket}/p/dense-0123456789ab", tmp_path / "out")


def test_no_such_bucket(made: Path, tmp_path: Path) -> None:
    store = S3Store("s3://no-such-bucket/p")
    for call in (
        store.probe,
        lambda: publish(store, made, "dense"),
        lambda: fetch("s3://no-such-bucket/p/dense-0123456789ab", tmp_path / "out"),
    ):
        _one_line(call, "there is no bucket 'no-such-bucket'; create it")


def test_no_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    _one_line(lambda: S3Store(f"s3://{bucket}").probe(), "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    _one_line(lambda: S3Store(f"s3://{bucket}").probe(), "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    _one_line(lambda: S3Store(f"s3://{bucket}").probe(), r"\(nobody\).*check AWS_PROFILE")


def test_nobody_listens(bucket: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        _one_line(
            S3Store(f"s3://{bucket}", endpoint_url=url).probe, f"no answer from {url} .*AWS_ENDPOINT_URL"
        )


def test_an_endpoint_that_is_no_address(bucket: str) -> None:
    _one_line(
        lambda: S3Store(f"s3://{bucket}", endpoint_url="localhost"), "should look like http://host:9000"
    )


@pytest.mark.parametrize("uri", ["s3://", "s3://UPPER/x", "s3://b", "s3://bucket/../x", "s3://bucket/a//b"])
def test_an_address_that_is_none(uri: str) -> None:
    _one_line(lambda: open_store(uri), "s3://bucket/prefix|cannot be a key")


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("AccessDenied", 403, "s3:PutObject, s3:GetObject and s3:ListBucket"),
        ("InvalidAccessKeyId", 403, "does not accept the credentials"),
        ("SignatureDoesNotMatch", 403, "does not accept the credentials"),
        ("ExpiredToken", 400, "log in again"),
        ("RequestTimeTooSkewed", 403, "clock"),
        ("AuthorizationHeaderMalformed", 400, "AWS_REGION"),
        ("BadDigest", 400, "arrived damaged"),
        ("QuotaExceeded", 403, "QuotaExceeded"),
    ],
)
def test_every_refusal_says_what_to_do(code: str, status: int, message: str) -> None:
    # what moto never answers, from a server that answers nothing else
    with _refusing(code, status) as url:
        store = S3Store("s3://bucket/p", endpoint_url=url)
        _one_line(store.probe, message)


def test_a_server_that_sends_more_than_it_announced(tmp_path: Path) -> None:
    body = bytes(1 << 20)

    def answer(request: BaseHTTPRequestHandler) -> None:
        _answer(request, 200, 5 if request.command == "HEAD" else len(body), body)

    with _answering(answer) as url:
        _one_line(
            lambda: S3Store("s3://bucket/p", endpoint_url=url).get("a", tmp_path / "out", limit=5),
            "where at most 5 are allowed",
        )
    gc.collect()  # a connection left open would be said here, and not in whichever test comes next
    assert (tmp_path / "out").stat().st_size < len(body)


def test_a_server_that_stops_in_the_middle(tmp_path: Path) -> None:
    with _answering(lambda request: _answer(request, 200, 5, b"abc")) as url:
        store = S3Store("s3://bucket/p", endpoint_url=url)
        _one_line(
            lambda: store.get("a", tmp_path / "out", limit=5),
            "cannot read s3://bucket/p/a: the transfer broke off",
        )


PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
XHTML = b"<html><Name>hotel</Name><Contents/></html>"
SORRY = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>sorry</Message></Error>"

CALLS: dict[str, Callable[[S3Store, Path], object]] = {
    "probe": lambda store, file: store.probe(),
    "put": lambda store, file: store.put("a", file),
    "put in parts": lambda store, file: store.put("a", _large(file)),
    "put new": lambda store, file: store.put_new("a", file),
    "get": lambda store, file: store.get("a", file.with_name("back")),
    "list": lambda store, file: list(store.list()),
    "uploads": lambda store, file: list(store.uploads()),
    "exists": lambda store, file: store.exists("a"),
}


def _large(file: Path) -> Path:
    file.write_bytes(bytes(PART_BYTES))
    return file


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (PAGE, {"Content-Type": "text/html"}),
        (PAGE, {"Content-Type": "text/html; charset=utf-8", "ETag": '"5f-1"'}),
        (XHTML, {}),
        (b"", {}),
        (b"OK", {"Content-Type": "text/plain"}),
        (SORRY, {"Content-Type": "application/xml"}),
    ],
    ids=["page", "page-with-etag", "xhtml", "nothing", "text", "error"],
)
def test_a_success_that_is_not_s3s_is_none(
    body: bytes, headers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captive portal or proxy answers everything with 200: nothing may count as stored, absent or listed."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    file = tmp_path / "file"
    with _answering(lambda request: _said(request, body, headers)) as url:
        store = S3Store("s3://bucket/p", endpoint_url=url)
        for call in CALLS.values():
            file.write_text("{}")
            with pytest.raises(StoreAway, match=r"captive portal|in trouble or busy") as raised:
                call(store, file)
            assert "\n" not in str(raised.value)


def _said(request: BaseHTTPRequestHandler, body: bytes, headers: dict[str, str]) -> None:
    request.rfile.read(int(request.headers.get("Content-Length", 0)))
    request.send_response(200)
    for name, value in ({"Content-Length": str(len(body))} | headers).items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
    request.close_connection = True


@pytest.mark.parametrize(
    ("size", "loses"), [(2, "everything"), (2, "the end"), (PART_BYTES + 9, "everything")]
)
def test_what_is_not_there_afterwards_was_not_written(
    bucket: str, tmp_path: Path, size: int, loses: str
) -> None:
    """A server, or what stands before it, says 200 to a write that it forgets or cuts short."""
    file, store = tmp_path / "file", S3Store(f"s3://{bucket}/p")
    file.write_bytes(bytes(size))

    def lose(**_: object) -> None:
        client = _client()
        client.delete_object(Bucket=bucket, Key="p/a")
        if loses == "the end":
            client.put_object(Bucket=bucket, Key="p/a", Body=bytes(size - 1))

    for operation in ("PutObject", "CompleteMultipartUpload"):
        store._client.meta.events.register(f"after-call.s3.{operation}", lose)
    with pytest.raises(StoreAway, match=r"were stored, and has (nothing|another content)"):
        store.put("a", file)
    if size == 2 and loses == "everything":
        with pytest.raises(StoreAway, match="were stored, and has nothing"):
            store.put_new("a", file)


def test_a_server_whose_etags_are_no_digests_is_read_back_once(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file, read = S3Store(f"s3://{bucket}/p"), tmp_path / "file", []
    file.write_text("content")
    version, get = store.version, store.get
    monkeypatch.setattr(store, "version", lambda key: replace(version(key), etag='"encrypted"'))
    monkeypatch.setattr(
        store, "get", lambda key, out, **options: (read.append(key), get(key, out, **options))
    )
    for key in ("a", "b", "c"):
        store.put(key, file)
    assert read == ["a"]
    assert _keys(bucket) == {"p/a", "p/b", "p/c"}


def _refusing(code: str, status: int) -> AbstractContextManager[str]:
    """The address of a server that answers every request with one S3 error."""
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    return _answering(lambda request: _answer(request, status, len(body), body))


def _answer(request: BaseHTTPRequestHandler, status: int, announced: int, body: bytes) -> None:
    request.rfile.read(int(request.headers.get("Content-Length", 0)))
    request.send_response(status)
    request.send_header("Content-Length", str(announced))
    if status == 200:
        request.send_header("ETag", '"0"')
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
    request.close_connection = True


@contextmanager
def _answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The address of a server that answers as told."""

    class Handler(BaseHTTPRequestHandler):
        do_PUT = do_GET = do_HEAD = do_DELETE = do_POST = lambda self: answer(self)

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _client() -> Any:
    return boto3.session.Session().client("s3", region_name="us-east-1")


def _stored(bucket: str) -> dict[str, object]:
    found = _client().list_objects_v2(Bucket=bucket).get("Contents", [])
    return {item["Key"]: item["LastModified"] for item in found}


def _keys(bucket: str) -> set[str]:
    return set(_stored(bucket))


def _one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(PrunefrontError, match=message) as caught:
        call()
    assert isinstance(caught.value, (S3Error, ArtifactError))
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
