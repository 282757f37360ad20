"""Tar shards in webdataset's layout: damaged ones, and those whose members are not what they should be."""

import io
import tarfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data.stream.shards import READERS
from tests.hostile.strategies import answered, damaged, fuzzed


def written(members: list[tuple[str, bytes, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            member.linkname = "../../etc/passwd"
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


KINDS = (
    tarfile.REGTYPE,
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
WHOLE = written(
    [(f"{i}.{s}", tarfile.REGTYPE, c) for i in range(4) for s, c in (("jpg", b"x" * 600), ("cls", b"1"))]
)
MEMBERS = st.tuples(
    st.sampled_from(
        ["0.jpg", "0.cls", "1.jpg", "../1.cls", "/2.jpg", ".jpg", "a/.b.cls", "", "a.b.jpg", "é.cls"]
    ),
    st.sampled_from(KINDS),
    st.sampled_from([b"", b"1", b"-", b"1" * 40, b"\xff\xfe", b"cat"]),
)


@given(content=st.one_of(damaged(WHOLE), st.lists(MEMBERS, max_size=6).map(written), st.binary(max_size=64)))
@fuzzed
def test_tar(tmp_path: Path, content: bytes) -> None:
    shard = tmp_path / "shard.tar"
    shard.write_bytes(content)
    section = DataSection(source="webdataset")
    read = answered(lambda: [*READERS["webdataset"](shard, "shard.tar", section)])
    for images, labels in read or ():
        assert all(isinstance(image, bytes) for image in images)
        assert len(images) == len(labels)
