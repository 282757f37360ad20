"""Group-lasso training: whole filters are pulled to zero, then cut (Wen et al. 2016, 1608.03665)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.hook import Hook, Progress
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.procedures.schedules import check, check_strength
from prunefront.pruners.procedures.slices import groups_to_cut, producing_weights, slices_of


class GroupShrinkage(Hook):
    """The proximal step of strength · Σ_G √|G| ‖W_G‖₂ after each step; G: the weights that produce a unit.

    W_G ← W_G · max(0, 1 - lr · strength · √|G| / ‖W_G‖). Its zeros are exact, those of a subgradient are not.
    """

    def __init__(self, run: Run, strength: float) -> None:
        self.strength = strength
        self.groups = [slices_of(run, producing_weights(g, run.graph)) for g in groups_to_cut(run)]

    @torch.no_grad()
    def after_step(self, run: Progress) -> None:
        rate = float(run.optimizer.param_groups[0]["lr"])
        for members in self.groups:
            if not members:
                continue
            norm = torch.stack([m.total(m.tensor.square()) for m in members]).sum(0).sqrt()
            size = sum(m.size for m in members)
            factor = shrinkage(norm, rate * self.strength * size**0.5)
            for member in members:
                member.scale(factor)


def shrinkage(norm: Tensor, by: float) -> Tensor:
    """Returns the factor that reduces norms by a constant, down to zero."""
    return (1.0 - by / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_min(0.0)


@procedure(
    "group_lasso",
    choose="networks without norms: training itself empties filters before the cut",
    paper="Wen et al. 2016, 1608.03665",
)
def group_lasso(run: Run, sparse: float = 0.5, strength: float = 5e-4) -> Iterator[Phase]:
    """Trains with a group lasso on filters, cuts those of smallest norm to the goal's counts, trains on.

    L += strength · Σ_G √|G| ‖W_G‖₂ over the units of the groups that lose any, as a proximal step (own choice). sparse:
    share of the steps before the cut (own); both parts have the recipe's whole schedule. Criterion `l2` ranks the
    units; a group that no layer produces has its own. A batch norm undoes the scale of a filter before it, so the pull
    says less there.
    """
    check("group_lasso", shares={"sparse": sparse})
    check_strength("group_lasso", strength)
    yield Phase(int(run.steps_left * sparse), restart=True, hooks=(GroupShrinkage(run, strength),))
    run.cut(scores=run.scores(run.applicable("l2")))
    yield Phase(run.steps_left, restart=True)
