"""Describes the machine and the versions on which a latency depends, beside the network."""

import os
import platform
import socket
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from prunefront.pipelines.config.sections import MeasureSection
from prunefront.pipelines.formats.onnx_runtime import onnxruntime
from prunefront.pipelines.journal.journal import Journal
from prunefront.reading import read_text

PLACE = ("host", "node", "measured")
"""Fields that name a machine and the day. Two machines that differ in nothing else time alike."""


def environment(section: MeasureSection) -> dict[str, Any]:
    """Returns the environment of this process: runtime, versions, processor, threads, machine, day.

    host: the machine's name. node: Ray's name for it while it is in a cluster, "" outside of one.
    """
    return {
        "runtime": section.runtime,
        "batch_size": section.batch_size,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "machine": platform.machine(),
        "processor": processor(),
        "threads": section.threads,
        "host": socket.gethostname(),
        "node": _node(),
        "measured": time.strftime("%Y-%m-%d"),
    }


def record_versions(journal: Journal) -> None:
    """Appends the versions that this run computes with, and the machine it is on, unless the last run had the same."""
    names = ("prunefront", "torch", "numpy", "onnxruntime", "ray")
    versions = {"python": platform.python_version(), **{name: _version(name) for name in names}}
    machine = ", ".join(filter(None, (socket.gethostname(), processor(), f"{os.cpu_count()} cores")))
    if [(e["versions"], e["machine"]) for e in journal.of("versions")[-1:]] != [(versions, machine)]:
        journal.append("versions", versions=versions, machine=machine)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a checkout that is not installed
        return "not installed"


def _node() -> str:
    """Returns Ray's name for this machine, "" outside of a cluster. Does not import Ray."""
    ray = sys.modules.get("ray")
    return str(ray.get_runtime_context().get_node_id()) if ray is not None and ray.is_initialized() else ""


def processor() -> str:
    """Returns the processor's model, as its maker calls it; "" where the system does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = read_text(cpuinfo).splitlines() if cpuinfo.exists() else []
    # systems on ARM name the board and not the processor
    for key in ("model name", "Model", "Hardware"):
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return value.strip()
    return platform.processor()
