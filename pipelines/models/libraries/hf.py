"""Networks of transformers, by a folder or a config file here: `hf:FOLDER`. Nothing is downloaded, no code is taken."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunefront.pipelines.config.imported import call, one_line
from prunefront.pipelines.models.libraries.library import (
    Asked,
    Expected,
    Library,
    LibraryError,
    installed,
    libraries,
    numbers,
)
from prunefront.reading import read_json

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
SHOWN = 3
"""Most tensors that an error names."""
MOST_BYTES = 1 << 20
"""Largest description of a preprocessor that is read."""


def make(asked: Asked) -> nn.Module:
    """Returns the network that a config describes, with new weights: of the config's own architecture, else AutoModel.

    Options are settings of the config, and `architecture`, the name of a class of transformers.
    """
    path = Path(asked.name).expanduser()
    config_file = path / CONFIG if path.is_dir() else path
    if not config_file.is_file():
        raise LibraryError(
            f"model.factory = {asked.factory!r}: there is no folder with a {CONFIG} and no config file {asked.name!r}; "
            "names on a hub are not looked up: fetch the network's folder once and name that"
        )
    if path.is_dir() and not asked.weights:
        _refuse_unused_weights(asked, path)
    transformers = installed("transformers", asked)
    options = dict(asked.options)
    architecture = options.pop("architecture", None)
    if named := sorted({"trust_remote_code", "local_files_only"} & options.keys()):
        raise LibraryError(
            f"model.options.{named[0]} cannot be set: code of a network's folder never runs, and nothing is downloaded"
        )
    config, unknown = call(
        transformers.AutoConfig.from_pretrained,
        {
            "pretrained_model_name_or_path": str(config_file),
            "local_files_only": True,
            "trust_remote_code": False,
            "return_unused_kwargs": True,
            **options,
        },
        key="model.factory",
        spec=asked.factory,
    )
    if unknown:
        raise LibraryError(
            f"model.options.{sorted(unknown)[0]} is no setting of {type(config).__name__}, the config in {config_file}"
        )
    name = architecture or next(iter(getattr(config, "architectures", None) or ()), None)
    model: nn.Module
    if name is None:
        model = call(
            transformers.AutoModel.from_config, {"config": config}, key="model.factory", spec=asked.factory
        )
    else:
        model = call(
            _architecture(transformers, str(name), asked),
            {"config": config},
            key="model.factory",
            spec=asked.factory,
        )
    return model.float()


def _architecture(transformers: Any, name: str, asked: Asked) -> Any:
    """Returns a network's class by name: one of transformers and no other."""
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise LibraryError(
            f"model.factory = {asked.factory!r}: the architecture {name!r} is no network of the installed "
            'transformers; set model.options.architecture to one, e.g. "BertForSequenceClassification"'
        )
    return found


def _refuse_unused_weights(asked: Asked, folder: Path) -> None:
    """Raises LibraryError for trained weights that would be left aside."""
    files = [file for pattern in WEIGHTS for file in sorted(folder.glob(pattern))]
    if files:
        raise LibraryError(
            f"model.factory = {asked.factory!r}: the folder holds weights ({files[0].name}), which the study does not "
            f"name; give the folder as model.weights = {str(folder)!r} too, or the config alone, "
            f"model.factory = 'hf:{folder / CONFIG}', to train a new network"
        )


def expects(name: str, model: nn.Module) -> Expected:
    """Returns the image size and normalisation of the folder's preprocessor, else those of the config."""
    config = getattr(model, "config", None)
    side, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    sides = (side, side) if isinstance(side, int) else tuple(side or ())
    described = _preprocessor(Path(name).expanduser())
    size = described.get("crop_size", described.get("size"))
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        sides = (size["height"], size["width"])
    whole = len(sides) == 2 and all(isinstance(n, int) for n in (channels, *sides))
    return Expected(
        (channels, *sides) if whole else None,
        numbers(described.get("image_mean")),
        numbers(described.get("image_std")),
    )


def _preprocessor(path: Path) -> dict[str, Any]:
    file = (path if path.is_dir() else path.parent) / PREPROCESSOR
    if not file.is_file() or file.stat().st_size > MOST_BYTES:
        return {}
    try:
        found = read_json(file)
    except OSError as error:
        raise LibraryError(f"{file} cannot be read: {error.strerror}") from error
    return found if isinstance(found, dict) else {}


def load(model: nn.Module, folder: Path) -> str:
    """Copies the safetensors of a folder into the network: by transformers, which knows what its names were earlier.

    Raises LibraryError, and leaves the network as it was, where a tensor is absent, of another shape, or not finite.
    """
    if not any(folder.glob("*.safetensors")):
        raise LibraryError(
            f"model.weights = {str(folder)!r} has no .safetensors, and nothing else is read of a folder; write it "
            "again where it was made: model.save_pretrained(folder)"
        )
    network: Any = model
    options = {
        "pretrained_model_name_or_path": str(folder),
        "config": network.config,
        "local_files_only": True,
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,  # then they are listed, and refused here in one line
        "output_loading_info": True,
    }
    with _quiet():
        try:
            loaded, said = type(network).from_pretrained(**options)
        except Exception as error:  # whatever the library raises over a file
            raise LibraryError(
                f"model.weights = {str(folder)!r} cannot be read: {type(error).__name__}: {one_line(error)}"
            ) from error
    faults = [*said.get("missing_keys", ()), *said.get("mismatched_keys", ())]
    names = sorted(str(fault[0]) if isinstance(fault, tuple | list) else str(fault) for fault in faults)
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise LibraryError(
            f"model.weights = {str(folder)!r} does not fit {type(model).__name__}: absent or of another shape are "
            f"{', '.join(names[:SHOWN])}{more}; check model.options and the architecture"
        )
    state = loaded.float().state_dict()
    if bad := next((name for name, tensor in state.items() if not torch.isfinite(tensor).all()), None):
        raise LibraryError(f"model.weights = {str(folder)!r}: {bad} holds NaN or infinite values")
    model.load_state_dict(state)
    aside = sorted(said.get("unexpected_keys", ()))
    return (
        f"{folder.name}: {len(aside)} other tensors left aside ({', '.join(aside[:SHOWN])})" if aside else ""
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the library's bars and reports off the terminal meanwhile: what is wrong is said in one line."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(level)


def files(name: str) -> Iterable[Path]:
    """Returns the descriptions in a folder, or the config file; weights go along by `model.weights`."""
    path = Path(name)
    if not path.is_dir():
        return [path]
    return [path / known for known in (CONFIG, PREPROCESSOR) if (path / known).is_file()]


libraries.register("hf")(Library(make, expects, files, load))
