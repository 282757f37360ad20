"""Opens the store that a URI names."""

from pathlib import Path

from prunefront.pipelines.stores.folder import DirectoryStore
from prunefront.pipelines.stores.store import ArtifactError, ObjectStore


def open_store(uri: str, endpoint_url: str | None = None) -> ObjectStore:
    """Returns the store at a folder, `file://…` or `s3://bucket/prefix`. Nothing is contacted or created yet.

    endpoint_url: address of an S3 server that is not AWS; default AWS_ENDPOINT_URL. Raises ArtifactError for another
    kind of URI.
    """
    if uri.startswith("s3://"):
        # boto3 takes a third of a second to import, and folders need none of it
        from prunefront.pipelines.stores.s3 import S3Store

        return S3Store(uri, endpoint_url=endpoint_url)
    path = uri.removeprefix("file://")
    if "://" in path or not path:
        raise ArtifactError(f"artifacts cannot be kept at {uri!r}; possible: a folder, s3://bucket/prefix")
    return DirectoryStore(Path(path))
