"""Folders and files as people have them: hidden files, links, empty classes, sizes, columns, labels, shards."""

import io
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data import DataError, Split, Splits, Transform, load
from prunefront.pipelines.data.checks import check_splits
from tests.pipelines.data.test_sources import png, split, write_folder, write_parquet


def folders(tmp_path: Path, train: int = 30, test: int = 9) -> DataSection:
    return DataSection(
        source="folder",
        train=write_folder(tmp_path / "train", split(train)),
        test=write_folder(tmp_path / "test", split(test, seed=1)),
    )


def said(section: DataSection) -> tuple[Splits, list[str]]:
    lines: list[str] = []
    return load(section, say=lines.append), lines


def same(a: Splits, b: Splits) -> bool:
    return all(
        np.array_equal(getattr(a, part).images, getattr(b, part).images)
        and np.array_equal(getattr(a, part).labels, getattr(b, part).labels)
        for part in ("train", "validation", "test")
    )


def test_plain_data_say_nothing(tmp_path: Path) -> None:
    assert said(folders(tmp_path))[1] == []


@pytest.mark.parametrize(
    ("hidden", "content"),
    [
        ("class1/._5.png", b"\0\5\26\7"),
        ("class1/.ipynb_checkpoints/003-checkpoint.png", None),
        (".ipynb_checkpoints/x.png", None),
        ("__MACOSX/class1/x.png", None),
        ("class2/deeper/__MACOSX/._x.png", b""),
        ("class0/.DS_Store", b"\0"),
        ("class1/@eaDir/003.png/SYNOPHOTO_THUMB_M.jpg", b"\0"),
        ("lost+found", None),
    ],
)
def test_what_programs_leave_beside_images_is_left_out(
    tmp_path: Path, hidden: str, content: bytes | None
) -> None:
    section = folders(tmp_path)
    before = load(section)
    path = tmp_path / "train" / hidden
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        path.write_bytes(png(split(30).images[3]) if content is None else content)
    else:
        path.mkdir()
    after, lines = said(section)
    assert same(before, after)
    is_image = hidden.endswith(("png", "jpg"))
    assert lines == [f"1 hidden files in {tmp_path / 'train'} are left out ({hidden})"] * is_image


def test_class_folders_and_images_may_be_links(tmp_path: Path) -> None:
    section = folders(tmp_path)
    linked = tmp_path / "linked"
    for part in ("train", "test"):
        (linked / part).mkdir(parents=True)
        for folder in (tmp_path / part).iterdir():
            (linked / part / folder.name).symlink_to(folder)
    assert same(load(section), load(section.model_copy(update={p: linked / p for p in ("train", "test")})))
    (tmp_path / "train" / "class0" / "up").symlink_to(tmp_path / "train" / "class0")
    assert len(load(section).train) == 25, "a link that leads back up is followed once"


@pytest.mark.parametrize("empty", ["class1", "class9", "aaa"])
def test_an_empty_class_keeps_its_number(tmp_path: Path, empty: str) -> None:
    section = folders(tmp_path)
    for part in ("train", "test"):
        for image in (tmp_path / part / empty).glob("*"):
            image.unlink()
    (tmp_path / "train" / empty).mkdir(exist_ok=True)
    splits, (line,) = said(section)
    names = sorted({"class0", "class1", "class2", empty})
    assert splits.classes == len(names)
    assert set(splits.train.labels) == {names.index(name) for name in names if name != empty}
    assert f"1 of {len(names)} classes have no training image in {tmp_path / 'train'}: {empty}" in line


def test_folders_are_numbered_as_a_network_has_them(tmp_path: Path) -> None:
    section = folders(tmp_path).model_copy(update={"classes": ("class2", "class0", "class1")})
    plain, mapped = load(folders(tmp_path)), load(section)
    assert np.array_equal(mapped.train.labels, np.array([1, 2, 0])[plain.train.labels])
    with pytest.raises(
        DataError, match=r"class folder 'class1' of .* is not in data\.classes: class0, class2"
    ):
        load(section.model_copy(update={"classes": ("class0", "class2")}))


