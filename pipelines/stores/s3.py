"""A store in a bucket of AWS S3, or of any server that speaks its protocol."""

import contextlib
import filecmp
import hashlib
import io
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import boto3.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError, S3ValidationError
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_fixed

from prunefront.pipelines.events.redaction import without_password, without_secrets
from prunefront.pipelines.stores.store import (
    ArtifactError,
    ArtifactNotFound,
    StoreAway,
    StoredObject,
    StoreRefused,
    Upload,
    check_key,
    check_limit,
)
from prunefront.reading import open_regular, read_bytes
from prunefront.text import one_line

PROBE = "probe"
"""Key of the object that `probe` writes and deletes."""

OTHER_ANSWER = (
    "something else may answer in its place, such as a proxy (HTTPS_PROXY, NO_PROXY), a captive portal that wants a "
    "login, or another service at that address"
)
"""Hint for an answer that is no S3 server's."""

PART_BYTES = 8 << 20
"""Size of a part, in bytes: files from this size on are sent and read in parts, several at a time."""

_ROOT = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*(?:<\?[^>]*\?>\s*)?<[A-Za-z]+(?:Result|Response|Output)[\s>/]")
"""Begin of a document that S3 answers with, such as <ListBucketResult; servers differ in the last word."""

_URI = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(/(?P<prefix>.*))?")
_ABSENT = {"NoSuchKey", "404", "NotFound"}
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled"}
_WRONG_KEYS = {"SignatureDoesNotMatch", "InvalidAccessKeyId", "AuthFailure", "UnrecognizedClientException"}
_EXPIRED = {"ExpiredToken", "InvalidToken", "ExpiredTokenException", "TokenRefreshRequired"}
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
_REGION = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_EXISTS = {"PreconditionFailed", "412"}
_AT_ONCE = {"ConditionalRequestConflict", "OperationAborted", "409"}
_NO_CONDITIONS = {"NotImplemented", "501", "InvalidArgument", "InvalidRequest", "400", "MethodNotAllowed"}
_RIGHTS = {  # verb of a message -> rights that it takes; all others take those to write, read and list
    "delete": "s3:DeleteObject",
    "list uploads below": "s3:ListBucketMultipartUploads and s3:ListMultipartUploadParts",
    "abort an upload of": "s3:AbortMultipartUpload",
}
_CHECKSUM = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
_BUSY = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
"""Codes of a busy server, which some servers send with statuses below 500."""


class S3Error(StoreRefused):
    """A bucket cannot be used. The message says what to do."""


class NotS3(BotoCoreError):  # type: ignore[misc]  # botocore is untyped
    """An answer that no S3 server gives: of a captive portal, a proxy, or a wrong address."""

    fmt = "{reason}"


class S3Away(StoreAway):
    """A server does not answer, is busy, or broke off. The message says which."""


def _undecided(error: BaseException) -> bool:
    """Tells whether another write to the same key is not decided yet."""
    return isinstance(error, ClientError) and _code(error) in _AT_ONCE


@dataclass(frozen=True, slots=True)
class Version:
    """Mark that tells one content of an object from another."""

    etag: str
    size_bytes: int


