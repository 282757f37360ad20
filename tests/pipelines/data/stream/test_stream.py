"""Streams: equal to memory where they can be, the same for any number of loaders, bounded, clear when they fail."""

import io
import os
import resource
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data import DataError, Parts, Samples, Splits, cache, load, open_data
from prunefront.pipelines.data.stream import opening
from prunefront.pipelines.data.stream.image_cache import ImageCache
from prunefront.pipelines.data.stream.images import Streamed, random_box
from tests.pipelines.data.test_sources import png, split, write_folder, write_parquet


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER_VARIABLE, str(tmp_path / "cache"))


def photo(height: int, width: int, seed: int) -> Image.Image:
    """A picture with a gradient and some noise, so that no two are equal."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 250, width)[None, :]
    image[..., 1] = np.linspace(0, 250, height)[:, None]
    image[..., 2] = rng.integers(0, 256)
    image[: height // 4, : width // 4] = rng.integers(0, 256, 3)
    return Image.fromarray(image)


def photos(folder: Path, count: int, first: int = 0) -> Path:
    """JPEGs of many sizes in three class folders, as ImageNet's are."""
    for i in range(first, first + count):
        path = folder / f"n{i % 3}" / f"{i:04}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(40 + 7 * i % 31, 36 + 5 * i % 43, i).save(path, "jpeg", quality=95)
    return folder


def imagenet(tmp_path: Path, **keys: object) -> DataSection:
    made = {"train": photos(tmp_path / "in/train", 24), "test": photos(tmp_path / "in/val", 6, 100)}
    return DataSection(
        **{
            "source": "folder",
            "size": 32,
            "stream": True,
            "loaders": 0,
            "augment": "crop_flip",
            **made,
            **keys,
        }
    )


def opened(section: DataSection) -> Parts:
    found = open_data(section, say=lambda line: None)
    assert isinstance(found, Parts)
    return found


def stream(part: Samples, seed: int | None, size: int = 5) -> tuple[Tensor, list[int]]:
    rng = None if seed is None else np.random.default_rng(seed)
    found = list(part.batches(size, rng=rng))
    return torch.cat([b.inputs.args[0] for b in found]), [n for b in found for n in b.targets.tolist()]


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_a_plain_stream_is_what_memory_holds(tmp_path: Path, source: str) -> None:
    rows, held = split(30), split(9, seed=1)
    write = write_folder if source == "folder" else write_parquet
    section = DataSection(
        source=source,
        train=write(tmp_path / "train", rows),
        test=write(tmp_path / "test", held),
        loaders=0,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    )
    memory, streamed = load(section), opened(section.model_copy(update={"stream": True}))
    assert (streamed.classes, streamed.input_shape) == (memory.classes, memory.input_shape)
    for name in ("train", "validation", "test"):
        expected, labels = stream(memory.part(name), None)
        found, seen = stream(streamed.part(name), None)
        torch.testing.assert_close(found, expected)
        assert seen == labels
        assert streamed.part(name).count == len(labels)
    with pytest.raises(PrunefrontError, match="the search sees no test data"):
        streamed.for_search().part("test")
    few = streamed.train.first(4)
    assert few.count == 4
    assert torch.equal(stream(few, None)[0], stream(streamed.train, None)[0][:4])


def test_memory_and_a_stream_bring_photos_to_one_size_alike(tmp_path: Path) -> None:
    section = imagenet(tmp_path, mean=(0.5,) * 3, std=(0.2,) * 3)
    memory = load(section.model_copy(update={"stream": None}))
    for name in ("train", "validation", "test"):
        expected, labels = stream(memory.part(name), None)
        found, seen = stream(opened(section).part(name), None)
        off = ((found - expected) * 0.2 * 255).abs()  # two ways to resize round some pixels otherwise
        assert off.max() < 1.01
        assert (off > 0.5).float().mean() < 0.05
        assert seen == labels
    assert opened(section).input_shape == (3, 32, 32)


@pytest.mark.parametrize("cached", [0.0, 1.0])
def test_order_and_augmentation_do_not_depend_on_loaders_or_cache(tmp_path: Path, cached: float) -> None:
    section = imagenet(tmp_path, cache_gb=cached)
    part = opened(section).train
    assert isinstance(part, Streamed)
    alone = stream(part, 7)
    for loaders in (1, 2):
        images, labels = stream(replace(part, loaders=loaders), 7)
        assert torch.equal(images, alone[0])
        assert labels == alone[1]
    assert torch.equal(stream(part, 7)[0], alone[0]), "whether or not the cache holds them by now"
    assert not torch.equal(stream(part, 8)[0], alone[0])
    rng = np.random.default_rng(7)
    passes = [torch.cat([b.inputs.args[0] for b in part.batches(5, rng=rng)]) for _ in range(2)]
    assert torch.equal(passes[0], alone[0])
    assert not torch.equal(passes[1], passes[0]), "each pass draws anew"


def test_another_batch_size_changes_no_image(tmp_path: Path) -> None:
    part = opened(imagenet(tmp_path)).train
    assert torch.equal(stream(part, 3, size=4)[0], stream(part, 3, size=9)[0])
    sizes = [b.count for b in part.batches(19, rng=np.random.default_rng(0), smallest=2)]
    assert sizes == [20]


