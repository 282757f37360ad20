"""Networks of torchvision: `torchvision:resnet50`."""

import inspect
from importlib import import_module

from torch import nn

from prunefront.pipelines.config.imported import call
from prunefront.pipelines.models.libraries.library import (
    Asked,
    Expected,
    Library,
    installed,
    libraries,
    numbers,
    refuse_options,
)

LOADS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")
"""Options of torchvision's builders that download weights."""


def make(asked: Asked) -> nn.Module:
    """Returns a network as `torchvision.models.get_model` makes it, for the data's classes."""
    installed("torchvision", asked)
    refuse_options(asked, LOADS)
    models = import_module("torchvision.models")
    builder = call(models.get_model_builder, {"name": asked.name}, key="model.factory", spec=asked.factory)
    options = {**asked.options, "weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:  # which it would download by default
        options["weights_backbone"] = None
    if asked.classes is not None:
        options.setdefault("num_classes", asked.classes)
    model: nn.Module = call(
        models.get_model, {"name": asked.name, **options}, key="model.factory", spec=asked.factory
    )
    return model


def expects(name: str, model: nn.Module) -> Expected:
    """Returns what the transforms of the network's published weights do; nothing is downloaded for that."""
    published = import_module("torchvision.models").get_model_weights(name)
    entries = list(published)
    if not entries:
        return Expected()
    does = getattr(published, "DEFAULT", entries[0]).transforms()
    mean, std = numbers(getattr(does, "mean", None)), numbers(getattr(does, "std", None))
    size = numbers(getattr(does, "crop_size", None))
    sides = () if size is None else tuple(int(n) for n in size)
    shape = (len(mean or (0,) * 3), sides[0], sides[-1]) if sides else None
    return Expected(shape, mean, std)


libraries.register("torchvision")(Library(make, expects))
