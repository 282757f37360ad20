"""Speed and memory of streams: images/s beside a plain torch DataLoader, and memory at 1, 4 and 16 times the images.

Both read the same JPEG files with the same number of processes and draw a random crop and a flip of each. The plain
one is what people write: a data set that opens a file with Pillow, crops, flips, makes a float tensor, normalises it.
Streams are timed without their cache of decoded images, while an empty one fills, and from a full one. Memory is the
largest resident size of the process that trains plus that of its largest loader, in a fresh process for each size.

    python -m benchmarks.data [--quick] [--json] [--images 1200] [--loaders 2] [--pairs 6]
"""

import multiprocessing
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import alternate, arguments, report, say, table
from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data import Parts, Samples, open_data
from prunefront.pipelines.data.cache import FOLDER_VARIABLE, cache_folder
from prunefront.pipelines.data.stream.images import random_box

PHOTO = (375, 500)
"""Height and width of a photo, about those of most of ImageNet's."""

SIZE, BATCH, DIFFERENT = 224, 64, 40
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(seed: int, height: int, width: int) -> bytes:
    """Returns a JPEG with detail at all scales, about as many bytes as a photo of that size."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for scale in (4, 16, 64):
        coarse = rng.integers(0, 256, (height // scale + 2, width // scale + 2, 3), dtype=np.uint8)
        image += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / 3
    file = BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "jpeg", quality=90)
    return file.getvalue()


def write(folder: Path, images: int, height: int, width: int) -> Path:
    """Writes photos into ten class folders of train and val, as ImageNet's lie. All differ, some only at the end."""
    contents = [photo(i, height, width) for i in range(DIFFERENT)]
    for part, count in (("train", images), ("val", max(40, images // 10))):
        for i in range(count):
            path = folder / part / f"n{i % 10:02}" / f"{part}_{i:07}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents[i % DIFFERENT] + f"{part}{i}".encode())
    return folder


def streamed(folder: Path, loaders: int, cache_gb: float) -> Samples:
    """Returns the training part as a study has it."""
    section = DataSection(
        source="folder",
        train=folder / "train",
        test=folder / "val",
        size=SIZE,
        stream=True,
        loaders=loaders,
        cache_gb=cache_gb,
        augment="crop_flip",
        mean=MEAN,
        std=STD,
        validation=10,
    )
    data = open_data(section, say=lambda line: None)
    assert isinstance(data, Parts)
    return data.train


class Plain(Dataset[tuple[Tensor, int]]):
    """What people write."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.paths[index]
        rng = np.random.default_rng(index)
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        box = random_box(image.width, image.height, rng)
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        return (pixels - mean) / std, int(path.parent.name[1:])


def one_pass(part: Samples) -> int:
    """Takes every batch of a pass; returns the number of images."""
    return sum(batch.count for batch in part.batches(BATCH, rng=np.random.default_rng(0)))


def filling_pass(part: Samples) -> int:
    """Takes a pass that begins without any cached image, and so resizes and writes each."""
    for folder in cache_folder().glob("*.pixels"):
        shutil.rmtree(folder)
    return one_pass(part)


def plain_pass(paths: list[Path], loaders: int) -> int:
    """Does the same with a plain loader."""
    loader: Iterator[Any] = iter(DataLoader(Plain(paths), BATCH, shuffle=True, num_workers=loaders))
    return sum(len(labels) for _, labels in loader)


def peak(folder: str, loaders: int, images: int) -> float:
    """Returns the largest resident size of this process and of one loader, in MiB, over `images` images of a stream."""
    part = streamed(Path(folder), loaders, cache_gb=1.0)
    seen = 0
    for batch in part.batches(BATCH, rng=np.random.default_rng(0)):
        seen += batch.count
        if seen >= images:
            break
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage) / 1024


def main() -> None:
    parser = arguments(__doc__, quick="fewer and smaller images, two pairs")
    parser.add_argument("--images", type=int, default=1200, help="images of a pass")
    parser.add_argument("--loaders", type=int, default=2, help="loader processes of each")
    parser.add_argument("--pairs", type=int, default=6, help="passes of each")
    given = parser.parse_args()
    images, pairs = (256, 2) if given.quick else (given.images, given.pairs)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.environ[FOLDER_VARIABLE] = f"{place}/cache"
        say(f"writing {images} photos")
        folder = write(Path(place, "photos"), images, *PHOTO)
        part = streamed(folder, given.loaders, 0.0)
        paths = sorted((folder / "train").rglob("*.JPEG"))[: part.count]
        cached = streamed(folder, given.loaders, 10.0)
        speeds = {}
        ways = {
            "decoded anew": lambda: one_pass(part),
            "while the cache fills": lambda: filling_pass(cached),
            "from a full cache": lambda: one_pass(cached),
        }
        for name, mine in ways.items():
            say(f"timing {name}")
            speeds[name] = alternate(mine, lambda: plain_pass(paths, given.loaders), pairs)
        memory = {}
        base = 250 if given.quick else 1000
        for times in (1, 4, 16):
            say(f"memory at {times}x")
            small = write(Path(place, f"small{times}"), base * times, 120, 160)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                memory[times] = pool.submit(peak, str(small), given.loaders, base * times).result()
    count = part.count or 0
    rows = [
        (
            name,
            f"{count / s['seconds']:.0f}",
            f"{1 / s['ratio']:.2f}",
            f"{1 / s['high']:.2f}–{1 / s['low']:.2f}",
        )
        for name, s in speeds.items()
    ]
    text = table(("stream", "images/s", "of a plain loader", "interval"), rows)
    text += "\n\n" + table(
        ("images", "peak MiB"), [(f"{base * times:,}", f"{mib:.0f}") for times, mib in memory.items()]
    )
    report(
        given,
        {"images": count, "loaders": given.loaders, "speeds": speeds, "peak_mib": memory},
        text,
        ("torch", "pillow", "numpy"),
    )


if __name__ == "__main__":
    main()
