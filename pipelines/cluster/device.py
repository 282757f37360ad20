"""The study's device: a node of the cluster that measures latency for all workers."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import nn
from torch.utils import _pytree as pytree

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.nodes import live_nodes
from prunefront.pipelines.config.sections import MeasureSection
from prunefront.pipelines.measure.environment import environment
from prunefront.pipelines.measure.latency import LatencyRecord, compare, runtimes
from prunefront.pipelines.measure.target import DeviceLost
from prunefront.pipelines.measure.timing_lock import exclusive
from prunefront.text import first_line

AWAY_SECONDS = 120.0
"""Seconds for which a device may be out of the cluster before a measurement that waits for it fails."""

ANSWER_SECONDS = 3600.0
"""Seconds that a present device may take for one measurement, with those of others before it."""

LOOK_SECONDS = 5.0
"""Seconds between two looks whether the device is still there."""

RETRIES = 2
"""Number of times that Ray starts a measurement anew whose process, or node, died."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Device:
    """A node of the cluster that measures for a study: the `Target` of its workers.

    name: the custom resource of the device; a measurement takes 1 of it. dense: Ray's reference to the dense network's
    ONNX file, so that it travels once. away_seconds: see AWAY_SECONDS.
    """

    name: str
    section: MeasureSection
    dense: Any
    away_seconds: float

    def time(self, onnx: bytes, example: Any) -> LatencyRecord:
        """Times an ONNX file against the dense network's, both on the device. example: the input of a forward.

        Raises DeviceLost, and the errors of the runtime.
        """
        return self.run(_time, self.section, self.dense, onnx, example)

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs a function on the device, in its one slot, and returns its result.

        Waits while another measurement has the slot, and for a while where the device is away. Raises DeviceLost, and
        the errors of the function.
        """
        # "DEFAULT", or a trial would look for the device within the resources that Tune has set aside for it
        task = _run.options(resources={self.name: 1}, scheduling_strategy="DEFAULT").remote(
            function, *arguments
        )
        self._wait(task)
        try:
            return cast(T, ray.get(task))
        except RayTaskError as error:
            if isinstance(error.cause, PrunefrontError):
                raise error.cause from None
            raise
        except RayError as error:
            raise DeviceLost(
                f"measure.device = {self.name!r} died while it measured: {first_line(error)}"
            ) from None

    def _wait(self, task: Any) -> None:
        # a failed wait leaves the task to itself: a cancel that meets the task's answer would end this process
        begun = seen = time.monotonic()
        while not ray.wait([task], timeout=min(LOOK_SECONDS, self.away_seconds / 4))[0]:
            now = time.monotonic()
            if any(self.name in node.resources for node in live_nodes()):
                seen = now
            if now - seen > self.away_seconds:
                raise DeviceLost(
                    f"no node has had measure.device = {self.name!r} for {self.away_seconds:g} s; let it join again "
                    "and continue with --resume, which measures what is missing"
                )
            if now - begun > ANSWER_SECONDS:
                raise DeviceLost(
                    f"measure.device = {self.name!r} is there and has not measured within {ANSWER_SECONDS:g} s; check "
                    "what it is busy with and continue with --resume, which measures what is missing"
                )


def find_device(section: MeasureSection, dense_onnx: bytes) -> Device | None:
    """Returns the study's device, which gets the dense network; None where the study names none. Ray must be up."""
    if section.device is None:
        return None
    return Device(section.device, section, ray.put(dense_onnx), AWAY_SECONDS)


@ray.remote(num_cpus=0, max_retries=RETRIES)
def _run(function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)


def _time(section: MeasureSection, dense_onnx: bytes, onnx: bytes, example: Any) -> LatencyRecord:
    make = runtimes[section.runtime]
    images = pytree.tree_map(
        lambda a: torch.from_numpy(a.copy()) if isinstance(a, np.ndarray) else a, example
    )
    with tempfile.TemporaryDirectory(prefix="prunefront-") as temporary:

        def prepared(name: str, content: bytes) -> Callable[[], None]:
            path = Path(temporary) / name
            path.write_bytes(content)
            # a runtime that is `from_file` does not look at the module
            return make(nn.Identity(), path, images, section.threads)

        dense, candidate = prepared("dense.onnx", dense_onnx), prepared("model.onnx", onnx)
        with exclusive():
            latency = compare(dense, candidate, pairs=section.pairs, warmup=section.warmup)
    return LatencyRecord(latency, environment(section))
