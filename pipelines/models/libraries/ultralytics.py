"""Networks of ultralytics, by a description of theirs: `ultralytics:yolo11n.yaml`, or a file of one's own."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from torch import nn

from prunefront.pipelines.config.imported import call
from prunefront.pipelines.models.libraries.library import (
    Asked,
    Expected,
    Library,
    LibraryError,
    installed,
    libraries,
)

CLASSES = {
    "detect": "DetectionModel", "segment": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel",
    "classify": "ClassificationModel",
}  # fmt: skip
"""Task of a description, as ultralytics names it -> class of the network in `ultralytics.nn.tasks`."""


def make(asked: Asked) -> nn.Module:
    """Returns the network that a description builds, with new weights, for the data's classes and channels."""
    if not asked.name.endswith((".yaml", ".yml")) or "://" in asked.name:
        raise LibraryError(
            f"model.factory = {asked.factory!r}: name a description (yolo11n.yaml, or a file of yours); nothing is "
            "downloaded, and a .pt file of ultralytics runs code when it is read: save its weights once, "
            "safetensors.torch.save_file(YOLO('best.pt').model.state_dict(), 'weights.safetensors'), and give them as "
            "model.weights"
        )
    installed("ultralytics", asked)
    tasks = import_module("ultralytics.nn.tasks")
    options = dict(asked.options)
    kind = str(options.pop("task", None) or tasks.guess_model_task(asked.name))
    if kind not in CLASSES:
        raise LibraryError(
            f"model.factory = {asked.factory!r}: task {kind!r} is not known; set model.options.task to one of "
            f"{', '.join(CLASSES)}"
        )
    if asked.classes is not None:
        options.setdefault("nc", asked.classes)
    if asked.input_shape is not None:
        options.setdefault("ch", asked.input_shape[0])
    model: nn.Module = call(
        getattr(tasks, CLASSES[kind]),
        {"cfg": asked.name, "verbose": False, **options},
        key="model.factory",
        spec=asked.factory,
    )
    return model


def expects(name: str, model: nn.Module) -> Expected:
    """Returns what all networks of ultralytics take: pixels from 0 to 1, with no mean taken off."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    return Expected(None, (0.0,) * channels, (1.0,) * channels)


def files(name: str) -> Iterable[Path]:
    """Returns the description, where it is a file here."""
    return [Path(name)] if Path(name).is_file() else []


libraries.register("ultralytics")(Library(make, expects, files))
