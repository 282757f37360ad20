"""A network that, asked by a file, eats memory on a worker until Ray's memory monitor kills that worker."""

import os
import time
from pathlib import Path

from torch import Tensor, nn

from prunefront.pipelines.models.digits_cnn import DigitsCNN

FILE = "PRUNEFRONT_TEST_HUNGRY"
"""Environment: the file whose text is the name of the worker's class; whoever finds it deletes it, and eats."""

CHUNK, MOST = 200 << 20, 9 << 30
"""Bytes: at a time, and of one worker in all, should nobody kill it."""


class Hungry(DigitsCNN):
    """The small network of the digits, with that."""

    def forward(self, x: Tensor) -> Tensor:
        eat_if_asked()
        return super().forward(x)


def hungry() -> nn.Module:
    return Hungry(10, 1, 8)


def eat_if_asked() -> None:
    file = Path(os.environ.get(FILE, "/nowhere"))
    if not file.exists() or file.read_text() not in Path("/proc/self/cmdline").read_text():
        return
    try:
        file.unlink()
    except FileNotFoundError:  # another one was faster
        return
    eaten: list[bytes] = []
    while len(eaten) * CHUNK < MOST:
        eaten.append(b"1" * CHUNK)  # written to, so that it is there
        time.sleep(0.02)
    raise MemoryError("nobody killed this worker")
