"""Networks of the front as PyTorch's exported programs (`model.pt2`); no other network gets one unasked."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prunefront.pipelines.artifacts.manifest import PROGRAM
from prunefront.pipelines.config.sections import ModelSection
from prunefront.pipelines.data.samples import Inputs, positional
from prunefront.pipelines.formats import pt2_export
from prunefront.pipelines.models import build
from prunefront.pipelines.workers.failures import failure
from prunefront.pipelines.workers.workers import Workers
from prunefront.pruners.saved import PLAN, WEIGHTS, read_attributes, read_plan, rebuild
from prunefront.reading import LARGEST_WEIGHTS, read_bytes
from prunefront.search.outcomes.measurement import Failure


@dataclass(frozen=True, slots=True)
class DenseModel:
    """Makings of a study's dense network. classes, input_shape: as `models.build` takes them."""

    section: ModelSection
    classes: int | None
    input_shape: tuple[int, ...] | None


def program(files: tuple[bytes, bytes], dense: DenseModel, inputs: Inputs) -> bytes | Failure:
    """Returns a network's `model.pt2`, compared with torch, or why there is none.

    files: weights.safetensors and plan.json. inputs: a few samples.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="prunefront-") as temporary:
            folder = Path(temporary)
            for name, content in zip((WEIGHTS, PLAN), files, strict=True):
                (folder / name).write_bytes(content)
            plan, removed = read_plan(folder / PLAN)
            model = build(dense.section, classes=dense.classes, input_shape=dense.input_shape)
            network = rebuild(model, plan, removed, folder / WEIGHTS, read_attributes(folder / PLAN))
            example = positional(network, inputs)
            pt2_export.export(network, example, folder / PROGRAM)
            pt2_export.check(network, folder / PROGRAM, example)
            return read_bytes(folder / PROGRAM, limit=LARGEST_WEIGHTS)
    except Exception as error:  # noqa: BLE001 - the network is published without, and it is said
        return failure(error)


def add_programs(
    folders: Mapping[str, Path],
    dense: DenseModel,
    inputs: Inputs,
    workers: Workers,
    say: Callable[[str], None],
) -> None:
    """Writes `model.pt2` into each folder of a fetched network that has none; says which networks have to do without.

    folders: by the network's name. inputs: a few samples.
    """
    todo = {name: folder for name, folder in folders.items() if not (folder / PROGRAM).exists()}
    files = [
        (read_bytes(folder / WEIGHTS, limit=LARGEST_WEIGHTS), read_bytes(folder / PLAN))
        for folder in todo.values()
    ]
    for (name, folder), made in zip(todo.items(), workers.each(program, files, (dense, inputs)), strict=True):
        if isinstance(made, Failure):
            say(f"{name} is published without {PROGRAM}: {made.kind}: {made.reason}")
        else:
            (folder / PROGRAM).write_bytes(made)
