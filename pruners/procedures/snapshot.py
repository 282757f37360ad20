"""Snapshot of a training run between two epochs, to go on from: safetensors with a JSON header, never a pickle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from prunefront.pruners.procedures.run import Kept, Run, SnapshotError
from prunefront.strict_json import loads
from prunefront.text import first_line

FORMAT = "prunefront training 1"
GENERATOR_BITS = 129
"""Bits of numpy's generators, which count without a sign in 128."""
HEADER = "training"
NETWORK, OPTIMIZER = "network/", "optimizer/"


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over the epoch that has just ended. loss: summed over images. seconds: in steps."""

    loss: float = 0.0
    images: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of a run after `step` steps, at the end of an epoch.

    identity: the run's. cuts: the units that each call of `run.cut` left, in order. tensors: network and optimiser.
    rng: state of the run's generator. stream: position in the batches to go on from, as JSON.
    """

    identity: str
    step: int
    sums: Sums
    cuts: tuple[Kept, ...]
    tensors: Mapping[str, Tensor]
    rng: Mapping[str, Any]
    stream: Any

    def to_bytes(self) -> bytes:
        header = {
            "format": FORMAT,
            "of": self.identity,
            "step": self.step,
            "sums": [self.sums.loss, self.sums.images, self.sums.seconds],
            "cuts": [{group: list(units) for group, units in cut.items()} for cut in self.cuts],
            "rng": self.rng,
            "stream": self.stream,
        }
        return save(dict(self.tensors), {HEADER: json.dumps(header)})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Snapshot":
        """Reads what `to_bytes` made. Raises SnapshotError for anything else."""
        try:
            length = int.from_bytes(content[:8], "little")
            header = loads(
                loads(content[8 : 8 + length])["__metadata__"][HEADER], integer_bits=GENERATOR_BITS
            )
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']!r}")
            loss, images, seconds = header["sums"]
            cuts = ({str(g): tuple(map(int, units)) for g, units in cut.items()} for cut in header["cuts"])
            return cls(
                str(header["of"]),
                int(header["step"]),
                Sums(float(loss), int(images), float(seconds)),
                tuple(cuts),
                load(content),
                dict(header["rng"]),
                header["stream"],
            )
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise SnapshotError(f"this is no snapshot of a training run: {error}") from None


def take_snapshot(run: Run, sums: Sums, stream: Any) -> Snapshot:
    """Returns a snapshot of the run between two epochs. Raises ValueError where it cannot be resumed."""
    if not run.replayable:
        raise ValueError(
            "layers were made compact on trained weights, and a repetition would choose other units"
        )
    tensors = {f"{NETWORK}{name}": tensor for name, tensor in run.model.state_dict().items()}
    for name, parameter in run.model.named_parameters():
        for key, value in run.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{key}/{name}"] = value
            elif value is not None:
                raise ValueError(f"the optimiser's {key!r} of {name!r} is no tensor")
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return Snapshot(
        run.identity, run.step, sums, tuple(run.cuts), plain, dict(run.rng.bit_generator.state), stream
    )


@torch.no_grad()
def restore_values(run: Run, snapshot: Snapshot) -> None:
    """Gives a run whose cuts were replayed the snapshot's values. Raises SnapshotError for another network's."""
    try:
        held = snapshot.tensors
        network = {n.removeprefix(NETWORK): t for n, t in held.items() if n.startswith(NETWORK)}
        run.model.load_state_dict(network)
        run.optimizer.state.clear()
        for name, parameter in run.model.named_parameters():
            state = {
                key.removeprefix(OPTIMIZER).removesuffix(f"/{name}"): value
                for key, value in held.items()
                if key.startswith(OPTIMIZER) and key.endswith(f"/{name}")
            }
            if state:
                run.optimizer.state[parameter] = {
                    key: torch.empty_like(parameter).copy_(value)
                    if value.shape == parameter.shape
                    else value.clone()
                    for key, value in state.items()
                }
        run.rng.bit_generator.state = dict(snapshot.rng)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"the snapshot is of another network: {first_line(error)}") from None
