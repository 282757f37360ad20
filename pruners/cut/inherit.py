"""Trained weights of a pruned network put back where they were cut from, so that another network can be cut from them.

Real et al. 2017 (1703.01041, section 3.4) call it weight inheritance: a child keeps what its parent learnt wherever
shapes agree. Here the positions are known, so that every single weight that the parent kept is handed on.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.cut.surgery import first_names, removed
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.plan import PruningPlan, inside, removed_blocks


def hands_on(plan: PruningPlan) -> bool:
    """Whether the weights of the plan's network lie at positions of the dense one: channels and blocks are cut only.

    Within layers, compact modules hold what is left in forms of their own, and short words are rounded.
    """
    return not plan.layers


def inherited(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """State of the dense shapes: the parent's value at every position that it kept, the dense network's elsewhere.

    model: the dense network; left as it is. graph: of it. plan: the parent's. weights: state dict of the parent's
    network, norm statistics included; moved to where the dense ones are. Raises PrunefrontError where `hands_on` is
    false, and for weights that are not finite or not those of the plan.
    """
    if not hands_on(plan):
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
    going = removed(graph, plan)
    made = {name: tensor.clone() for name, tensor in dense.items()}
    for name in left:
        axes = going.get(names[name], {})  # of a tensor under two names, the graph knows the first
        made[name] = _filled(
            name, made[name], [axes.get(d, []) for d in range(made[name].dim())], weights[name]
        )
    return made


def _filled(name: str, whole: Tensor, gone: list[list[int]], part: Tensor) -> Tensor:
    """`whole` with `part` at the positions that are not gone, by axis; *in place*, but for scalars."""
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
        raise PrunefrontError(f"{name!r} holds NaN or infinite values, from which nothing can be trained")
    part = part.to(whole.device)
    if not any(gone):
        return part.clone()
    whole[torch.meshgrid(*kept, indexing="ij")] = part
    return whole


def unfitted(plan: PruningPlan) -> PruningPlan:
    """The same cut, after which no weights are fitted to outputs of the network before it.

    Inherited weights are no one network's, so there is nothing to fit to.
    """
    return replace(
        plan, groups=tuple(replace(g, choice=replace(g.choice, criterion="none")) for g in plan.groups)
    )