def test_crops_are_of_the_sizes_that_are_usual_and_stay_inside() -> None:
    rng = np.random.default_rng(0)
    for width, height in ((60, 40), (40, 60), (50, 50), (300, 3)):
        boxes = np.array([random_box(width, height, rng) for _ in range(2000)])
        left, top, right, bottom = boxes.T
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (right <= width).all()
        assert (bottom <= height).all()
        if height > 3:
            share = (right - left) * (bottom - top) / (width * height)
            assert 0.06 < share.min() < 0.12
            assert share.max() > 0.85
            assert len(np.unique(left)) > 10


def test_small_images_shift_over_black_and_mirror(tmp_path: Path) -> None:
    rows = split(12)
    section = DataSection(
        source="folder",
        train=write_folder(tmp_path / "train", rows),
        test=write_folder(tmp_path / "test", split(6, seed=1)),
        stream=True, loaders=0, padding=2, augment="crop_flip", mean=(0.0,) * 3, std=(1 / 255,) * 3,
    )  # fmt: skip
    part = opened(section).train.first(1)
    (plain,) = stream(part, None)[0]
    padded = torch.nn.functional.pad(plain, (2, 2, 2, 2))
    views = [padded[:, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    views += [view.flip(2) for view in views]
    seen = {next(i for i, v in enumerate(views) if torch.equal(v, stream(part, s)[0][0])) for s in range(60)}
    assert len(seen) > 25


def test_the_cache_is_bounded_shared_and_checked(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (10, 9, 3), dtype=np.uint8)
    kept = ImageCache(tmp_path / "c", most=1000)
    assert kept.get(5) is None
    assert kept.put(5, image)
    assert np.array_equal(ImageCache(tmp_path / "c", most=1000).get(5), image)
    assert all(ImageCache(tmp_path / "c", most=1000).put(i, image) for i in (0, 9))
    assert not kept.put(7, image), "three images of 270 bytes fit"
    assert kept.get(7) is None
    assert (tmp_path / "c/pixels").stat().st_size <= 1000
    with (tmp_path / "c/pixels").open("r+b") as file:
        file.seek(40)
        file.write(b"\0\1\2")
    assert kept.get(5) is None, "a damaged image is decoded again"
    assert np.array_equal(kept.get(9), image)
    (tmp_path / "c/pixels").unlink()
    assert kept.get(9) is None


def test_a_full_disk_costs_the_cache_one_image(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (10, 9, 3), dtype=np.uint8)
    kept = ImageCache(tmp_path / "c", most=1 << 20)
    assert kept.put(0, image)
    before = (tmp_path / "c/pixels").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (before + 100, limits[1])
    )  # the kernel writes 100 bytes of the next one
    try:
        assert not kept.put(1, image)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "c/pixels").stat().st_size == before
    assert kept.put(2, image)
    assert [row for row in range(3) if np.array_equal(kept.get(row), image)] == [0, 2]


def test_the_second_pass_reads_no_file(tmp_path: Path) -> None:
    section = imagenet(tmp_path, cache_gb=1.0, loaders=2)
    part = opened(section).train
    first = stream(part, None)[0]
    again = opened(section).train
    for path in (tmp_path / "in/train").rglob("*.JPEG"):
        os.truncate(path, 0)
    assert torch.equal(stream(again, None)[0], first)


def test_data_that_would_not_fit_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = imagenet(tmp_path, stream=None)
    images = 30 * 3 * 32 * 32
    monkeypatch.setattr(opening, "free_memory", lambda: 4 * images)
    assert isinstance(open_data(section, say=lambda line: None), Splits)
    monkeypatch.setattr(opening, "free_memory", lambda: 4 * images - 4)
    said: list[str] = []
    assert isinstance(open_data(section, say=said.append), Parts)
    assert any("decoded while they are used, by 0 processes a worker" in line for line in said)
    assert isinstance(open_data(section.model_copy(update={"stream": False}), say=said.append), Splits)
    parquet = DataSection(
        source="parquet",
        train=write_parquet(tmp_path / "a.parquet", split(30)),
        test=write_parquet(tmp_path / "b.parquet", split(9, seed=1)),
    )
    monkeypatch.setattr(opening, "free_memory", lambda: 4 * 39 * 192)
    assert isinstance(open_data(parquet, say=said.append), Splits)
    monkeypatch.setattr(opening, "free_memory", lambda: 4 * 39 * 192 - 4)
    assert isinstance(open_data(parquet, say=said.append), Parts)
    with pytest.raises(DataError, match="needs all images in memory"):
        load(section.model_copy(update={"stream": True}))