class S3Store:
    """Keeps objects in one bucket, below a prefix. Not picklable.

    boto3 takes credentials, region and endpoint from the environment, ~/.aws or the instance role; `endpoint_url` goes
    before AWS_ENDPOINT_URL. Digests are not left to the server, since Ceph RGW and others accept a wrong checksum
    header: `artifacts.fetch` verifies all that it reads.
    """

    def __init__(self, uri: str, *, endpoint_url: str | None = None, setting: str = "artifacts.uri") -> None:
        """setting: key of the study file that names the bucket, for errors. Raises S3Error for an address of no use."""
        match = _URI.fullmatch(uri.rstrip("/"))
        if match is None:
            raise S3Error(f"{uri!r} is not an S3 address; it should look like s3://bucket/prefix")
        self._setting = setting
        self.bucket = match["bucket"]
        self.prefix = f"{check_key(match['prefix'])}/" if match["prefix"] else ""
        # read here too: they decide how to address buckets
        variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        endpoint = endpoint_url or next((os.environ[v] for v in variables if os.environ.get(v)), None)
        with self._clear_errors("use", ""):
            self._client = _client(endpoint)
        self._client.meta.events.register("before-parse.s3", _refuse_other_answers)
        self._digests = True
        """False once an object that was read back was right though its ETag was no digest, as with SSE-KMS."""
        self.conditional = True
        """True unless `probe` has found that the server ignores conditions of writes (If-None-Match)."""

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def endpoint(self) -> str:
        """Address that requests go to, without a password."""
        return without_password(str(self._client.meta.endpoint_url))

    def put(self, key: str, file: Path) -> str:
        for last in (False, False, True):  # somebody else may write the same key between the two requests
            with self._clear_errors("write", key), open_regular(file) as stream:
                self._client.upload_fileobj(stream, self.bucket, self._full(key), Config=_transfer())
            if self._is_stored(key, file, last=last):
                break
        return f"{self.uri}/{key}"

    def _is_stored(self, key: str, file: Path, *, last: bool = True) -> bool:
        """Asks whether the server has what was just written, whole and unchanged. last: raises S3Away if not.

        An ETag is the content's MD5, or that of its parts' MD5s. Where it is another, as with some kinds of encryption,
        the first object is read back; after that size and an ETag must do.
        """
        try:
            found = self.version(key)
        except ArtifactNotFound:
            found = None
        with open_regular(file) as stream:
            size, digest = _etag(stream)
        if found is not None and found.size_bytes == size:
            if found.etag.strip('"') == digest or not self._digests:
                return True
            if self._same(key, file):
                self._digests = False
                return True
        if last:
            there = "nothing" if found is None else f"another content ({found.size_bytes:,} bytes)"
            raise S3Away(
                f"cannot write {self.uri}/{key}: {self.endpoint} said that {size:,} bytes were stored, and has {there} "
                f"there; {OTHER_ANSWER}"
            )
        return False

    def _same(self, key: str, file: Path) -> bool:
        """Reads an object back, and tells whether it is the file."""
        with tempfile.TemporaryDirectory() as folder:
            back = Path(folder) / "object"
            self.get(key, back, limit=file.stat().st_size)
            return filecmp.cmp(back, file, shallow=False)

    def put_new(self, key: str, file: Path) -> bool:
        """Does as the protocol says where `conditional`. Elsewhere two writers of the same moment both get True, so a
        caller must read the object back."""
        if not self.conditional:
            if self.exists(key):
                return False
            self.put(key, file)
            return True
        with self._clear_errors("write", key):
            created = self._create(self._full(key), read_bytes(file))
        if created:
            self._is_stored(key, file)
        return created

    @retry(
        retry=retry_if_exception(_undecided), wait=wait_fixed(0.2), stop=stop_after_attempt(5), reraise=True
    )
    def _create(self, key: str, body: bytes) -> bool:
        """Writes an object in one conditional request; returns False where there is one. Raises ClientError."""
        try:
            self._client.put_object(Bucket=self.bucket, Key=key, Body=body, IfNoneMatch="*")
        except ClientError as error:
            if _code(error) in _EXISTS:
                return False
            raise
        return True

    def get(self, key: str, file: Path, *, limit: int | None = None) -> None:
        size_bytes = self.version(key).size_bytes
        with self._clear_errors("read", key):
            check_limit(size_bytes, limit, f"{self.uri}/{key}")
            meter = _Meter(limit, f"{self.uri}/{key}")
            with file.open("wb") as stream, self._closed_after():
                self._client.download_fileobj(
                    self.bucket, self._full(key), stream, Config=_transfer(), Callback=meter
                )

    def version(self, key: str) -> Version:
        """Returns the mark of an object's present content. Raises ArtifactNotFound, S3Error."""
        try:
            with self._clear_errors("read", key):
                head = self._client.head_object(Bucket=self.bucket, Key=self._full(key))
        except ArtifactNotFound:
            with self._clear_errors("read", ""):  # a 404 to HEAD does not say whether the bucket exists
                self._client.head_bucket(Bucket=self.bucket)
            raise
        return Version(str(head["ETag"]), int(head["ContentLength"]))

    def exists(self, key: str) -> bool:
        try:
            with self._clear_errors("look for", key):
                self._client.head_object(Bucket=self.bucket, Key=self._full(key))
        except ArtifactNotFound:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        with self._clear_errors("list", ""):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
                for item in page.get("Contents", ()):
                    key = item["Key"].removeprefix(self.prefix)
                    yield StoredObject(key, item["Size"], item["LastModified"].timestamp())

    def delete(self, key: str) -> None:
        with self._clear_errors("delete", key):
            self._client.delete_object(Bucket=self.bucket, Key=self._full(key))

    def uploads(self) -> Iterator[Upload]:
        with self._clear_errors("list uploads below", ""):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix):
                for item in page.get("Uploads", ()):
                    key, name = item["Key"], item["UploadId"]
                    parts = self._client.get_paginator("list_parts").paginate(
                        Bucket=self.bucket, Key=key, UploadId=name
                    )
                    size = sum(part["Size"] for found in parts for part in found.get("Parts", ()))
                    yield Upload(key.removeprefix(self.prefix), name, size, item["Initiated"].timestamp())

    def abort(self, upload: Upload) -> None:
        with self._clear_errors("abort an upload of", upload.key):
            try:
                self._client.abort_multipart_upload(
                    Bucket=self.bucket, Key=self._full(upload.key), UploadId=upload.id
                )
            except ClientError as error:
                if _code(error) != "NoSuchUpload":  # ended in the meantime
                    raise

    def probe(self) -> None:
        """Sends small requests: write, write on condition, look at, list, delete. Raises S3Error for a refused one.

        The write comes first, because only its answer holds a reason: that of a refused HEAD has no body. A store that
        forbids deleting keeps one ten-byte object called `probe`.
        """
        key = self._full(PROBE)
        with self._clear_errors("write", PROBE):
            self._client.upload_fileobj(io.BytesIO(b"prunefront"), self.bucket, key, Config=_transfer())
            if self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read() != b"prunefront":
                raise NotS3(reason="what was just written reads otherwise")
            self.conditional = self._keeps_conditions(key)
        self.exists(PROBE)
        with self._clear_errors("list", ""):
            self._client.head_bucket(Bucket=self.bucket)
        with self._clear_errors("delete", PROBE):
            try:
                self._client.delete_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if _code(error) not in _DENIED:
                    raise

    def _keeps_conditions(self, key: str) -> bool:
        """Tells whether the server refuses to overwrite an object on that condition. Raises ClientError."""
        for _ in range(3):  # another study's probe may delete the object between two tries
            try:
                if not self._create(key, b"prunefront"):
                    return True
            except ClientError as error:
                if _code(error) in _NO_CONDITIONS:
                    return False
                raise
        return False

    def _full(self, key: str) -> str:
        return self.prefix + check_key(key)

    @contextlib.contextmanager
    def _closed_after(self) -> Iterator[None]:
        """Closes the answers to one `get`: boto3 leaves a refused one, half read, to the garbage collector.

        One `get` at a time, since the client's event comes with every answer, whoever asked.
        """
        with contextlib.ExitStack() as opened:

            def note(parsed: dict[str, Any], **_: Any) -> None:
                if "Body" in parsed:  # not in an answer that is an error
                    opened.callback(parsed["Body"].close)

            events = self._client.meta.events
            events.register("after-call.s3.GetObject", note)
            opened.callback(events.unregister, "after-call.s3.GetObject", note)
            yield

    @contextlib.contextmanager
    def _clear_errors(self, verb: str, key: str) -> Iterator[None]:
        """Turns errors of boto3 into errors with one line that says what to do."""
        what = f"cannot {verb} {self.uri}/{key}".rstrip("/")
        try:
            yield
        except ClientError as error:
            raise self._explain(error, what, key) from None
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise S3Error(
                f"{what}: {_one_line(error).rstrip('.')}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or AWS_PROFILE"
            ) from None
        except ProfileNotFound as error:
            raise S3Error(f"{what}: {_one_line(error)}; check AWS_PROFILE and ~/.aws/config") from None
        except (HTTPClientError, ConnectionError) as error:
            raise S3Away(
                f"{what}: no answer from {self.endpoint} ({_cause(error)}); check "
                f"{self._setting.partition('.')[0]}.endpoint_url or AWS_ENDPOINT_URL, and that the server runs"
            ) from None
        except (RetriesExceededError, S3DownloadFailedError, S3ValidationError) as error:
            cause = getattr(error, "last_exception", error)
            raise S3Away(f"{what}: the transfer broke off ({_one_line(cause)}); try again") from None
        except (NotS3, ResponseParserError, KeyError) as error:
            # KeyError: what boto3 looks for in an answer that says something else
            reason = _one_line(error) if isinstance(error, NotS3) else "its answer cannot be understood"
            raise S3Away(
                f"{what}: {self.endpoint} does not answer as S3 does: {reason}; {OTHER_ANSWER}"
            ) from None
        except BotoCoreError as error:
            raise S3Error(f"{what}: {_one_line(error)}") from None
        except OSError as error:
            raise ArtifactError(f"{what}: {error}") from None

    def _explain(self, error: ClientError, what: str, key: str) -> ArtifactError:
        """Returns the error for an answer of the server. what: begin of its message. key: "" for the bucket itself."""
        code = _code(error)
        at = f"{what} at {self.endpoint}"
        if code == "NoSuchBucket" or (code in _ABSENT and not key):
            return S3Error(f"{at}: there is no bucket {self.bucket!r}; create it or correct {self._setting}")
        if code in _ABSENT:
            return ArtifactNotFound(f"there is no {key} in {self.uri}")
        if code in _WRONG_KEYS:
            return S3Error(
                f"{at}: the server does not accept the credentials ({code}); check AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            )
        if code in _EXPIRED:
            return S3Error(f"{at}: the session token is no longer valid ({code}); log in again")
        if code in _DENIED:
            rights = next(
                (needed for verb, needed in _RIGHTS.items() if what.startswith(f"cannot {verb} ")),
                "s3:PutObject, s3:GetObject and s3:ListBucket",
            )
            return S3Error(
                f"{at}: access denied; check that AWS_SECRET_ACCESS_KEY is right and that the credentials may "
                f"{rights} in bucket {self.bucket!r} (docs/artifacts.md)"
            )
        if code in _CLOCK:
            return S3Error(f"{at}: this machine's clock differs too much from the server's; set it right")
        if code in _REGION:
            return S3Error(f"{at}: the bucket is in another region; set AWS_REGION to it")
        if code in _CHECKSUM:
            return S3Away(f"{at}: the content arrived damaged ({code}); check network and proxy, try again")
        if code in _BUSY or _status(error) == 429 or (_status(error) >= 500 and _status(error) != 501):
            return S3Away(f"{at}: the server is in trouble or busy ({_one_line(error)}); try again later")
        return S3Error(f"{at}: {_one_line(error)}")


class _Meter:
    """Ends a download that brings more bytes than its limit: the size in a HEAD answer is only a promise."""

    def __init__(self, limit: int | None, what: str) -> None:
        self._limit, self._what = limit, what
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        # parts arrive in several threads; the caller subtracts a part before it reads it again
        with self._lock:
            self._bytes += count
            check_limit(self._bytes, self._limit, self._what)


def _client(endpoint_url: str | None) -> Any:
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 4},
        connect_timeout=5,
        read_timeout=60,
        # servers other than AWS rarely have a host name per bucket
        s3={"addressing_style": "path" if endpoint_url else "auto"},
        # older servers refuse the trailing checksums that boto3 sends by default; we check ours when reading
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=config)
    except ValueError as error:  # what botocore raises for an endpoint that is no URL
        raise S3Error(f"cannot use S3: {_one_line(error)}; it should look like http://host:9000") from None


