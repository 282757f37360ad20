"""First stage: many candidates, scored without training, or after a short one from their parents' weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prunefront.pipelines.config.sections import (
    GoalSection,
    QuantisationSection,
    ScoringSection,
    SearchSection,
    SpaceSection,
    TrainingSection,
)
from prunefront.pipelines.journal.layout import WEIGHTS
from prunefront.pipelines.prepare.feasibility import above_dense, check_costs
from prunefront.pipelines.prepare.network import Network, planned_by
from prunefront.pipelines.stages.forecast import Forecast, PredictingPool
from prunefront.pipelines.stages.scoring_loop import Screening
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
from prunefront.pipelines.workers.workers import Scoring, Workers
from prunefront.pruners.graph.pruning_plan import DENSE, PruningPlan, Scores
from prunefront.search.outcomes.front import ParetoFront, reference_point
from prunefront.search.outcomes.measurement import ACCURACY, Measurement, Outcome, quality_of
from prunefront.search.outcomes.stall import recent_gain, stalled
from prunefront.search.prediction.sensitivity import is_probe
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem


@dataclass(frozen=True, slots=True)
class FirstStageSections:
    """The settings of the first stage."""

    seed: int
    goal: GoalSection
    search: SearchSection
    scoring: ScoringSection
    space: SpaceSection
    quantisation: QuantisationSection
    training: TrainingSection


def warm_started(
    session: Session,
    study: FirstStageSections,
    network: Network,
    scores: Scores,
    task: Problem,
    earlier: Sequence[Earlier],
    signature: Signature,
) -> WarmStart:
    """Returns what earlier studies bring, from the journal where this one has begun already."""
    journal = session.journal
    if not journal.of("warm_start"):

        def realised(candidate: Candidate) -> str:
            return planned_by(study.space, study.quantisation, network, scores, candidate).key()

        found = warm_start(earlier, task.space, realised, task.objectives, signature, session.display.say)
        journal.append("warm_start", **to_event(found))
    return from_event(journal.of("warm_start")[-1])


class FirstStage:
    """Scores candidates until the budget is spent, the searcher has no new one, or the front no longer grows."""

    def __init__(
        self,
        session: Session,
        study: FirstStageSections,
        network: Network,
        scores: Scores,
        task: Problem,
        workers: Workers,
        predicting: Forecast | None,
        begin: WarmStart,
    ) -> None:
        """predicting: forecasts latency, where that is asked for. begin: what earlier studies bring."""
        self._session, self._study = session, study
        self._network, self._scores = network, scores
        self._workers, self._predicting, self._begin = workers, predicting, begin
        seeds = {c.key(): c for c in (*task.seeds[:1], *begin.seeds, *task.seeds[1:])}  # dense first
        self._task = replace(task, seeds=tuple(seeds.values()))
        self._front = ParetoFront(task.objectives, task.constraints)
        self._reference: dict[str, float] = {}
        self._volumes: list[float] = []
        self._done, self._before = 0, len(session.journal.of("told"))
        self._inheritance = None
        if study.scoring.train_images:
            self._inheritance = Inheritance(session.path / WEIGHTS, self._front, session.display.say)
        self._searcher = searchers[study.search.searcher](self._task, seed=study.seed, **study.search.options)
        self._screening = Screening(
            self._searcher, self._planned, session.journal, self._on_scored, self._inheritance
        )

    def run(self) -> Screening:
        """Scores, and returns everything that is known then; says what came to nothing."""
        session, screening = self._session, self._screening
        budget = self._study.search.candidates
        with session.display.stage("scoring", budget, self._before):
            known, predicting = self._begin.known, self._predicting
            screening.recall(known if predicting is None else predicting.known(known, self._planned))
            screening.replay()
            if screening.scored < budget and not session.journal.of("promoted"):
                self._score(budget)
        self._say_why_it_ended(budget)
        _say_unscored(session, screening)
        return screening

    def _score(self, budget: int) -> None:
        session = self._session
        pool = self._workers.pool(
            self._inheritance,
            lambda key, why: session.events.report("worker_lost", candidate=key, reason=why),
            session.display.say,
        )
        session.events.watched["workers_busy"] = lambda: pool.in_flight
        try:
            scoring: Scoring = pool if self._predicting is None else PredictingPool(pool, self._predicting)
            self._screening.run(scoring, budget, self._enough)
        finally:
            session.timing.busy["screen"] = pool.busy_seconds
            pool.close()
            if pool.lost:
                session.display.say(
                    f"worker processes that died: {pool.lost}; their candidates are tried once more"
                )

    def _planned(self, candidate: Candidate) -> PruningPlan:
        study = self._study
        aim = planned_by(study.space, study.quantisation, self._network, self._scores, candidate)
        if not is_probe(candidate):  # what one teaches is worth more than that it is within the bounds
            check_costs(aim, self._network.graph, self._task.constraints)
            if self._predicting is not None:
                self._predicting.check(aim)
        return aim

    def _on_scored(self, key: str, candidate: Candidate, outcome: Outcome) -> None:
        recalled = key in self._screening.recalled
        self._done += not recalled
        stage = "recalled" if recalled else "score"
        self._session.tracker.log(key, candidate_params(candidate), outcome, stage=stage)
        if isinstance(outcome, Measurement):
            self._front.add(key, outcome)
            if key == DENSE:
                self._know_dense(outcome)
        if self._reference:
            self._report_progress(recalled)

    def _know_dense(self, dense: Measurement) -> None:
        study = self._study
        self._reference = dict(reference_point(self._task.objectives, dense))
        if line := above_dense(
            study.goal.constraints,
            dense,
            study.training.epochs,
            quality_of(self._task.objectives) or ACCURACY,
        ):
            self._session.display.say(line)

    def _report_progress(self, recalled: bool) -> None:
        session, front, done = self._session, self._front, self._done
        volume = front.relative_hypervolume(self._reference)
        if not recalled:
            self._volumes.append(volume)
        session.tracker.log_progress(done, volume, len(front))
        if done >= max(self._before, 1):
            session.events.report("progress", scored=done, hypervolume=volume, front=len(front))
        if done > self._before and (figures := self._searcher.figures()):
            values = {f"searcher/{name}": value for name, value in figures.items()}
            session.tracker.log_values(values, step=done)
        session.display.update(done, f"front {len(front)}  hypervolume {volume:.3f}")

    def _enough(self) -> bool:
        section = self._study.search
        return section.patience > 0 and stalled(self._volumes, section.patience, section.min_gain)

    def _say_why_it_ended(self, budget: int) -> None:
        scored, say = self._screening.scored, self._session.display.say
        if scored >= budget:
            return
        if self._enough():
            patience = self._study.search.patience
            gain = recent_gain(self._volumes, patience)
            say(
                f"stopped after {scored} of {budget} candidates: the last {patience} raised the hypervolume by "
                f"{gain:.2%}"
            )
        else:
            say(f"the searcher found only {scored} different architectures")


def _say_unscored(session: Session, screening: Screening) -> None:
    """Says which proposals came to nothing, and how many cost nothing."""
    say = session.display.say
    if screening.duplicates:
        say(f"{screening.duplicates} proposals repeated an architecture and cost nothing")
    if screening.impossible:
        say(
            f"{len(screening.impossible)} proposals were impossible and cost nothing, the last one: "
            f"{screening.impossible[-1]}"
        )
    if screening.over_budget:
        say(
            f"{len(screening.over_budget)} proposals exceeded a bound and were refused at no cost, the last one: "
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
