"""Reads and writes the trained weights of a module, and never runs code that a file may hold."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from prunefront.errors import PrunefrontError

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile put before every name."""


class WeightsError(PrunefrontError):
    """A file of weights cannot be read, or does not fit the network."""


def load_weights(model: nn.Module, path: Path) -> None:
    """Copies the weights in a file into the model: every tensor, names and shapes must agree.

    path: `.safetensors`, or `.pt`/`.pth` with a state dict or {"state_dict": ...}. Batch norm's batch counters may be
    absent (older files). Raises WeightsError, and leaves the model as it was, for a file that does not fit, holds NaN
    or infinity, or holds other things than tensors.
    """
    state = _unwrapped(read_tensors(path))
    wanted = model.state_dict()
    absent = [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")]
    extra = [n for n in state if n not in wanted]
    if absent or extra:
        parts = [f"lacks {_few(absent)}"] * bool(absent) + [f"has {_few(extra)}, unknown here"] * bool(extra)
        raise WeightsError(
            f"{path} does not fit the network: it {' and '.join(parts)}; "
            f"the network expects {len(wanted)} tensors: {_few(list(wanted))}"
        )
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise WeightsError(
                f"{path} does not fit the network: {name} is {tuple(tensor.shape)}, the network expects "
                f"{tuple(wanted[name].shape)}; check model.options and the number of classes"
            )
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: {name} holds NaN or infinite values")
    # names are checked above; only batch counters may be absent
    model.load_state_dict(state, strict=False)


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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns name -> tensor of a weights file, on the CPU. Raises WeightsError for an absent or another file."""
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:  # KeyError: as in `unpack_weights`
            raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error
    if path.suffix in (".pt", ".pth"):
        return _read_torch(path)
    raise WeightsError(f"weights must be .safetensors, .pt or .pth, got {path.name}")


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch lets through all errors of its unpickler, struct.error and so on
        raise WeightsError(
            f"{path} is not a plain state dict, and reading anything else could run code; "
            "write it again where it was made: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise WeightsError(
            f"{path} holds no state dict: it must be name -> tensor, or {{'state_dict': that}}"
        )
    return dict(content)


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict without the prefixes that wrappers put before every name."""
    for wrapper in WRAPPERS:
        if state and all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    return state


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
