"""The zoo, one family a file, and `build`, which also calls a user's own `module:callable`."""

import inspect

import torch
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.imported import call, import_callable, import_rules
from prunefront.pipelines.config.sections import ModelSection
from prunefront.pipelines.models import densenet, digits_cnn, mobilenet, resnet, vgg
from prunefront.pipelines.models.registry import models
from prunefront.pruners.trace.rules import OWN
from prunefront.text import one_line

__all__ = ["ModelError", "build", "densenet", "digits_cnn", "mobilenet", "models", "resnet", "vgg"]


class ModelError(PrunefrontError):
    """The network of the section `model` cannot be made, or does not fit the data."""


def build(
    section: ModelSection, *, classes: int | None, input_shape: tuple[int, ...] | None, seed: int = 0
) -> nn.Module:
    """Returns the network of a study, on the CPU in eval mode. Its weights are drawn with `seed`; no file of them is
    read. Channel rules of the study's own are imported.

    input_shape: (c, h, w); None where the data are no images. classes: None where outputs are no classes. A factory
    of the zoo gets classes and channels beside the options, a user's own the options alone. Raises UnknownName,
    NotImportable, or ModelError, also where images do not become `classes` outputs.
    """
    if section.rules is not None:
        _load_rules(section.rules)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _make(section, classes, input_shape)
        model.eval()
        if input_shape is None:
            return model
        example = torch.randn(2, *input_shape)
    try:
        with torch.no_grad():
            output = model(example)
    except Exception as error:
        raise ModelError(
            f"model {section.factory!r} cannot take images {input_shape} (channels, height, width): "
            f"{type(error).__name__}: {one_line(error, 300)}"
        ) from error
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if classes is not None and shape != (2, classes):
        raise ModelError(
            f"model {section.factory!r} maps 2 images to {shape}; the data has {classes} classes, "
            f"so (2, {classes}) is needed"
        )
    return model


def _load_rules(spec: str) -> None:
    """Imports the study's own channel rules: here, since every process that uses a network makes it here."""
    import_rules(spec, key="model.rules")
    if not OWN:
        raise ModelError(
            f"model.rules = {spec!r} registers no channel rule: decorate a function with @channel_rule('aten.op') from "
            "prunefront.pruners.trace.rules (docs/add-an-operator.md)"
        )


def _make(section: ModelSection, classes: int | None, input_shape: tuple[int, ...] | None) -> nn.Module:
    if ":" in section.factory:
        function = import_callable(section.factory, key="model.factory")
        model = call(function, section.options, key="model.factory", spec=section.factory)
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"model.factory = {section.factory!r} returned a {type(model).__name__}, not an nn.Module"
            )
        return model
    factory = models[section.factory]
    if classes is None or input_shape is None:
        raise ModelError(
            f"model {section.factory!r} of the zoo takes images of known classes, which these data do not have; give a "
            "network of your own as model.factory = 'module:callable'"
        )
    options = {"classes": classes, "channels": input_shape[0]} | section.options
    known = list(inspect.signature(factory).parameters)
    for name in options:
        if name not in known:
            raise ModelError(f"model {section.factory!r} has no option {name!r}; it has: {', '.join(known)}")
    try:
        return factory(**options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"model {section.factory!r} cannot be made with {section.options}: {error}"
        ) from error