@pytest.mark.parametrize("loaders", [0, 2])
def test_what_goes_wrong_in_a_loader_is_one_line(tmp_path: Path, loaders: int) -> None:
    section = imagenet(tmp_path, loaders=loaders, cache_gb=0.0)
    part = opened(section).train
    victim = sorted((tmp_path / "in/train").rglob("*.JPEG"))[3]
    content = victim.read_bytes()
    for damage, says in (
        (content[:-1], "has fewer bytes than when the study began"),
        (b"\0" * len(content), "cannot be decoded as an image"),
        (None, "cannot be read: No such file"),
    ):
        victim.unlink(missing_ok=True)
        if damage is not None:
            victim.write_bytes(damage)
        with pytest.raises(DataError) as caught:
            stream(part, 0)
        assert says in str(caught.value)
        assert victim.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_loader_process_that_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = opened(imagenet(tmp_path, loaders=2)).train
    monkeypatch.setattr(Streamed, "image", lambda *_: os._exit(9))
    with pytest.raises(DataError, match=r"a process that decodes images ended: .*data\.loaders") as caught:
        stream(part, 0)
    assert "\n" not in str(caught.value)


def test_held_out_images_that_are_training_images_are_found(tmp_path: Path) -> None:
    section = imagenet(tmp_path)
    for path in sorted((tmp_path / "in/train").rglob("*.JPEG"))[:4]:
        os.link(path, tmp_path / "in/val" / path.parent.name / f"copy-{path.name}")
    with pytest.raises(DataError, match=r"of 10 test images are also training images"):
        opened(section)


def test_a_resumed_study_sees_that_images_changed(tmp_path: Path) -> None:
    section = imagenet(tmp_path)
    before = opened(section).train.fingerprint()
    assert opened(section).train.fingerprint() == before
    photos(tmp_path / "in/train", 1, 500)
    assert opened(section).train.fingerprint() != before


def tar(path: Path, rows: range, label: str = "cls") -> Path:
    """A shard in webdataset's layout."""
    with tarfile.open(path, "w") as file:
        for i in rows:
            image = io.BytesIO()
            photo(40 + i, 50, i).save(image, "jpeg")
            for suffix, content in (("jpg", image.getvalue()), (label, str(i % 3).encode()), ("json", b"{}")):
                member = tarfile.TarInfo(f"d/{i:05}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return path


def test_tar_shards_are_streams(tmp_path: Path) -> None:
    for i, rows in enumerate((range(10), range(10, 24))):
        tar(tmp_path / f"train-{i:06}.tar", rows)
    section = DataSection(
        source="webdataset",
        train=tmp_path / "train-*.tar",
        test=tar(tmp_path / "test.tar", range(90, 96)),
        size=32,
        loaders=0,
        validation=6,
    )
    parts = opened(section)
    assert (parts.train.count, parts.validation.count, parts.classes) == (18, 6, 3)
    assert stream(parts.train, None)[1] == [i % 3 for i in range(18)]
    assert stream(parts.test, None)[0].shape == (6, 3, 32, 32)
    with pytest.raises(DataError, match=r"sample 'd/00090' of .* has not a file \.label, its label"):
        opened(section.model_copy(update={"label": "label", "train": tmp_path / "test.tar"}))
    (tmp_path / "train-000001.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"train-000001\.tar cannot be read as tar"):
        opened(section)


def test_shards_are_unpacked_once_and_again_when_they_change(tmp_path: Path) -> None:
    for i in range(2):
        write_parquet(tmp_path / f"train-{i}.parquet", split(30)[15 * i : 15 * i + 15])
    section = DataSection(
        source="parquet",
        train=tmp_path / "train-*.parquet",
        test=write_parquet(tmp_path / "test.parquet", split(9, seed=1)),
        stream=True,
        loaders=0,
    )
    before = stream(opened(section).train, None)[0]

    def unpacked() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*.images")}

    made = unpacked()
    assert len(made) == 2
    assert torch.equal(stream(opened(section).train, None)[0], before)
    assert unpacked() == made
    for path in (tmp_path / "cache").glob("*.images"):
        os.truncate(path, 100)
    assert torch.equal(stream(opened(section).train, None)[0], before), "what is not whole is made again"
    write_parquet(tmp_path / "train-1.parquet", split(15, seed=9))
    assert not torch.equal(stream(opened(section).train, None)[0], before)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_grey_images_and_one_with_colours(tmp_path: Path) -> None:
    section = DataSection(
        source="folder",
        train=write_folder(tmp_path / "train", split(40, channels=1)),
        test=write_folder(tmp_path / "test", split(6, seed=1, channels=1)),
        stream=True,
        loaders=0,
        mean=(0.5,),
        std=(0.2,),
    )
    part = opened(section).train
    assert isinstance(part, Streamed)
    assert part.shape == (1, 8, 8)
    part.encoded.path(5).write_bytes(png(split(1).images[0]))
    with pytest.raises(DataError, match="has colours, and the first images have none"):
        stream(opened(section).train, None)


def test_labels_of_shards_in_two_forms_are_refused(tmp_path: Path) -> None:
    images = pa.array([png(image) for image in split(6).images])
    pq.write_table(pa.table({"image": images, "label": [0, 1] * 3}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": images, "label": ["x", "y"] * 3}), tmp_path / "b.parquet")
    section = DataSection(
        source="parquet", train=tmp_path / "[ab].parquet", test=tmp_path / "a.parquet", stream=True
    )
    with pytest.raises(DataError, match="texts and integers; give them one form"):
        opened(section)