def gradient(height: int, width: int) -> np.ndarray:
    """Grows to the right in red and downwards in green."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 250, width)[None, :]
    image[..., 1] = np.linspace(0, 250, height)[:, None]
    return image


def written(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured_and_said(tmp_path: Path, kind: str, orientation: int) -> None:
    """Each file holds the same upright picture, stored in one of EXIF's eight ways."""
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    upright = Image.fromarray(gradient(16, 16))
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    section = folders(tmp_path)
    for i, path in enumerate(sorted((tmp_path / "test").glob("*/*"))):
        path.unlink()
        picture = stored.copy()
        picture.putpixel((8, 8), (0, 0, 20 * i))
        name = path.with_suffix(f".{kind}")
        name.write_bytes(written(picture, kind, exif=exif, **({"quality": 100} if kind == "jpeg" else {})))
    splits, lines = said(section.model_copy(update={"size": 16, "resize": 16}))
    expected = gradient(16, 16).transpose(2, 0, 1)
    seen = splits.test.images[0].astype(int)
    assert np.median(np.abs(seen - expected)) <= 4
    turned = [line for line in lines if "turned" in line]
    assert turned == (
        ["9 of 9 test images are turned as their EXIF orientation says"] if orientation > 1 else []
    )


def test_images_of_different_sizes_are_brought_to_one(tmp_path: Path) -> None:
    section = folders(tmp_path)
    sizes = itertools.cycle([(40, 60), (60, 40), (32, 32), (100, 33), (8, 9)])
    for path, (height, width) in zip(sorted((tmp_path / "train").glob("*/*")), sizes, strict=False):
        noisy = gradient(height, width)
        noisy[..., 2] = np.random.default_rng(int(path.stem)).integers(0, 256, (height, width))
        path.write_bytes(written(Image.fromarray(noisy), "png"))
    with pytest.raises(DataError, match=r"give all images one size, or set data\.size"):
        load(section)
    splits, lines = said(section.model_copy(update={"size": 32}))
    assert splits.train.images.shape == (25, 3, 32, 32)
    assert splits.test.images.shape == (9, 3, 32, 32)
    assert sum(int(line.split()[0]) for line in lines if "are brought to 32x32" in line) == 30 - 6 + 9
    middle = splits.train.images[..., 12:20, 12:20].mean((2, 3))
    assert np.abs(middle[:, :2] - 125).max() < 20, "the centre is what stays"


def test_the_shorter_side_is_what_is_asked_for(tmp_path: Path) -> None:
    section = folders(tmp_path)
    for path in (tmp_path / "test").glob("*/*"):
        path.write_bytes(written(Image.fromarray(gradient(64, 64)), "png"))
    plain = section.model_copy(update={"size": 32})

    def spread(section: DataSection) -> float:
        image = load(section).test.images[0, 0].astype(float)
        return float(image[:, -1].mean() - image[:, 0].mean())

    assert spread(plain.model_copy(update={"resize": 32})) == pytest.approx(250, abs=8)
    assert spread(plain) == pytest.approx(250 * 7 / 8, abs=8)
    assert spread(plain.model_copy(update={"resize": 64})) == pytest.approx(125, abs=8)
    with pytest.raises(ValueError, match="needs a `size` of at most as many pixels"):
        DataSection(size=32, resize=31)


def test_an_alpha_channel_is_left_out_and_said(tmp_path: Path) -> None:
    section = folders(tmp_path)
    before, content = load(section), (tmp_path / "test" / "class1" / "001.png").read_bytes()
    for mode in ("RGBA", "P", "RGB"):
        path = tmp_path / "test" / "class1" / "001.png"
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image = image.quantize(64) if mode == "P" else image.convert(mode)
        path.write_bytes(written(image, "png", **({"transparency": 3} if mode == "P" else {})))
        after, lines = said(section)
        assert same(before, after) or mode == "P"  # a palette of 64 colours
        assert [line for line in lines if "1 of 9 test images have an alpha channel" in line] == lines
        assert len(lines) == (mode != "RGB")


