"""Outputs of the dense network on validation data: computed once per study, where they are a task's targets."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from prunefront.errors import PrunefrontError
from prunefront.pipelines.data.samples import Inputs
from prunefront.pipelines.journal.journal import altered_file_error
from prunefront.pipelines.journal.layout import PREPARED
from prunefront.pipelines.measure.dense_outputs import MOST_BYTES, DenseOutputs
from prunefront.pipelines.measure.quality import JUDGED_AT_ONCE
from prunefront.pipelines.prepare.network import Network
from prunefront.pipelines.prepare.read_prepared import read_digests
from prunefront.reading import open_regular

TARGETS = "targets.safetensors"
"""Name of the file. It stays on its machine: another one computes it anew, in one pass."""


def dense_targets(
    study: Path, network: Network, limit: int | None, say: Callable[[str], None], device: str = "cpu"
) -> DenseOutputs | None:
    """Returns the dense network's outputs on validation data, or those of an earlier run; None for tasks with labels.

    study: its folder. limit: most samples that score a candidate in the first stage. Those samples come first where not
    all outputs are kept. Raises StudyFolderError for a file that was changed, or is of other weights or data.
    """
    if network.task.labels:
        return None
    folder = study / PREPARED
    path = folder / TARGETS
    with open_regular(folder / "dense.safetensors") as weights:
        of = {
            "weights": hashlib.file_digest(weights, "sha256").hexdigest(),
            "data": read_digests(folder)["validation"],
        }
    if path.exists():
        try:
            return DenseOutputs.read(path, of)
        except PrunefrontError as error:
            raise altered_file_error(path, str(error)) from None
    validation = network.splits.part("validation")
    parts = [validation] if limit is None else [validation.first(limit), validation]
    place = device if torch.cuda.is_available() else "cpu"
    model = network.model.eval().to(place)

    def call(inputs: Inputs) -> object:
        with torch.inference_mode():
            return inputs.call(model)

    found = DenseOutputs.of(parts, call, size=JUDGED_AT_ONCE, most=MOST_BYTES, device=place)
    network.model.cpu()
    if validation.count is not None and found.samples < validation.count:
        say(
            f"the dense network's outputs, which candidates are compared with, are kept for {found.samples:,} of "
            f"{validation.count:,} validation samples: all take more than {MOST_BYTES >> 20} MiB; the rest is computed "
            "for each candidate"
        )
    found.write(path, of)
    return found
