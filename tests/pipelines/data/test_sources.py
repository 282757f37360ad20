"""Data sources: three disjoint parts, one clear line for every way data can be wrong, reproducible batches."""

import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data import DataError, SearchData, Split, Splits, Transform, batches, load
from prunefront.pipelines.data.checks import check_splits, pixel_statistics

CIFAR = Path(__file__).parents[4] / "shared" / "data"


def split(count: int, *, seed: int = 0, classes: int = 3, size: int = 8, channels: int = 3) -> Split:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return Split(images, np.arange(count, dtype=np.int64) % classes)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "png")
    return file.getvalue()


def write_parquet(path: Path, part: Split, *, column: str = "img", label: str = "label") -> Path:
    images = [{"bytes": png(image), "path": None} for image in part.images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({column: pa.array(images, kind), label: pa.array(part.labels)}), path)
    return path


def write_folder(folder: Path, part: Split) -> Path:
    for i, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        (folder / f"class{label}" / f"{i:03}.png").write_bytes(png(image))
    return folder


def digests(part: Split) -> set[bytes]:
    return {image.tobytes() for image in part.images}


def assert_disjoint(splits: Splits) -> None:
    train, validation, test = map(digests, (splits.train, splits.validation, splits.test))
    assert train.isdisjoint(validation)
    assert train.isdisjoint(test)
    assert validation.isdisjoint(test)


def test_digits_are_three_disjoint_parts_of_all_1797_images() -> None:
    splits = load(DataSection())
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1097, 300, 400)
    assert splits.input_shape == (1, 8, 8)
    assert splits.classes == 10
    assert splits.train.images.min() == 0
    assert splits.train.images.max() == 255
    assert_disjoint(splits)
    for part in (splits.train, splits.validation, splits.test):
        assert np.bincount(part.labels, minlength=10).min() >= 0.06 * len(part)
    again = load(DataSection())
    np.testing.assert_array_equal(splits.train.images, again.train.images)


@pytest.mark.parametrize("column", ["img", "image"])
def test_parquet_sets_the_last_rows_aside_and_limits_keep_the_first(tmp_path: Path, column: str) -> None:
    rows, held_out = split(30), split(9, seed=1)
    section = DataSection(
        source="parquet",
        train=write_parquet(tmp_path / "train.parquet", rows, column=column),
        test=write_parquet(tmp_path / "test.parquet", held_out, column=column),
    )
    splits = load(section)
    np.testing.assert_array_equal(splits.train.images, rows.images[:25])
    np.testing.assert_array_equal(splits.validation.images, rows.images[25:])
    np.testing.assert_array_equal(splits.test.images, held_out.images)
    np.testing.assert_array_equal(splits.validation.labels, rows.labels[25:])
    few = load(section.model_copy(update={"train_limit": 6, "test_limit": 4, "validation": 10}))
    np.testing.assert_array_equal(few.train.images, rows.images[:6])
    np.testing.assert_array_equal(few.validation.images, rows.images[20:])
    np.testing.assert_array_equal(few.test.images, held_out.images[:4])


def test_folder_keeps_every_image_once_with_its_class(tmp_path: Path) -> None:
    rows, held_out = split(60, channels=1), split(12, seed=1, channels=1)
    section = DataSection(
        source="folder",
        train=write_folder(tmp_path / "train", rows),
        test=write_folder(tmp_path / "test", held_out),
        validation=20,
    )
    splits = load(section)
    assert_disjoint(splits)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (40, 20, 12)
    assert set(splits.validation.labels) == {0, 1, 2}, (
        "files lie sorted by class; validation must hold them all"
    )
    label_of = {image.tobytes(): label for image, label in zip(rows.images, rows.labels, strict=True)}
    found = [*zip(splits.train.images, splits.train.labels, strict=True)]
    found += [*zip(splits.validation.images, splits.validation.labels, strict=True)]
    assert {image.tobytes(): label for image, label in found} == label_of


