"""State of a loop that is not ours, kept between epochs: safetensors with a JSON header, never a pickle."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from prunefront.pipelines.loops.loop import LoopError
from prunefront.pruners.procedures.run import SnapshotError
from prunefront.strict_json import loads

FORMAT = "prunefront loop 1"
HEADER = "loop"


class Checkpoint:
    """Argument `checkpoint` of a loop that takes one: its own state, kept beside the network's weights.

    A loop saves before it calls `on_epoch`, and loads once, before its first epoch. Weights of the network and global
    generators are kept for it.
    """

    def __init__(self, loaded: Any = None) -> None:
        self._loaded, self.saved = loaded, None

    def load(self) -> Any:
        """Returns what was saved by a training that was broken off, None where this one begins."""
        return self._loaded

    def save(self, state: Any) -> None:
        """Notes the state at the end of an epoch: dicts, lists and tuples of tensors, arrays, numbers, texts, None.

        It is read when `on_epoch` is called next, so nothing need be copied; anything else in it is an error there.
        """
        self.saved = state


@dataclass(frozen=True, slots=True)
class LoopSnapshot:
    """A training by a loop between two epochs.

    identity: of the training. epoch: the last one done; step: about how many steps that were. network: the weights.
    draws: the global generators. state: the loop's own.
    """

    identity: str
    epoch: int
    step: int
    network: Mapping[str, Tensor]
    draws: Any
    state: Any

    def to_bytes(self) -> bytes:
        """Returns the snapshot as a file's content. Raises LoopError for a state that holds anything else."""
        tensors: dict[str, Tensor] = {}
        held = {"network": dict(self.network), "draws": self.draws, "state": self.state}
        header = {
            "format": FORMAT,
            "of": self.identity,
            "epoch": self.epoch,
            "step": self.step,
            "held": _plain(held, tensors, "state"),
        }
        return save(tensors, {HEADER: json.dumps(header)})

    @classmethod
    def from_bytes(cls, content: bytes) -> "LoopSnapshot":
        """Reads what `to_bytes` made. Raises SnapshotError for anything else."""
        try:
            length = int.from_bytes(content[:8], "little")
            header = loads(loads(content[8 : 8 + length])["__metadata__"][HEADER])
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']!r}")
            held = _restored(header["held"], load(content))
            return cls(
                str(header["of"]),
                int(header["epoch"]),
                int(header["step"]),
                dict(held["network"]),
                held["draws"],
                held["state"],
            )
        except (
            SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
        ) as error:  # fmt: skip
            raise SnapshotError(f"this is no snapshot of a loop's training: {error}") from None


def _plain(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """Returns a structure as JSON, its tensors under names in `tensors`. Each value has its kind beside it."""
    if isinstance(value, float) and not math.isfinite(value):
        return ["float", repr(value)]  # no number of JSON
    if isinstance(value, int) and value.bit_length() > 63:
        return ["int", str(value)]  # as numpy's generators have
    if value is None or isinstance(value, bool | int | float | str):
        return ["value", value]
    if isinstance(value, Tensor | np.ndarray):
        name = str(len(tensors))
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(value)
        tensors[name] = tensor.detach().cpu().clone().contiguous()
        return ["tensor" if isinstance(value, Tensor) else "array", name]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int):
                raise LoopError(
                    f"checkpoint.save: {where} has the key {key!r}; keys must be texts or whole numbers"
                )
        pairs = [
            [_plain(key, {}, where), _plain(v, tensors, f"{where}[{key!r}]")] for key, v in value.items()
        ]
        return ["dict", pairs]
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, [_plain(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)]]
    raise LoopError(
        f"checkpoint.save: {where} is a {type(value).__name__}; possible are dicts, lists and tuples of tensors, "
        "arrays, numbers, texts and None"
    )


def _restored(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    kind, value = plain
    if kind == "value":
        return value
    if kind in ("float", "int"):
        return float(value) if kind == "float" else int(value)
    if kind == "tensor":
        return tensors[value]
    if kind == "array":
        return tensors[value].numpy()
    if kind == "dict":
        return {_restored(key, {}): _restored(held, tensors) for key, held in value}
    if kind in ("list", "tuple"):
        found = [_restored(held, tensors) for held in value]
        return found if kind == "list" else tuple(found)
    raise ValueError(f"there is no kind {kind!r}")
