"""The controls that a study asks for: which of the front's networks get one, and how it is made."""

from collections.abc import Sequence

from prunefront.pipelines.stages.final import Trained
from prunefront.pipelines.workers.workbench import Job
from prunefront.pruners.controls import Subject, controls
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import DENSE, Scores
from prunefront.pruners.plan.cost import macs
from prunefront.pruners.plan.layer_counts import recount_layers
from prunefront.pruners.plan.multiples import RoundTo
from prunefront.search.space.candidate import Candidate


def spread(front: Sequence[Trained], count: int, graph: ChannelGraph) -> list[Trained]:
    """At most `count` of the pruned networks, evenly over the front in the order of their MACs."""
    pruned = [t for t in front if t.job.plan.key() != DENSE]
    pruned.sort(key=lambda t: (macs(graph, t.job.plan), t.name))
    if count >= len(pruned):
        return pruned
    # the middles of equal parts: one network is that in the middle, not the smallest
    return [pruned[(2 * i + 1) * len(pruned) // (2 * count)] for i in range(count)]


def control_job(
    name: str,
    subject: Trained,
    graph: ChannelGraph,
    scores: Scores,
    *,
    dense_epochs: int,
    round_to: RoundTo,
    seed: int,
) -> Job:
    """Returns the job that makes the control `name` of a network; the dense one was trained for `dense_epochs`.

    Raises PrunefrontError where there is none.
    """
    rival = controls[name](
        Subject(
            plan=subject.job.plan,
            graph=graph,
            scores=scores,
            epochs=subject.job.epochs,
            dense_epochs=dense_epochs,
            round_to=round_to,
            seed=seed,
        )
    )
    key = f"{name}-{subject.name}"
    aim = recount_layers(graph, rival.plan)  # layers hold what the rival's channels leave them
    choices = {g.name: g.choice for g in (*aim.groups, *aim.stacks) if g.achieved}
    choices |= {layer.name: layer.choice for layer in aim.layers}
    return Job(
        name=key,
        candidate=Candidate(choices, key),
        plan=aim,
        epochs=rival.epochs,
        start=rival.start,
        control=name,
        of=subject.name,
    )