OWN = """
import numpy as np
from prunefront.pipelines.data import Split, Splits, Transform

def part(count, seed):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((count, 1, 4, 4)).astype(np.float32)
    return Split(images, np.arange(count, dtype=np.int64) % 2)

def two(count=24):
    return part(count, 0), part(8, 1)

def three():
    return part(24, 0), part(6, 1), part(8, 2)

def whole():
    return Splits(*three(), Transform((0.5,), (2.0,)), 2)

def wrong():
    return [1, 2]

def broken():
    return 1 / 0

number = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory, which is not on sys.path, as under a console script."""
    name = f"own_data_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / f"{name}_needy.py").write_text("import a_package_nobody_has\n")
    (tmp_path / f"{name}_bad.py").write_text("raise OSError('no licence')\n")
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p not in ("", str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    return name


def test_own_callable_returns_two_or_three_parts_or_splits(own_module: str) -> None:
    two = load(DataSection(source=f"{own_module}:two", options={"count": 30}, augment="none"))
    assert (len(two.train), len(two.validation), len(two.test)) == (25, 5, 8)
    assert two.transform.augment == "none"
    three = load(DataSection(source=f"{own_module}:three", train_limit=10, test_limit=3))
    assert (len(three.train), len(three.validation), len(three.test)) == (10, 6, 3)
    whole = load(DataSection(source=f"{own_module}:whole"))
    assert whole.transform == Transform((0.5,), (2.0,))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{m}:tow", "has no 'tow'; did you mean 'two'"),
        ("{m}:number", "is a int, which cannot be called"),
        ("{m}:wrong", "returned a list; it must return prunefront.pipelines.data.Splits"),
        ("{m}:broken", "failed: ZeroDivisionError: division by zero"),
        ("{m}_needy:x", "needs 'a_package_nobody_has', which is not installed"),
        ("{m}_bad:x", "importing {m}_bad failed: OSError: no licence"),
        ("nowhere_at_all:x", "there is no module 'nowhere_at_all'"),
        ("two words:x", "is not of the form 'package.module:callable'"),
        ("digts", "is unknown; possible: digits, parquet, folder, webdataset, or 'module:callable'"),
    ],
)
def test_a_source_that_cannot_be_had_says_what_was_tried(own_module: str, source: str, says: str) -> None:
    with pytest.raises(PrunefrontError) as caught:
        load(DataSection(source=source.format(m=own_module)))
    assert says.format(m=own_module) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_that_a_source_would_ignore_are_refused(own_module: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"remove that key"):
        load(DataSection(source=f"{own_module}:whole", augment="crop_flip"))
    with pytest.raises(DataError, match=r"remove data\.validation"):
        load(DataSection(source=f"{own_module}:three", validation=3))
    with pytest.raises(DataError, match=r"set source = 'parquet' or 'folder'"):
        load(DataSection(train=tmp_path / "train.parquet"))
    with pytest.raises(DataError, match=r"'digits' takes none"):
        load(DataSection(options={"size": 3}))


def test_files_that_are_absent_or_of_another_kind(tmp_path: Path) -> None:
    good = write_parquet(tmp_path / "good.parquet", split(12))
    other = write_parquet(tmp_path / "other.parquet", split(12), column="picture")
    unlabelled = write_parquet(tmp_path / "unlabelled.parquet", split(12), label="class")
    text = tmp_path / "text.parquet"
    text.write_text("not parquet")
    empty = write_parquet(tmp_path / "empty.parquet", split(0))
    cases = {
        tmp_path / "nowhere.parquet": "there is no file",
        other: "has no column 'img' or 'image'; set data.image to one of its columns: picture, label",
        unlabelled: "has no column 'label'; set data.label to one of its columns: img, class",
        text: "cannot be read as parquet",
        empty: "holds no row",
        tmp_path: "is not a file",
    }
    for path, says in cases.items():
        with pytest.raises(DataError) as caught:
            load(DataSection(source="parquet", train=path, test=good))
        assert says in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"needs data\.test"):
        load(DataSection(source="parquet", train=good))
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="holds no class folder"):
        load(DataSection(source="folder", train=tmp_path / "bare", test=tmp_path / "bare"))
    with pytest.raises(DataError, match=r"would take all of the 12 training images"):
        load(DataSection(source="parquet", train=good, test=good, validation=12))


