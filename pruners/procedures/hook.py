"""Hooks that act inside a training step, around its passes."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from prunefront.pruners.graph.channel_graph import ChannelGraph

UnitScores = Mapping[str, NDArray[np.float64]]
"""Map from group to one score per unit that is still there, higher = keep."""


class Progress(Protocol):
    """Part of a run (`run.Run`) that a hook sees.

    steps: mini-batches to spend in all, per_epoch of them in a pass over the data. step: the number already spent.
    kept: group -> the units that are still there, in the dense numbering.
    """

    model: nn.Module
    graph: ChannelGraph
    optimizer: Optimizer
    steps: int
    per_epoch: int
    step: int
    kept: dict[str, tuple[int, ...]]
    rng: np.random.Generator

    def goal_counts(self) -> dict[str, int]: ...

    def scores(self, names: str | Mapping[str, str] | None = None) -> UnitScores: ...

    def weakest(
        self, counts: Mapping[str, int], scores: UnitScores | None = None
    ) -> dict[str, tuple[int, ...]]: ...


class Hook:
    """Actions inside a step, called in this order. A procedure overrides what it needs."""

    def install(self, run: Progress) -> None:
        """Before the forward pass: puts the weights to compute with (masked, say) in the place of the trained ones."""

    def restore(self, run: Progress) -> None:
        """After the backward pass: puts the trained weights back."""

    def use_gradients(self, run: Progress) -> bool:
        """Changes gradients, or learns from them. Returns False to skip the optimiser's step this time."""
        return True

    def after_step(self, run: Progress) -> None:
        """After the optimiser's step."""

    def finish(self, run: Progress) -> None:
        """After the last step: makes the weights that the network computes with its own, for good."""
