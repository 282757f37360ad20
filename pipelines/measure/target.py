"""The place where networks are timed, as the rest of a study sees it: this machine, or a device of the cluster."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import MeasureSection
from prunefront.pipelines.measure.latency import LatencyRecord, runtimes

T = TypeVar("T")


class Target(Protocol):
    """A device that times networks for all workers of a study."""

    def time(self, onnx: bytes, example: Any) -> LatencyRecord:
        """Times an ONNX file in turn with the dense network's. example: input of a forward.

        Raises DeviceLost, and what the runtime raises.
        """
        ...

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Returns what the function returns on the device, in its slot. Raises DeviceLost, and what it raises."""
        ...


class DeviceLost(PrunefrontError):
    """The study's device is away, or died while it measured."""


def check_runtime(section: MeasureSection) -> None:
    """Raises PrunefrontError where the runtime cannot be used: on the device, as far as can be told from here; without
    one, on this machine."""
    runtime = runtimes[section.runtime]
    if section.device is not None:
        if not runtime.from_file:
            able = ", ".join(name for name in runtimes if runtimes[name].from_file)
            raise PrunefrontError(
                f"measure.runtime = {runtime.name!r} times a torch network, and only ONNX files can be "
                f"sent to measure.device = {section.device!r}; possible there: {able}; or leave measure.device out"
            )
    elif missing := runtime.missing():
        raise PrunefrontError(
            f"measure.runtime = {runtime.name!r} cannot be used here: {missing}; `prunefront list runtimes` says "
            "which can"
        )


def machine_fields(where: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what names the machine in an environment: host, Ray's node and processor."""
    return {key: where[key] for key in ("host", "node", "processor")}
