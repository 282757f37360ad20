"""The study's device: a node of the cluster that measures latency for all workers."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.connect import cluster_address
from prunefront.pipelines.cluster.nodes import live_nodes
from prunefront.pipelines.config.sections import MeasureSection
from prunefront.pipelines.measure.environment import environment
from prunefront.pipelines.measure.latency import Timed, compare, runtimes
from prunefront.pipelines.measure.turnstile import exclusive

AWAY_SECONDS = 120.0
"""Seconds for which a device may be out of the cluster before a measurement that waits for it fails."""

ANSWER_SECONDS = 3600.0
"""Seconds that a present device may take for one measurement, with those of others before it."""

LOOK_SECONDS = 5.0
"""Seconds between two looks whether the device is still there."""

RETRIES = 2
"""Number of times that Ray starts a measurement anew whose process, or node, died."""

T = TypeVar("T")


class DeviceLost(PrunefrontError):
    """The study's device is away, or died while it measured."""


@dataclass(frozen=True, slots=True)
class Target:
    """A study's device, for workers.

    name: the custom resource of the device; a measurement takes 1 of it. dense: Ray's reference to the dense network's
    ONNX file, so that it travels once. away_seconds: see AWAY_SECONDS.
    """

    name: str
    section: MeasureSection
    dense: Any
    away_seconds: float

    def time(self, onnx: bytes, example: NDArray[np.float32]) -> Timed:
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
            line = str(error).strip().splitlines()[0]
            raise DeviceLost(f"measure.device = {self.name!r} died while it measured: {line}") from None

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
                    "and go on: what is missing is measured then"
                )
            if now - begun > ANSWER_SECONDS:
                raise DeviceLost(
                    f"measure.device = {self.name!r} is there and has not measured within {ANSWER_SECONDS:g} s; see "
                    "what it is busy with and go on: what is missing is measured then"
                )


def make_target(section: MeasureSection, dense_onnx: bytes) -> Target | None:
    """Returns the study's device, which gets the dense network; None for a study without one. Ray must be up."""
    if section.device is None:
        return None
    return Target(section.device, section, ray.put(dense_onnx), AWAY_SECONDS)


def check_runtime(section: MeasureSection) -> None:
    """Raises PrunefrontError where the runtime cannot be used on the study's device, or without one on this machine.

    Of a device only that is checked which does not depend on the machine.
    """
    runtime = runtimes[section.runtime]
    if section.device is not None:
        if not runtime.from_file:
            able = ", ".join(name for name in runtimes if runtimes[name].from_file)
            raise PrunefrontError(
                f"measure.runtime = {runtime.name!r} times a torch network, and only ONNX files travel to "
                f"measure.device = {section.device!r}; possible there: {able}; or leave measure.device out"
            )
    elif missing := runtime.missing():
        raise PrunefrontError(
            f"measure.runtime = {runtime.name!r} cannot be used here: {missing}; `prunefront list runtimes` says "
            "which can"
        )


def check_address(section: MeasureSection, address: str | None) -> None:
    """Raises PrunefrontError for a device without a cluster that it could be in."""
    if section.device is not None and cluster_address(address) is None:
        raise PrunefrontError(
            f"measure.device = {section.device!r} is a node of a Ray cluster, and without --address this machine works "
            "alone; start a cluster here with `ray start --head`, let the device join it, and give --address auto "
            "(docs/placement.md)"
        )


@ray.remote(num_cpus=0, max_retries=RETRIES)
def _run(function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)


def _time(section: MeasureSection, dense_onnx: bytes, onnx: bytes, example: NDArray[np.float32]) -> Timed:
    make, images = runtimes[section.runtime], torch.from_numpy(example.copy())
    with tempfile.TemporaryDirectory(prefix="prunefront-") as temporary:

        def prepared(name: str, content: bytes) -> Callable[[], None]:
            path = Path(temporary) / name
            path.write_bytes(content)
            # a runtime that is `from_file` does not look at the module
            return make(nn.Identity(), path, images, section.threads)

        dense, candidate = prepared("dense.onnx", dense_onnx), prepared("model.onnx", onnx)
        with exclusive():
            latency = compare(dense, candidate, pairs=section.pairs, warmup=section.warmup)
    return Timed(latency, environment(section))


def machine_fields(where: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those fields of an environment that name the machine: its host, Ray's node and the processor."""
    return {key: where[key] for key in ("host", "node", "processor")}
