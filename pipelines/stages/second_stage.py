"""Second stage: the promising candidates and the dense network, each fine-tuned, measured and published by a trial."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunefront.choice import GroupChoice
from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.manifest import artifact_uri
from prunefront.pipelines.config.sections import (
    ControlsSection,
    DenseSection,
    QuantisationSection,
    ScoringSection,
    SpaceSection,
    TrainingSection,
)
from prunefront.pipelines.journal.journal import JournalError, write_json
from prunefront.pipelines.journal.layout import BOUNDS, CORRECTED_TABLE
from prunefront.pipelines.journal.metrics import quality_in
from prunefront.pipelines.prepare.network import Network, planned_by
from prunefront.pipelines.stages.controls import control_job, spread
from prunefront.pipelines.stages.final import Trained, chosen, standing
from prunefront.pipelines.stages.forecast import Forecast
from prunefront.pipelines.stages.rungs import event_of, keeps, metrics, rung_line, rungs_of
from prunefront.pipelines.stages.scoring_loop import Screening
from prunefront.pipelines.stages.session import Session
from prunefront.pipelines.tracking.tracker import candidate_params
from prunefront.pipelines.workers.failures import PASSING, REFUSED
from prunefront.pipelines.workers.rung_results import Reached
from prunefront.pipelines.workers.trial import COSTS, MEASURED_ON, RESUMED, Checkpoints
from prunefront.pipelines.workers.workbench import Job
from prunefront.pipelines.workers.workers import Training, Workers
from prunefront.pruners.graph.pruning_plan import DENSE, FLOAT_BITS, PruningPlan, Scores
from prunefront.search.outcomes.constraints import Bound, describe_violations, resolve
from prunefront.search.outcomes.front import violation
from prunefront.search.outcomes.measurement import (
    Constraint,
    Failure,
    Measurement,
    Outcome,
    metrics_in,
    outcome_from_json,
)
from prunefront.search.promotion.choose_for_training import promote
from prunefront.search.promotion.halving import Rungs
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem
from prunefront.strict_json import loads


@dataclass(frozen=True, slots=True)
class SecondStageSections:
    """The settings of the second stage."""

    seed: int
    training: TrainingSection
    scoring: ScoringSection
    space: SpaceSection
    quantisation: QuantisationSection
    controls: ControlsSection
    dense: DenseSection


def finetune(
    session: Session,
    study: SecondStageSections,
    network: Network,
    scores: Scores,
    screening: Screening,
    task: Problem,
    workers: Workers,
) -> list[Trained]:
    """Second stage: fine-tunes, measures and publishes the promising candidates and the dense network."""
    journal = session.journal
    if not journal.of("promoted"):
        bounds = task.constraints
        keys = promote(
            {k: m for k, m in screening.measured.items() if k != DENSE},
            study.training.candidates,
            cost="size_bytes" if min(study.quantisation.bits) < 32 else "macs",
            chance=network.chance,
            metric=network.task.quality,
            constraints=bounds,
        )
        if bounds and not keys and study.training.candidates:
            _say_none_within(session, screening, bounds)
        journal.append("promoted", candidates=[screening.candidates[key].to_json() for key in keys])

    def planned(candidate: Candidate) -> PruningPlan:
        return planned_by(study.space, study.quantisation, network, scores, candidate)

    nothing = planned(Candidate({}))
    jobs = [Job(DENSE, Candidate({}, DENSE), nothing, epochs=0)]
    if study.training.epochs > 0:
        # what further training alone gives: pruned networks are compared with it, too
        jobs.append(
            Job(f"{DENSE}-finetuned", Candidate({}, f"{DENSE}, fine-tuned"), nothing, study.training.epochs)
        )
    for data in journal.of("promoted")[-1]["candidates"]:
        candidate = Candidate.from_json(data)
        aim = planned(candidate)
        jobs.append(Job(aim.key(), candidate, aim, study.training.epochs, compared=True))
    compared = {job.name for job in jobs if job.compared}

    def rungs() -> Rungs:
        return rungs_of(study.training, task, screening.measured, journal.events, compared, seed=study.seed)

    return Making(session, study, jobs, workers, stage="finetune", rungs=rungs).run()


def _say_none_within(session: Session, screening: Screening, bounds: Sequence[Constraint]) -> None:
    """Says that no scored candidate meets the bounds on exact costs, and which one is nearest."""
    scored = {key: m for key, m in screening.measured.items() if key != DENSE}
    if not scored:
        return
    nearest = min(scored, key=lambda key: (violation(scored[key], bounds), key))
    if missed := describe_violations(scored[nearest].values, bounds):
        session.display.say(
            f"none of the {len(scored)} scored candidates meets the bounds, so none is fine-tuned; nearest: {nearest} "
            f"with {missed}; give search.candidates more, or widen the bounds"
        )


def control(
    session: Session,
    study: SecondStageSections,
    network: Network,
    scores: Scores,
    front: Sequence[Trained],
    workers: Workers,
) -> list[Trained]:
    """Makes the controls that the study file asks for, of some of the front's networks."""
    journal = session.journal
    if not study.controls.methods:
        return []
    if not journal.of("controlled"):
        names = [t.name for t in spread(front, study.controls.networks, network.graph)]
        journal.append("controlled", names=names)
    found = {t.name: t for t in front}
    names = journal.of("controlled")[-1]["names"]
    if unknown := [name for name in names if name not in found]:
        raise JournalError(
            f"the journal asks for controls of {unknown[0]!r}, which is not on the front: the file was changed from "
            "outside; restore it, or start again with --fresh"
        )
    subjects = [found[name] for name in names]
    jobs = [
        control_job(
            name,
            subject,
            network.graph,
            scores,
            dense_epochs=study.dense.epochs,
            round_to=study.space.round_to,
            seed=study.seed,
        )
        for name in study.controls.methods
        for subject in subjects
    ]
    return Making(session, study, jobs, workers, stage="control").run()


