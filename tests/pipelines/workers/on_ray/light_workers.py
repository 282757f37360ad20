"""Workers for a pool that import no torch, which takes each process seconds."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray

from prunefront.search.outcomes.measurement import Measurement


def scored(seconds: float) -> Any:
    """What a worker answers: the fields of `Scored`, whose module imports torch."""
    return SimpleNamespace(outcome=Measurement({"accuracy": 0.5}), seconds=seconds, weights=None, refused="")


class Mortal:
    """Takes (name, file) for a plan. Dies of `always`, and of `once` when it sees its file for the first time."""

    def __init__(self, bench: None, threads: int) -> None:
        self.scored = 0

    def score(self, plan: Any, parent: None = None) -> Any:
        name, file = plan
        if name == "always" or (name == "once" and not Path(file).exists()):
            Path(file).touch()
            os._exit(9)
        self.scored += 1
        return scored(0.25)


class Placed:
    """Takes (name, folder) for a plan; says there where it works, and waits for a file that lets its node go on."""

    def __init__(self, bench: None, threads: int) -> None:
        self.node = ray.get_runtime_context().get_node_id()

    def score(self, plan: Any, parent: None = None) -> Any:
        name, folder = plan
        (Path(folder) / f"{name} on {self.node}").touch()
        while not (Path(folder) / f"go, {self.node}").exists():
            time.sleep(0.01)
        return scored(0.0)


class Stillborn:
    """Dies before it is ready."""

    def __init__(self, bench: None, threads: int) -> None:
        os._exit(9)
