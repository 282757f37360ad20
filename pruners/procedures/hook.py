"""What happens inside a training step, around the passes."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from prunefront.pruners.graph.channel_graph import ChannelGraph

UnitScores = Mapping[str, NDArray[np.float64]]
"""Group -> one score per unit that is still there, higher = keep."""


class Progress(Protocol):
    """What a hook sees of the run that it takes part in (`run.Run`).

    steps: mini-batches to spend in all, per_epoch of them in a pass over the data; step: how many were spent. kept:
    group -> the units that are still there, in the dense numbering.
    """

    model: nn.Module
    graph: ChannelGraph
    optimizer: Optimizer
    steps: int
    per_epoch: int
    step: int
    kept: dict[str, tuple[int, ...]]
    rng: np.random.Generator

    def wanted(self) -> dict[str, int]: ...

    def scores(self, names: str | Mapping[str, str] | None = None) -> UnitScores: ...

    def weakest(
        self, counts: Mapping[str, int], scores: UnitScores | None = None
    ) -> dict[str, tuple[int, ...]]: ...


class Hook:
    """What happens inside a step, in this order. A procedure overrides what it needs."""

    def install(self, run: Progress) -> None:
        """Before the forward pass: puts the weights that count (masked, say) in the place of the trained ones."""

    def restore(self, run: Progress) -> None:
        """After the backward pass: puts the trained weights back."""

    def gradients(self, run: Progress) -> bool:
        """Changes gradients, or learns from them. False: the optimiser does not step this time."""
        return True

    def stepped(self, run: Progress) -> None:
        """After the optimiser's step."""

    def finish(self, run: Progress) -> None:
        """After the last step: makes what the network computes with its own, for good."""