LABELS = {"finetune": "fine-tuning", "control": "controls"}
"""Stage -> what a person reads while it runs."""


class Making:
    """Makes the networks of a stage that an earlier run did not make, and records each as it is finished."""

    def __init__(
        self,
        session: Session,
        study: SecondStageSections,
        jobs: Sequence[Job],
        workers: Workers,
        *,
        stage: str,
        rungs: Callable[[], Rungs] | None = None,
    ) -> None:
        """rungs: returns where the compared ones among the networks may be stopped, as the journal has it."""
        self._session, self._study, self._workers = session, study, workers
        self._stage, self._rungs = stage, rungs
        self._jobs = {job.name: job for job in jobs}
        journal = session.journal
        self._finished = {e["name"] for e in journal.of("trained") if e["name"] in self._jobs and _settled(e)}
        self._finished |= {e["name"] for e in journal.of("stopped") if e["name"] in self._jobs}
        self._widened: set[int] = set()
        self._busy = 0.0
        self._checkpoints: Checkpoints | None = None

    def run(self) -> list[Trained]:
        """Returns the networks that reached the end, of this run and of earlier ones."""
        session, jobs = self._session, self._jobs
        for event in (
            session.journal.events
        ):  # what an earlier run could no longer record; the tracker takes each once
            settled = event["event"] == "stopped" or (event["event"] == "trained" and _settled(event))
            if settled and event["name"] in jobs:
                self._record(event)
        # workers are busy as long as there are networks left
        session.events.watched["workers_busy"] = lambda: min(
            self._workers.count, len(jobs.keys() - self._finished)
        )
        with session.display.stage(LABELS[self._stage], len(jobs), len(self._finished)):
            if left := [job for name, job in jobs.items() if name not in self._finished]:
                self._train(left)
        session.timing.busy[self._stage] = self._busy
        if left_over := len(jobs.keys() - self._finished):
            raise PrunefrontError(
                f"training ended with {left_over} of {len(jobs)} networks not trained; continue with --resume"
            )
        return _trained(session, jobs)

    def _train(self, jobs: Sequence[Job]) -> None:
        session = self._session
        names = [job.name for job in jobs]
        with self._workers.checkpoints(session.path, self._stage, names) as checkpoints:
            self._checkpoints = checkpoints
            training = Training(
                self._stage, jobs, session.path, checkpoints, self._rungs() if self._rungs else None
            )
            self._workers.train(training, self._on_trained, self._on_rung, session.display.say)
        if self._rungs:
            _say_rungs(session, self._study, self._rungs())

    def _record(self, event: Mapping[str, Any]) -> None:
        name, artifact = event["name"], event.get("artifact", "")
        stopped = {"stopped_after_epochs": event["epoch"]} if event["event"] == "stopped" else {}
        place = {MEASURED_ON: event[MEASURED_ON]["host"]} if MEASURED_ON in event else {}
        self._session.tracker.log(
            name,
            candidate_params(self._jobs[name].candidate) | stopped | place,
            outcome_from_json(event["outcome"]),
            artifact_uri(self._session.store.uri, artifact) if artifact else None,
            stage=self._stage,
            seconds=float(event.get("seconds", 0.0)),
        )

    def _on_rung(self, reached: Reached) -> None:
        session = self._session
        kind, event = event_of(reached)
        session.journal.append(kind, **event)
        keep = keeps(self._study.training)
        if reached.verdict.share > keep and reached.epoch not in self._widened:
            self._widened.add(reached.epoch)
            session.display.say(
                f"the order after {reached.epoch} epochs predicts the final order too poorly: "
                f"{reached.verdict.share:.0%} continue from there instead of {keep:.0%}"
            )
        if reached.verdict.go_on:
            return
        self._busy += reached.seconds
        self._record(session.journal.events[-1])
        self._finish(reached.name)
        session.display.update(
            len(self._finished), f"stopped at epoch {reached.epoch}, {_told(reached.measurement)}"
        )

    def _on_trained(self, name: str, outcome: Outcome, result: dict[str, Any]) -> None:
        session = self._session
        seconds = float(result.get("busy_seconds", 0.0))
        self._busy += seconds
        resumed = {RESUMED: result[RESUMED]} if RESUMED in result else {}
        place = {MEASURED_ON: loads(result[MEASURED_ON])} if MEASURED_ON in result else {}
        session.journal.append(
            "trained",
            name=name,
            outcome=outcome.to_json(),
            artifact=str(result.get("artifact", "")).rpartition("/")[2],
            epochs=result.get("epochs", 0),
            seconds=round(seconds, 3),
            parts=parts_of(self._jobs[name].plan),
            **place,
            **resumed,
            **{name: result[name] for name in COSTS if name in result},
        )
        self._record(session.journal.events[-1])
        self._finish(name, keep=not _settled(session.journal.events[-1]))
        if isinstance(outcome, Failure) and outcome.kind == REFUSED:
            raise PrunefrontError(
                f"networks cannot be published: {outcome.reason}; finished work is kept, correct that and continue "
                "with --resume"
            )
        session.display.update(len(self._finished), _note(outcome))

    def _finish(self, name: str, keep: bool = False) -> None:
        """Counts a network as done. keep: its checkpoint stays, as --resume continues from there."""
        self._finished.add(name)
        if self._checkpoints is not None and not keep:
            self._checkpoints.drop(name)


