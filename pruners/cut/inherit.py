"""Trained weights of a pruned network at their old places in the dense one, so that others can be cut from them.

Real et al. 2017 (1703.01041, section 3.4) call it weight inheritance: a child keeps the weights of its parent wherever
shapes agree. Here the positions are known, so that every single weight of the parent is handed on.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.cut.surgery import first_names, removed_positions
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan, inside, removed_blocks


def can_hand_on(plan: PruningPlan) -> bool:
    """Returns whether every weight of the plan's network has a position in the dense one.

    That is so if only channels and blocks are cut. Compact modules store weights in other forms, and quantised weights
    are rounded.
    """
    return not plan.layers


def inherit(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns a state dict of dense shapes: the parent's value at every position that it has, else the dense network's.

    model: the dense network; it stays as it is. graph: its graph. plan: the parent's. weights: state dict of the
    parent's network, norm statistics included; it is moved to the device of the dense one. Raises PrunefrontError if
    `can_hand_on` is false, and for weights that are not finite or not those of the plan.
    """
    if not can_hand_on(plan):
        raise PrunefrontError(
            f"layer {plan.layers[0].name!r} was changed within, so its weights have no places in the dense network: "
            "start from the dense weights"
        )
    dense, names = model.state_dict(), first_names(model)
    gone = removed_blocks(graph, plan.stacks)
    left = [name for name in dense if not inside(name, gone)]
    if unfit := sorted(set(left) ^ set(weights)):
        raise PrunefrontError(
            f"{unfit[0]!r} is {'not ' if unfit[0] in left else ''}among the weights, which is not as the plan has it: "
            "give the weights that its own network was trained to"
        )
    going = removed_positions(graph, plan)
    made = {name: tensor.clone() for name, tensor in dense.items()}
    for name in left:
        axes = going.get(names[name], {})  # of a tensor under two names, the graph knows the first
        made[name] = _filled(
            name, made[name], [axes.get(d, []) for d in range(made[name].dim())], weights[name]
        )
    return made


def _filled(name: str, whole: Tensor, gone: list[list[int]], part: Tensor) -> Tensor:
    """Writes `part` into `whole` at the positions that are left. gone: dropped positions, by axis.

    Returns the result, which is `whole`, or a copy of `part` if nothing is gone.
    """
    kept = [
        torch.tensor(sorted(set(range(size)) - set(away)), dtype=torch.long, device=whole.device)
        for size, away in zip(whole.shape, gone, strict=True)
    ]
    if tuple(part.shape) != tuple(len(axis) for axis in kept) or part.dtype != whole.dtype:
        raise PrunefrontError(
            f"{name!r} is {part.dtype} of shape {tuple(part.shape)} where the plan leaves {whole.dtype} of shape "
            f"{tuple(len(axis) for axis in kept)}: give the weights that its own network was trained to"
        )
    if not torch.isfinite(part).all():
        raise PrunefrontError(f"{name!r} holds NaN or infinite values, so training cannot start from it")
    part = part.to(whole.device)
    if not any(gone):
        return part.clone()
    whole[torch.meshgrid(*kept, indexing="ij")] = part
    return whole