def _refuse_other_answers(operation_model: Any, response_dict: Any, **_: Any) -> None:
    """Raises NotS3 for an answer that reports success and is not of the form that S3 documents for the request.

    boto3 takes any 200 for success, and an answer without the expected entries for one that lacks them: a web page as a
    listing is an empty bucket.
    """
    if not 200 <= response_dict["status_code"] < 300:
        return
    headers, shape = response_dict["headers"], operation_model.output_shape
    body = b"" if operation_model.has_streaming_output else bytes(response_dict["body"] or b"")
    page = str(headers.get("Content-Type", "")).lower().startswith("text/html")
    # some servers call the empty answer to a write so, and none an object that we wrote
    if page and (body or operation_model.name in ("GetObject", "HeadObject")):
        raise NotS3(reason="it sent a web page")
    members = {} if shape is None else shape.members
    etag = members.get("ETag")
    if etag is not None and etag.serialization.get("location") == "header" and not headers.get("ETag"):
        raise NotS3(reason="it sent no ETag")
    if operation_model.has_streaming_output or not any(
        member.serialization.get("location") is None for member in members.values()
    ):
        return
    if not _ROOT.match(body):
        raise NotS3(reason=f"it sent {'another document' if body.strip() else 'nothing'}")


def _etag(stream: BinaryIO) -> tuple[int, str]:
    """Returns the size of a file, and the ETag that S3 gives an object that `_transfer` sends of it."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if size < PART_BYTES:
        return size, hashlib.md5(stream.read(), usedforsecurity=False).hexdigest()
    parts = [
        hashlib.md5(part, usedforsecurity=False).digest()
        for part in iter(lambda: stream.read(PART_BYTES), b"")
    ]
    return size, f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


def _transfer() -> TransferConfig:
    return TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _cause(error: BotoCoreError) -> str:
    return type(error.kwargs.get("error") or error).__name__


def _one_line(error: Exception) -> str:
    return one_line(without_secrets(str(error)), 300)
