"""Validation samples that each network of the front newly gets wrong, beside the dense network."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import asdict
from io import BytesIO
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from prunefront.pipelines.artifacts.verify import onnx_notes
from prunefront.pipelines.config.sections import TaskSection
from prunefront.pipelines.data import Samples
from prunefront.pipelines.fronts.mistakes import Changed, Mistakes
from prunefront.pipelines.measure.time_limit import TimedOut, time_limit
from prunefront.pipelines.tasks import make_task
from prunefront.pipelines.workers.failures import failure
from prunefront.pipelines.workers.workers import Workers
from prunefront.pruners.graph.pruning_plan import DENSE
from prunefront.search.outcomes.measurement import Failure

MOST_SAMPLES = 5000
"""Most validation samples that are looked at, the first ones."""

SHOWN = 12
"""Most samples that are shown of a network."""

MOST_PICTURES = 200
"""Most pictures in all."""

SIDE = 48
"""Longest side of a picture, in pixels."""


def right_ones(
    onnx: bytes, samples: Samples, section: TaskSection, threads: int, seconds: float | None
) -> list[bool] | Failure | None:
    """Returns of each sample whether a network has it right; None for a task that notes no such thing.

    seconds: most that it may take.
    """
    try:
        task = make_task(section)
        with time_limit(seconds, "the comparison of single samples"):
            notes = [note.get(task.quality.name) for note in onnx_notes(onnx, samples, task, threads=threads)]
        if not all(
            isinstance(note, Tensor) and note.dtype is torch.bool and note.ndim == 1 for note in notes
        ):
            return None
        return [bool(right) for note in notes if note is not None for right in note.tolist()]
    except (Exception, TimedOut) as error:  # noqa: BLE001 - one network's failure; the others are compared
        return failure(error)


def mistakes(
    files: Mapping[str, bytes],
    validation: Samples,
    section: TaskSection,
    workers: Workers,
    *,
    threads: int,
    seconds: float | None,
    say: Callable[[str], None],
) -> Mistakes | None:
    """Returns how networks differ from the dense one, sample by sample.

    files: name -> ONNX file, the dense network's among them. None for a task without labels, or whose samples are not
    simply right or wrong, and where the dense network cannot be run on them. A network that cannot is left out. What
    could not be run is said.
    """
    if not make_task(section).labels or DENSE not in files:
        return None
    first = validation.first(MOST_SAMPLES)
    found = dict(
        zip(
            files,
            workers.each(right_ones, [*files.values()], (first, section, threads, seconds)),
            strict=True,
        )
    )
    for name, right in found.items():
        if isinstance(right, Failure):
            say(f"validation samples of {name} are not compared: {right.kind}: {right.reason}")
    dense = found.pop(DENSE)
    if not isinstance(dense, list):
        return None
    networks, wanted = {}, set()
    for name, right in found.items():
        if not isinstance(right, list) or len(right) != len(dense):
            continue
        pairs = [*zip(dense, right, strict=True)]
        wrong = [i for i, pair in enumerate(pairs) if pair == (True, False)]
        networks[name] = Changed(len(wrong), pairs.count((False, True)), wrong[:SHOWN])
        wanted |= {*wrong[:SHOWN]}
    return Mistakes(len(dense), networks, pictures(first, {*sorted(wanted)[:MOST_PICTURES]}))


def pictures(samples: Samples, places: set[int]) -> dict[str, str]:
    """Returns place -> PNG as a data address, of samples whose only input is an image of one or three channels."""
    found, seen = {}, 0
    for batch in samples.batches(256):
        if seen > max(places, default=-1):
            break
        leaves = [
            t for t in _pytree.tree_leaves((batch.inputs.args, batch.inputs.kwargs)) if isinstance(t, Tensor)
        ]
        if len(leaves) != 1 or leaves[0].ndim != 4 or leaves[0].shape[1] not in (1, 3):
            return {}
        for i, image in enumerate(leaves[0]):
            if seen + i in places:
                found[str(seen + i)] = thumbnail(image)
        seen += batch.count
    return found


def thumbnail(image: Tensor) -> str:
    """Returns an image (c, h, w), stretched to its own darkest and brightest value, as a PNG of at most 48 pixels."""
    from PIL import Image  # here: not every stage needs it

    values = image.detach().cpu().float()
    low, high = float(values.min()), float(values.max())
    pixels = ((values - low) / max(high - low, 1e-12) * 255).round().byte().permute(1, 2, 0).numpy()
    drawn = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    drawn.thumbnail((SIDE, SIDE))
    out = BytesIO()
    drawn.save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def to_json(found: Mistakes) -> dict[str, Any]:
    """Returns the content of the file that `fronts.mistakes` reads."""
    return asdict(found)