def _say_rungs(session: Session, study: SecondStageSections, rungs: Rungs) -> None:
    """Says what the rungs knew of the end, for whoever decides how many candidates and epochs to pay for."""
    summaries = rungs.summary()
    for rung in summaries:
        session.display.say(rung_line(rung, rungs.keep, study.scoring.train_images))
    if rungs.keep < 1.0 and not any(rung.level for rung in summaries):
        session.display.say(
            f"no candidate was stopped: none had lost all its channels after {rungs.levels[-1]} epochs, by procedure "
            f"{study.training.procedure!r}, and before that they cannot be compared"
        )
    for rung in summaries:
        session.tracker.log_values({f"rung/{k}": v for k, v in metrics(rung).items()}, step=rung.level)


def _settled(event: dict[str, Any]) -> bool:
    """Tells whether an outcome of the second stage stands.

    A resumed study tries again what failed by the machine or the store, and the dense network, without which there is
    no front.
    """
    outcome = outcome_from_json(event["outcome"])
    return not (isinstance(outcome, Failure) and (outcome.kind in PASSING or event["name"] == DENSE))


def parts_of(plan: PruningPlan) -> list[dict[str, Any]]:
    """Returns what a plan makes of each group, stack and layer, as the journal keeps it; see `event_fields.Part`."""

    def part(name: str, choice: GroupChoice, dropped: float, **more: int) -> dict[str, Any]:
        chosen = {"criterion": choice.criterion, "granularity": choice.granularity} if dropped else {}
        bits = {"bits": choice.bits} if choice.bits < FLOAT_BITS else {}
        return {"name": name, "dropped": round(dropped, 6), **chosen, **bits, **more}

    return [
        part(g.name, g.choice, g.achieved, units=g.units, kept=len(g.kept))
        for g in (*plan.groups, *plan.stacks)
    ] + [part(layer.name, layer.choice, layer.achieved) for layer in plan.layers]


