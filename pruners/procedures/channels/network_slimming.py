"""Network Slimming: train with an L1 penalty on the norms' scales, cut the small ones (Liu et al. 2017, 1708.06519)."""

from collections.abc import Iterator

import torch

from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.hook import Hook, Progress
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.procedures.schedules import check, check_strength
from prunefront.pruners.procedures.slices import norm_scales


class ScalePenalty(Hook):
    """Adds strength · sign(γ), a subgradient of strength · Σ|γ|, to the gradients of the groups' norm scales."""

    def __init__(self, run: Run, strength: float) -> None:
        """strength: loss per unit of γ. The penalty is added after the backward pass, as the authors do."""
        self.scales, self.strength = norm_scales(run), strength

    @torch.no_grad()
    def use_gradients(self, run: Progress) -> bool:
        for scale in self.scales:
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=self.strength)
        return True


@procedure(
    "network_slimming",
    choose="networks with batch norm, when there is time to train before the cut",
    paper="Liu et al. 2017, 1708.06519",
)
def network_slimming(run: Run, sparse: float = 0.5, strength: float = 1e-4) -> Iterator[Phase]:
    """Trains with an L1 penalty on the norms' scales, cuts the smallest to the goal's counts, trains on.

    sparse: share of the steps before the cut (own: the authors train 160 epochs for each); both parts have the recipe's
    whole schedule, as theirs. strength: 1e-4 for VGG, 1e-5 for ResNet and DenseNet in the authors' code. Criterion
    `bn_scale` ranks the units; a group without norm has its own. Own: counts are the goal's; the authors' one threshold
    for the network can delete a layer.
    """
    check("network_slimming", shares={"sparse": sparse})
    check_strength("network_slimming", strength)
    yield Phase(int(run.steps_left * sparse), restart=True, hooks=(ScalePenalty(run, strength),))
    run.cut(scores=run.scores(run.applicable("bn_scale")))
    yield Phase(run.steps_left, restart=True)