def table(path: Path, part: Split, labels: object, **columns: object) -> Path:
    images = pa.array([{"bytes": png(image), "path": None} for image in part.images])
    pq.write_table(pa.table({"img": images, **columns, "label": labels}), path)
    return path


def parquet(tmp_path: Path, label: Callable[[int], object], **keys: object) -> DataSection:
    parts = {"train": split(30), "test": split(9, seed=1)}
    paths = {
        name: table(tmp_path / f"{name}.parquet", part, pa.array([label(int(n)) for n in part.labels]))
        for name, part in parts.items()
    }
    return DataSection(source="parquet", **paths, **keys)


@pytest.mark.parametrize("form", ["string", "large_string", "dictionary"])
def test_labels_that_are_texts_are_numbered_by_name(tmp_path: Path, form: str) -> None:
    names = ["dog", "cat", "bird"]
    part = split(30)
    labels: Any = pa.array([names[n] for n in part.labels])
    labels = {
        "string": labels,
        "large_string": labels.cast(pa.large_string()),
        "dictionary": labels.dictionary_encode(),
    }[form]
    section = DataSection(
        source="parquet",
        train=table(tmp_path / "train.parquet", part, labels),
        test=table(tmp_path / "test.parquet", split(9, seed=1), pa.array(["cat"] * 9)),
    )
    splits, lines = said(section)
    assert splits.train.labels.tolist() == [2 - n for n in part.labels[:25]]
    assert set(splits.test.labels) == {1}
    assert lines == ["labels are texts: 3 classes in the order of their names (bird, cat, dog)"]
    ordered, lines = said(section.model_copy(update={"classes": tuple(names)}))
    assert ordered.train.labels.tolist() == part.labels[:25].tolist()
    assert lines == []
    table(tmp_path / "test.parquet", split(9, seed=1), pa.array(["cow"] * 9))
    with pytest.raises(
        DataError, match=r"label 'cow' of data\.test is none of the 3 classes: 'bird', 'cat', 'dog'"
    ):
        load(section)
    table(tmp_path / "test.parquet", split(9, seed=1), pa.array([1] * 9))
    with pytest.raises(DataError, match=r"labels of data\.train are texts and those of data\.test are not"):
        load(section)


@pytest.mark.parametrize("first", [1, -3, 1000])
def test_labels_that_do_not_begin_at_zero(tmp_path: Path, first: int) -> None:
    section = parquet(tmp_path, lambda n: n + first)
    if first == 1:
        with pytest.raises(
            DataError, match=r"^labels run from 1 to 3 and must begin at 0; .* set data\.classes"
        ):
            load(section)
    mapped = load(section.model_copy(update={"classes": (first, first + 1, first + 2)}))
    assert mapped.classes == 3
    assert same(mapped, load(parquet(tmp_path, lambda n: n)))


def test_labels_may_be_yes_and_no(tmp_path: Path) -> None:
    section = parquet(tmp_path, lambda n: n > 0)
    assert load(section).train.labels.tolist() == [int(n > 0) for n in split(30).labels[:25]]