def latest_artifacts(events: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the newest artifact ids of networks that were published with test figures, by name."""
    return {event["name"]: event["artifact"] for event in events if event["event"] == "published"}


def _note(outcome: Outcome) -> str:
    if isinstance(outcome, Failure):
        return f"failed: {outcome.reason[:60]}"
    return f"{_told(outcome)}, {outcome['latency_ratio']:.2f} × dense"


def _told(measurement: Measurement) -> str:
    """Returns the task's metrics in a few words."""
    return ", ".join(f"{name} {measurement[name]:.3f}" for name in metrics_in(measurement.values))


def _trained(session: Session, jobs: Mapping[str, Job]) -> list[Trained]:
    """Returns what the journal knows of these jobs. Raises PrunefrontError if the dense network itself failed."""
    trained, failures = [], []
    latest = {event["name"]: event for event in session.journal.of("trained")}
    published = latest_artifacts(session.journal.events)
    stopped = {event["name"] for event in session.journal.of("stopped")}
    for name, job in jobs.items():
        if name in stopped:
            continue
        event = latest[name]
        outcome = outcome_from_json(event["outcome"])
        if isinstance(outcome, Failure):
            failures.append((name, outcome))
            continue
        trained.append(Trained(job, outcome, published.get(name, event["artifact"]), event["epochs"]))
    for name, failure in failures:
        session.display.say(f"{name} failed in training: {failure.kind}: {failure.reason}")
        need_dense(name, failure)
    if again := sum(failure.kind in PASSING for _, failure in failures):
        session.display.say(
            f"{again} of these failures were caused by the machine: --resume tries them again"
        )
    return trained


def need_dense(name: str, failure: Failure) -> None:
    if name == DENSE:
        raise PrunefrontError(
            f"the dense network itself could not be measured and published: {failure.reason}; nothing can be "
            "compared with it; correct that and continue with --resume"
        )


def compare_with_forecast(session: Session, predicting: Forecast, trained: Sequence[Trained]) -> None:
    """Says how far predictions were off the networks that were measured, and keeps the predictor that knows them."""
    points = predicting.points(((t.job.plan, t.measurement) for t in trained), session.name)
    if not points:
        return
    corrected, error = predicting.corrected(points)
    session.display.say(f"latency, predicted against measured after training: {error}")
    session.tracker.log_values({f"latency_prediction_{k}": v for k, v in error.to_json().items()})
    write_json(session.path / CORRECTED_TABLE, corrected.table.to_json())


def choose(session: Session, bounds: Sequence[Bound], trained: Sequence[Trained]) -> list[Trained]:
    """The front within the study's bounds, which are relative to the dense network as it was measured beside the
    others; how they are met is kept in a file."""
    dense = next(t for t in trained if t.name == DENSE)
    limits = resolve(bounds, dense.measurement.values)
    if bounds:
        uri = session.store.uri
        found = standing(trained, bounds, limits, lambda artifact: artifact_uri(uri, artifact))
        write_json(session.path / BOUNDS, found)
    return chosen(trained, limits, quality_in(session.journal.events))
