"""Networks of timm: `timm:resnet50`."""

from torch import nn

from prunefront.pipelines.config.imported import call
from prunefront.pipelines.models.libraries.library import (
    Asked,
    Expected,
    Library,
    LibraryError,
    installed,
    libraries,
    numbers,
    refuse_options,
)

LOADS = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""Options of `timm.create_model` that are about weights from elsewhere."""


def make(asked: Asked) -> nn.Module:
    """Returns a network as `timm.create_model` makes it, for the data's classes and channels."""
    if "/" in asked.name or ":" in asked.name:
        raise LibraryError(
            f"model.factory = {asked.factory!r}: only names of timm itself (timm.list_models()); nothing is downloaded"
        )
    refuse_options(asked, LOADS)
    options = {**asked.options, "pretrained": False}
    if asked.classes is not None:
        options.setdefault("num_classes", asked.classes)
    if asked.input_shape is not None and asked.input_shape[0] != 3:
        options.setdefault("in_chans", asked.input_shape[0])
    create = installed("timm", asked).create_model
    model: nn.Module = call(
        create, {"model_name": asked.name, **options}, key="model.factory", spec=asked.factory
    )
    return model


def expects(name: str, model: nn.Module) -> Expected:
    """Returns what `timm.data.resolve_model_data_config` says, which timm's own scripts go by."""
    from importlib import import_module

    found = import_module("timm.data").resolve_model_data_config(model)
    size = numbers(found.get("input_size"))
    shape = None if size is None else tuple(int(n) for n in size)
    return Expected(shape, numbers(found.get("mean")), numbers(found.get("std")))


libraries.register("timm")(Library(make, expects))
