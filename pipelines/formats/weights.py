"""Reads and writes the trained weights of a module, and never runs code that a file may hold."""

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.formats.read_checkpoint import (
    ROOT,
    Reading,
    StateDict,
    few,
    readings,
    said,
    state_dicts,
)
from prunefront.reading import check_regular

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
"""Suffixes of files that `torch.save` wrote."""

_CLASS = re.compile(r"nsupported (?:global: )?GLOBAL (\w+(?:\.\w+)+)")
"""Part of torch's refusal that names what it would have to import."""


class WeightsError(PrunefrontError):
    """A file of weights cannot be read, or does not fit the network."""


def load_weights(model: nn.Module, path: Path, *, key: str | None = None, setting: str = "") -> str:
    """Copies the weights in a file into the model: every tensor, names and shapes must agree.

    path: `.safetensors`, or what `torch.save` wrote: a state dict, or a checkpoint that holds one under any key. A
    prefix before its names (`module.`, `_orig_mod.`, `model.` …) is removed; float types are converted. Batch norm's
    batch counters may be absent (older files). key: which state dict, where several fit; setting: key of the study
    file that says so, for the error. Returns in one line what was found and removed, "" for a plain state dict. Raises
    WeightsError, and leaves the model as it was, for a file that does not fit, holds NaN or infinity, or no tensors.
    """
    wanted = model.state_dict()
    found = read_state_dicts(path)
    reading = _chosen(found, wanted, path, key, setting)
    state = {}
    for name, tensor in reading.tensors.items():
        state[name] = tensor.to(wanted[name].dtype)
        if not torch.isfinite(state[name]).all():
            raise WeightsError(f"{path}: {name} holds NaN or infinite values")
    # names are checked above; only batch counters may be absent
    model.load_state_dict(state, strict=False)
    how = said(reading, wanted)
    return f"{path.name}: {how}" if how else ""


def _chosen(
    found: list[StateDict], wanted: Mapping[str, Tensor], path: Path, key: str | None, setting: str
) -> Reading:
    """Returns the one reading of a file that fits the network. Raises WeightsError for none and for several."""
    possible = [reading for one in found for reading in readings(one, wanted)]
    if key is not None:
        asked = [r for r in possible if key == r.label] or [r for r in possible if key == r.place]
        if not asked:
            there = list(dict.fromkeys(r.label for r in possible))
            raise WeightsError(f"{path} holds no state dict under {key!r}; it has: {few(there)}")
        possible = asked
    fitting = [reading for reading in possible if reading.fits]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        labels = [reading.label for reading in fitting]
        choose = (
            f"{setting} = {labels[0]!r} takes the first" if setting else "save the one that is meant alone"
        )
        raise WeightsError(
            f"{path} holds {len(labels)} state dicts that fit the network: {', '.join(labels)}; {choose}"
        )
    raise _misfit(max(possible, key=lambda r: len(r.tensors.keys() & wanted.keys())), wanted, path)


def _misfit(reading: Reading, wanted: Mapping[str, Tensor], path: Path) -> WeightsError:
    """Returns the error for a file none of whose state dicts fits; reading: the nearest one."""
    under = "" if reading.place == ROOT else f" (under {reading.place!r})"
    if not (reading.absent or reading.extra):
        rest = len(reading.unlike) - 1
        more = f", and {rest} more tensors differ" if rest else ""
        return WeightsError(
            f"{path}{under} does not fit the network: {reading.unlike[0]}{more}; check model.options and the number of "
            "classes"
        )
    parts = [f"lacks {few(reading.absent)}"] * bool(reading.absent)
    parts += [f"has {few(reading.extra)}, unknown here"] * bool(reading.extra)
    return WeightsError(
        f"{path}{under} does not fit the network: it {' and '.join(parts)}; "
        f"the network expects {len(wanted)} tensors: {few(list(wanted))}"
    )


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the model's state dict as safetensors. Tensors that share memory are written one by one."""
    save_file(_apart(model), path)


def pack_weights(model: nn.Module) -> bytes:
    """Returns the bytes that `save_weights` writes."""
    return save(_apart(model))


def unpack_weights(data: bytes) -> dict[str, Tensor]:
    """Returns name -> tensor of the bytes of `pack_weights`, on the CPU. Raises WeightsError for other bytes."""
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a number type that torch lacks
        raise WeightsError(f"the weights cannot be read as safetensors: {error}") from error


def _apart(model: nn.Module) -> dict[str, Tensor]:
    """Returns the state dict on the CPU, in which no two tensors share memory."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}


def read_state_dicts(path: Path) -> list[StateDict]:
    """Returns the state dicts in a weights file, on the CPU, at least one.

    Raises WeightsError for an absent file, and for one that cannot be read or holds none.
    """
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    if path.suffix == ".safetensors":
        try:
            check_regular(path)
            content: object = load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:  # KeyError: as in `unpack_weights`
            raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error
    elif path.suffix in TORCH_SUFFIXES:
        content = _read_torch(path)
    elif path.suffix == ".onnx":
        raise WeightsError(
            f"{path} is an ONNX file, whose tensors have no names of a torch network any more; give the state dict of "
            "the network that it was exported from: safetensors.torch.save_file(model.state_dict(), "
            "'weights.safetensors')"
        )
    else:
        raise WeightsError(f"weights must be .safetensors, {', '.join(TORCH_SUFFIXES)}; got {path.name}")
    found = state_dicts(content)
    if not found:
        raise WeightsError(
            f"{path} holds no state dict: it must be name -> tensor, or a checkpoint with that under a key"
        )
    return found


def _is_script(path: Path) -> bool:
    """Tells whether a file holds a TorchScript program: an archive with code beside its constants."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (
        OSError,
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
    ):  # torch says what else is wrong with it
        return False
    return "constants.pkl" in names


def _read_torch(path: Path) -> object:
    if _is_script(path):
        raise WeightsError(
            f"{path} is a TorchScript program, which is code; take its weights out of it where it was made: "
            f"safetensors.torch.save_file(dict(torch.jit.load({path.name!r}).state_dict()), 'weights.safetensors'), "
            "and give the network's Python code as model.factory"
        )
    try:
        # checkpoints often hold the arguments of the program that wrote them; a Namespace only holds values
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch lets through all errors of its unpickler, struct.error and so on
        named = _CLASS.search(str(error))
        holds = f" (it holds a {named[1]})" if named else ""
        raise WeightsError(
            f"{path} is not a plain state dict{holds}, and reading anything else could run code; "
            "write it again where it was made: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from error
