"""The zoo, one family a file, and `build`, which also calls a user's own `module:callable` and asks libraries."""

import inspect
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.imported import call, import_callable, import_rules
from prunefront.pipelines.config.sections import ModelSection
from prunefront.pipelines.models import densenet, digits_cnn, mobilenet, resnet, vgg
from prunefront.pipelines.models.libraries import Asked, Expected, library_of
from prunefront.pipelines.models.registry import models
from prunefront.pruners.trace.rules import OWN
from prunefront.text import one_line

__all__ = [
    "ModelError", "build", "densenet", "digits_cnn", "expected_inputs", "mobilenet", "models", "resnet", "vgg",
]  # fmt: skip


SCRIPT = (
    "its operators are fixed, and nothing can be cut from them; give the Python code of the network as model.factory "
    "and its weights as model.weights: safetensors.torch.save_file(dict(program.state_dict()), 'weights.safetensors')"
)
"""Advice for TorchScript."""

FILES = {
    ".onnx": "an ONNX file holds no torch network that could be trained after a cut",
    ".pt": "a file holds weights, or a TorchScript program, which cannot be cut",
    ".pth": "a file holds weights",
    ".ckpt": "a file holds weights",
    ".bin": "a file holds weights",
    ".safetensors": "a file holds weights",
    ".torchscript": "a TorchScript program cannot be cut",
    ".ts": "a TorchScript program cannot be cut",
    ".pt2": "an exported program cannot be cut",
}
"""Suffix of a file that stands where a network's code should -> why that cannot be."""


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
        _check_numbers(section, model)
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
            f"{type(error).__name__}: {one_line(error, 300)}{_wanted(section, model)}"
        ) from error
    if isinstance(output, Mapping) and isinstance(
        output.get("logits"), torch.Tensor
    ):  # as transformers gives them
        output = output["logits"]
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if classes is not None and shape != (2, classes):
        raise ModelError(
            f"model {section.factory!r} maps 2 images to {shape}; the data has {classes} classes, "
            f"so (2, {classes}) is needed"
        )
    return model


def _check_numbers(section: ModelSection, model: nn.Module) -> None:
    """Raises ModelError for weights that cannot be trained, compared and exported here, whatever the data are."""
    if torch.get_default_device().type == "meta":
        torch.set_default_device(None)  # or nothing could be computed in this process any more
        raise ModelError(
            f"model.factory = {section.factory!r}: its module calls torch.set_default_device('meta'), so its network "
            "has no numbers; leave that out"
        )
    for name, tensor in model.named_parameters():
        if tensor.is_meta:
            raise ModelError(
                f"model.factory = {section.factory!r}: {name} is on the device 'meta', without numbers; make the "
                "network on the CPU"
            )
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"model.factory = {section.factory!r}: {name} is {kind}, and networks are cut and exported in float32; "
                "return the network as .float() (training.precision = 'bfloat16' trains in it all the same)"
            )


def _refuse_file(factory: str) -> None:
    if why := FILES.get(Path(factory).suffix.lower()) if ":" not in factory else None:
        raise ModelError(
            f"model.factory = {factory!r}: {why}; give the network's Python code, 'module:callable' (or 'timm:NAME', "
            "'torchvision:NAME', 'hf:FOLDER'), and its weights as model.weights, a state dict"
        )


def _load_rules(spec: str) -> None:
    """Imports the study's own channel rules: here, since every process that uses a network makes it here."""
    import_rules(spec, key="model.rules")
    if not OWN:
        raise ModelError(
            f"model.rules = {spec!r} registers no channel rule: decorate a function with @channel_rule('aten.op') from "
            "prunefront.pruners.trace.rules (docs/add-an-operator.md)"
        )


def expected_inputs(section: ModelSection, model: nn.Module) -> Expected:
    """Returns what a library's metadata say of the inputs of its network; nothing for other networks."""
    found = library_of(section.factory)
    return Expected() if found is None else found[0].expects(found[1], model)


def _wanted(section: ModelSection, model: nn.Module) -> str:
    shape = expected_inputs(section, model).shape
    return "" if shape is None else f"; its library gives {shape}: set data.size, or an option of the network"


def _make(section: ModelSection, classes: int | None, input_shape: tuple[int, ...] | None) -> nn.Module:
    _refuse_file(section.factory)
    if ":" in section.factory:
        if (found := library_of(section.factory)) is not None:
            library, name = found
            weights = section.weights is not None
            model = library.make(Asked(section.factory, name, section.options, classes, input_shape, weights))
        else:
            function = import_callable(section.factory, key="model.factory")
            model = call(function, section.options, key="model.factory", spec=section.factory)
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"model.factory = {section.factory!r} returned a {type(model).__name__}, not an nn.Module"
            )
        if isinstance(model, torch.jit.ScriptModule):
            raise ModelError(f"model.factory = {section.factory!r} returned a TorchScript program: {SCRIPT}")
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