def test_images_of_two_sizes_and_images_that_are_none(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "train", split(12))
    test = write_folder(tmp_path / "test", split(6, seed=1))
    (folder / "class1" / "larger.png").write_bytes(png(split(1, size=9).images[0]))
    section = DataSection(source="folder", train=folder, test=test)
    with pytest.raises(DataError, match=r"9x9.* 8x8|8x8.* 9x9"):
        load(section)
    (folder / "class1" / "larger.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"larger\.png cannot be decoded as an image"):
        load(section)
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    deep.save(folder / "class1" / "larger.png")
    with pytest.raises(DataError, match="has more than 8 bits per pixel"):
        load(section)
    (test / "class7").mkdir()
    with pytest.raises(DataError, match=r"class 'class7' of .* is not in"):
        load(section)


def test_an_image_that_claims_to_be_immense(tmp_path: Path) -> None:
    """A few bytes that would be 1.2 GB of pixels."""
    folder = write_folder(tmp_path / "train", split(9))
    (folder / "class0/bomb.ppm").write_bytes(b"P6 20000 20000 255\n")
    section = DataSection(source="folder", train=folder, test=write_folder(tmp_path / "test", split(3)))
    with pytest.raises(DataError, match=r"bomb\.ppm cannot be decoded as an image: Image size \(400000000"):
        load(section)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A test file, and the bytes of a training file that goes with it."""
    folder = tmp_path_factory.mktemp("whole")
    train = write_parquet(folder / "train.parquet", split(20)).read_bytes()
    return write_parquet(folder / "test.parquet", split(6, seed=1)), train


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_parquet_file_is_one_clear_line(whole: tuple[Path, bytes], data: st.DataObject) -> None:
    """Cut off, or with other bytes, half of them in the footer, where the format says what is where."""
    test, train = whole
    damaged = bytearray(train)
    footer = len(train) - 8 - int.from_bytes(train[-8:-4], "little")
    first = footer if data.draw(st.booleans()) else 0
    places = st.dictionaries(st.integers(first, len(train) - 1), st.integers(0, 255), max_size=8)
    for place, byte in data.draw(places).items():
        damaged[place] = byte
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(train) - 1)) :]
    file = test.with_name("damaged.parquet")
    file.write_bytes(damaged)
    said = ""
    try:
        load(DataSection(source="parquet", train=file, test=test))
    except PrunefrontError as error:
        said = str(error)
    assert "\n" not in said


def parts(**changes: Split) -> Splits:
    made = {"train": split(30), "validation": split(9, seed=1), "test": split(9, seed=2)} | changes
    return Splits(**made, transform=Transform((0.5,) * 3, (0.2,) * 3), classes=3)


def relabelled(part: Split, labels: np.ndarray) -> Split:
    return Split(part.images, np.asarray(labels, np.int64))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"test": split(0)}, "the test part is empty"),
        ({"train": relabelled(split(30), np.zeros(30))}, "all 30 training images have label 0"),
        ({"train": relabelled(split(30), np.arange(30) % 3 * 2 // 2 * 2)}, "needs more than 3 classes"),
        ({"train": relabelled(split(30), np.arange(30) % 2 * 2)}, "no training image has label 1"),
        ({"train": relabelled(split(30), np.arange(30) % 3 - 1)}, "one training label is -1"),
        ({"validation": relabelled(split(9, seed=1), np.full(9, 3))}, "one validation label is 3"),
        ({"test": split(9, seed=2, size=7)}, "test images are 7x7 with 3 channels and training images 8x8"),
        ({"test": split(30)}, "30 of 30 test images are also training images"),
        ({"validation": split(30)}, "30 of 30 validation images are also training images"),
        ({"test": split(9, seed=1)}, "9 of 9 test images are also"),
    ],
)
def test_data_that_cannot_be_searched_on_is_refused(wrong: dict[str, Split], says: str) -> None:
    assert check_splits(parts()) is not None
    with pytest.raises(DataError) as caught:
        check_splits(parts(**wrong))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_few_shared_images_are_told_and_allowed(caplog: pytest.LogCaptureFixture) -> None:
    train, test = split(30), split(200, seed=2)
    test.images[17] = train.images[3]
    check_splits(parts(train=train, test=test))
    assert "1 of 200 test images" in caplog.text


def test_statistics_come_from_training_pixels_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    rows = split(40)
    mean, std = pixel_statistics(rows)
    scaled = rows.images / 255.0
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 2, 3)), rtol=1e-9)
    section = DataSection(
        source="parquet",
        train=write_parquet(tmp_path / "train.parquet", rows),
        test=write_parquet(tmp_path / "test.parquet", split(6, seed=3)),
        validation=10,
    )
    assert load(section).transform.mean == pixel_statistics(rows[:30])[0]
    with pytest.raises(DataError, match=r"mean and std have 2 values, the images have 3 channels"):
        load(section.model_copy(update={"mean": (0.5, 0.5), "std": (0.2, 0.2)}))
    with pytest.raises(DataError, match=r"mean has 2 values and std has 3"):
        load(section.model_copy(update={"mean": (0.5, 0.5)}))
    with pytest.raises(DataError, match=r"std above zero"):
        Transform((0.5,), (0.0,))


def test_search_data_holds_no_test_image() -> None:
    splits = load(DataSection())
    sent = pickle.dumps(splits.for_search(), protocol=5)
    received = pickle.loads(sent)
    assert isinstance(received, SearchData)
    assert not any(image.tobytes() in sent for image in splits.test.images)
    assert all(image.tobytes() in sent for image in splits.validation.images[:5])


TRANSFORM = Transform((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "crop_flip", 2)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), batch_size=st.integers(2, 17), smallest=st.integers(1, 2))
def test_batches_hold_every_image_once(count: int, batch_size: int, smallest: int) -> None:
    part = split(count)
    plain = list(batches(part, TRANSFORM, batch_size, smallest=smallest))
    expected = (part.images / 255.0 - np.reshape(TRANSFORM.mean, (3, 1, 1))) / np.reshape(
        TRANSFORM.std, (3, 1, 1)
    )
    np.testing.assert_allclose(torch.cat([x for x, _ in plain]), expected, atol=1e-5)
    assert torch.cat([y for _, y in plain]).tolist() == part.labels.tolist()
    sizes = [len(y) for _, y in plain]
    assert max(sizes) <= batch_size + smallest - 1
    assert len(sizes) == 1 or min(sizes) >= smallest
    mixed = list(batches(part, TRANSFORM, batch_size, shuffle=np.random.default_rng(1), smallest=smallest))
    assert sorted(x.sum().item() for b, _ in mixed for x in b) == pytest.approx(
        sorted(x.sum().item() for b, _ in plain for x in b), abs=1e-2
    )


def test_augmentation_shifts_over_black_and_mirrors() -> None:
    """Black *pixels*, as if padded before normalisation: what networks are usually trained with."""
    part, count = split(1), 400
    many = Split(np.repeat(part.images, count, 0), np.zeros(count, np.int64))
    (plain, _), *_ = batches(part, TRANSFORM, 1)
    (black, _), *_ = batches(Split(np.zeros_like(part.images), part.labels), TRANSFORM, 1)
    padded = black[0, :, :1, :1].repeat(1, 12, 12)
    padded[:, 2:10, 2:10] = plain[0]
    views = [padded[:, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    views += [view.flip(2) for view in views]
    stream = batches(many, TRANSFORM, count, augment=np.random.default_rng(0))
    seen = {next(i for i, v in enumerate(views) if torch.equal(v, image)) for image in next(iter(stream))[0]}
    assert seen == set(range(50)), (
        "400 draws of 50 equally likely views miss one with probability 1.5 %; seed 0 does not"
    )


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_a_seed_fixes_the_stream(augment: str) -> None:
    part = split(20)
    transform = Transform((0.4,) * 3, (0.2,) * 3, augment, 1)

    def stream(seed: int) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        return torch.cat([x for x, _ in batches(part, transform, 6, augment=rng, shuffle=rng)])

    assert torch.equal(stream(3), stream(3))
    assert not torch.equal(stream(3), stream(4))


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_read_only_arrays_are_neither_warned_about_nor_written(shuffled: bool, dtype: type) -> None:
    part = split(10)
    images = part.images.astype(dtype)
    images.flags.writeable = part.labels.flags.writeable = False
    before = images.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shuffle = np.random.default_rng(0) if shuffled else None
        for x, y in batches(Split(images, part.labels), TRANSFORM, 4, shuffle=shuffle, channels_last=True):
            x.zero_()
            y.zero_()
            assert x.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(images, before)


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.exists(), reason="../shared/data (CIFAR-10) is absent")
def test_cifar_splits_are_disjoint() -> None:
    splits = load(
        DataSection(
            source="parquet",
            train=CIFAR / "cifar10-train.parquet",
            test=CIFAR / "cifar10-test.parquet",
            validation=5000,
        )
    )
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (45_000, 5_000, 10_000)
    assert_disjoint(splits)
