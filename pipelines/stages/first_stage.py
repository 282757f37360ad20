"""First stage: many candidates, scored without training, or after a short one from their parents' weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prunefront.pipelines.cluster.connect import Cluster
from prunefront.pipelines.cluster.patience import Patience
from prunefront.pipelines.journal.layout import WEIGHTS
from prunefront.pipelines.prepare.feasibility import above_dense, check_costs
from prunefront.pipelines.prepare.network import Network, planned_by
from prunefront.pipelines.stages.forecast import Forecast, PredictingPool
from prunefront.pipelines.stages.screening import Pool, Screening
from prunefront.pipelines.stages.session import Session
from prunefront.pipelines.stages.warm_start import (
    Earlier,
    Signature,
    WarmStart,
    from_event,
    to_event,
    warm_start,
)
from prunefront.pipelines.tracking.tracker import candidate_params
from prunefront.pipelines.workers.inheritance import Inheritance
from prunefront.pipelines.workers.pool import ScoringPool
from prunefront.pruners.graph.plan import DENSE, PruningPlan, Scores
from prunefront.search.outcomes.front import ParetoFront, reference_point
from prunefront.search.outcomes.measurement import Measurement, Outcome
from prunefront.search.outcomes.stall import recent_gain, stalled
from prunefront.search.prediction.sensitivity import is_probe
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem


def warm_started(
    session: Session,
    network: Network,
    scores: Scores,
    task: Problem,
    earlier: Sequence[Earlier],
    signature: Signature,
) -> WarmStart:
    """What earlier studies bring, by the journal where this one has begun already."""
    config, journal = session.config, session.journal
    if not config.search.warm_start:
        return WarmStart()
    if not journal.of("warm_start"):

        def realised(candidate: Candidate) -> str:
            return planned_by(config, network, scores, candidate).key()

        found = warm_start(earlier, task.space, realised, task.objectives, signature, session.display.say)
        journal.append("warm_start", **to_event(found))
    return from_event(journal.of("warm_start")[-1])


def screen(
    session: Session,
    network: Network,
    scores: Scores,
    task: Problem,
    bench_ref: Any,
    cluster: Cluster,
    predicting: Forecast | None,
    begin: WarmStart,
) -> Screening:
    """First stage: many candidates, scored without training, or after a short one from their parents' weights."""
    config, tracker = session.config, session.tracker
    front = ParetoFront(task.objectives, task.constraints)
    reference: dict[str, float] = {}
    volumes: list[float] = []
    done, earlier = 0, len(session.journal.of("told"))

    def planned(candidate: Candidate) -> PruningPlan:
        aim = planned_by(config, network, scores, candidate)
        if not is_probe(candidate):  # what one teaches is worth more than that it is within the bounds
            check_costs(aim, network.graph, task.constraints)
            if predicting is not None:
                predicting.check(aim)
        return aim

    def on_scored(key: str, candidate: Candidate, outcome: Outcome) -> None:
        nonlocal done
        done += key not in screening.recalled
        stage = "recalled" if key in screening.recalled else "score"
        tracker.log(key, candidate_params(candidate), outcome, stage=stage)
        if isinstance(outcome, Measurement):
            front.add(key, outcome)
            if key == DENSE:
                reference.update(reference_point(task.objectives, outcome))
                if line := above_dense(config.search.constraints, outcome, config.training.epochs):
                    session.display.say(line)
        if reference:
            volume = front.relative_hypervolume(reference)
            if key not in screening.recalled:
                volumes.append(volume)
            tracker.log_progress(done, volume, len(front))
            if done >= max(earlier, 1):
                session.events.tell("progress", scored=done, hypervolume=volume, front=len(front))
            if done > earlier and (figures := searcher.figures()):
                tracker.log_values({f"searcher/{name}": value for name, value in figures.items()}, step=done)
            session.display.update(done, f"front {len(front)}  hypervolume {volume:.3f}")

    patience = config.search.patience

    def enough() -> bool:
        return patience > 0 and stalled(volumes, patience, config.search.min_gain)

    seeds = {c.key(): c for c in (*task.seeds[:1], *begin.seeds, *task.seeds[1:])}  # the dense network first
    task = replace(task, seeds=tuple(seeds.values()))
    searcher = searchers[config.search.searcher](task, seed=config.seed, **config.search.options)
    inheritance = None
    if config.search.train_images:
        inheritance = Inheritance(config.path / WEIGHTS, front, session.display.say)
    screening = Screening(searcher, planned, session.journal, on_scored, inheritance)
    with session.display.stage("scoring", config.search.candidates, len(screening.journal.of("told"))):
        screening.recall(begin.known if predicting is None else predicting.known(begin.known, planned))
        screening.replay()
        if screening.scored < config.search.candidates and not session.journal.of("promoted"):
            pool = ScoringPool(
                bench_ref,
                cluster.workers,
                config.cluster,
                inheritance,
                on_lost=lambda key, why: session.events.tell("worker_lost", candidate=key, reason=why),
                patience=Patience(config.cluster, session.display.say),
            )
            session.events.watched["workers_busy"] = lambda: pool.in_flight
            try:
                scoring: Pool = pool if predicting is None else PredictingPool(pool, predicting)
                screening.run(scoring, config.search.candidates, enough)
            finally:
                session.timing.busy["screen"] = pool.busy_seconds
                pool.close()
                if pool.lost:
                    session.display.say(
                        f"worker processes that died: {pool.lost}; a candidate is handed out once more, then it failed"
                    )
    scored = screening.scored
    if scored < config.search.candidates and enough():
        gain = recent_gain(volumes, patience)
        session.display.say(
            f"stopped after {scored} of {config.search.candidates} candidates: the last {patience} raised the "
            f"hypervolume by {gain:.2%}"
        )
    elif scored < config.search.candidates:
        session.display.say(f"the searcher found only {scored} different architectures")
    _say_unscored(session, screening)
    return screening


def _say_unscored(session: Session, screening: Screening) -> None:
    """What proposals came to nothing, and how many cost nothing."""
    say = session.display.say
    if screening.duplicates:
        say(
            f"{screening.duplicates} proposals were architectures that had been asked before, and cost nothing"
        )
    if screening.impossible:
        say(
            f"{len(screening.impossible)} proposals asked for what cannot be had, the last one: "
            f"{screening.impossible[-1]}"
        )
    if screening.over_budget:
        say(
            f"{len(screening.over_budget)} proposals were refused before they cost anything, the last one: "
            f"{screening.over_budget[-1]}"
        )
    if failures := list(screening.failures.values()):
        say(
            f"{len(failures)} candidates failed, the last one with: {failures[-1].kind}: {failures[-1].reason}"
        )
    counts = {
        "duplicates_avoided": screening.duplicates,
        "over_budget": len(screening.over_budget),
        "impossible": len(screening.impossible),
        "failed": len(screening.failures),
    }
    session.tracker.log_values({name: float(count) for name, count in counts.items()})