def test_a_column_is_named(tmp_path: Path) -> None:
    part = split(30)
    for name, rows in (("train", part), ("test", split(9, seed=1))):
        images = pa.array([{"bytes": png(image), "path": None} for image in rows.images])
        labels = pa.array(rows.labels)
        pq.write_table(
            pa.table({"photo": images, "fine_label": labels, "coarse_label": pa.array(rows.labels % 2)}),
            tmp_path / f"{name}.parquet",
        )
    section = DataSection(source="parquet", train=tmp_path / "train.parquet", test=tmp_path / "test.parquet")
    with pytest.raises(
        DataError, match=r"set data\.image to one of its columns: photo, fine_label, coarse_label"
    ):
        load(section)
    with pytest.raises(DataError, match=r"has no column 'label'; set data\.label to one of"):
        load(section.model_copy(update={"image": "photo"}))
    with pytest.raises(DataError, match=r"has no column 'colour'; set data\.label"):
        load(section.model_copy(update={"image": "photo", "label": "colour"}))
    splits = load(section.model_copy(update={"image": "photo", "label": "fine_label"}))
    assert splits.train.labels.tolist() == part.labels[:25].tolist()


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, test = split(30), split(9, seed=1)
    for i, start in enumerate((0, 12, 20)):
        end = (12, 20, 30)[i]
        write_parquet(tmp_path / f"train-{i:05}-of-00003.parquet", part[start:end])
    whole = write_parquet(tmp_path / "whole.parquet", part)
    held = write_parquet(tmp_path / "test.parquet", test)
    expected = load(DataSection(source="parquet", train=whole, test=held))
    shards = sorted(str(p) for p in tmp_path.glob("train-*"))
    for places in (
        "train-*.parquet",
        "train-0000?-of-00003.parquet",
        shards,
        [*shards[:1], "train-0000[12]*"],
    ):
        given = {"name": "s", "model": {"factory": "digits_cnn"}}
        data = {"source": "parquet", "train": places, "test": "test.parquet"}
        config = parse(given | {"data": data}, source="s.toml", base=tmp_path)
        assert same(load(config.data), expected)
        assert DataSection.model_validate(config.data.model_dump(mode="json")) == config.data
    with pytest.raises(DataError, match=r"data\.train: no file matches .*valid-\*"):
        load(DataSection(source="parquet", train=tmp_path / "valid-*.parquet", test=held))
    with pytest.raises(PrunefrontError, match=r"should be a path or s3://bucket/key, or a list of them"):
        parse(given | {"data": {"train": []}}, source="s.toml", base=tmp_path)
    odd = tmp_path / "a[1].parquet"
    os.link(whole, odd)
    assert same(load(DataSection(source="parquet", train=odd, test=held)), expected), (
        "a file's own name is no pattern"
    )


def test_rows_sorted_by_class_are_refused_before_anything_is_spent(tmp_path: Path) -> None:
    part = split(30)
    order = np.argsort(part.labels, kind="stable")
    train = write_parquet(tmp_path / "train.parquet", Split(part.images[order], part.labels[order]))
    section = DataSection(
        source="parquet", train=train, test=write_parquet(tmp_path / "t.parquet", split(9, seed=1))
    )
    with pytest.raises(
        DataError, match=r"sorted by class, and the last 5, .* hold 1 of 3 classes; .*data\.shuffle"
    ):
        load(section)
    shuffled = load(section.model_copy(update={"shuffle": True}))
    assert set(shuffled.validation.labels) == {0, 1, 2}
    assert same(shuffled, load(section.model_copy(update={"shuffle": True}))), "in a fixed order"


def test_sorted_training_rows_beside_a_whole_validation_part_are_fine() -> None:
    part = split(30)
    order = np.argsort(part.labels, kind="stable")
    train = Split(part.images[order], part.labels[order])
    check_splits(Splits(train, split(9, seed=1), split(9, seed=2), Transform((0.5,) * 3, (0.2,) * 3), 3))


@pytest.mark.parametrize("key", ["size", "label", "classes", "shuffle"])
def test_keys_about_files_are_refused_where_there_are_none(tmp_path: Path, key: str) -> None:
    value = {"size": 8, "label": "x", "classes": (1, 2), "shuffle": True}[key]
    with pytest.raises(DataError, match=rf"data\.{key} means nothing to data\.source = 'digits'"):
        load(DataSection(**{key: value}))
