"""What happens inside a training step, around the passes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunefront.pruners.procedures.run import Run


class Hook:
    """What happens inside a step, in this order. A procedure overrides what it needs."""

    def install(self, run: "Run") -> None:
        """Before the forward pass: puts the weights that count (masked, say) in the place of the trained ones."""

    def restore(self, run: "Run") -> None:
        """After the backward pass: puts the trained weights back."""

    def gradients(self, run: "Run") -> bool:
        """Changes gradients, or learns from them. False: the optimiser does not step this time."""
        return True

    def stepped(self, run: "Run") -> None:
        """After the optimiser's step."""

    def finish(self, run: "Run") -> None:
        """After the last step: makes what the network computes with its own, for good."""
