"""Second stage: the promising candidates and the dense network, each fine-tuned, measured and published by a trial."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.manifest import artifact_uri
from prunefront.pipelines.cluster.connect import Cluster
from prunefront.pipelines.cluster.patience import Patience
from prunefront.pipelines.journal.journal import JournalError, write_json
from prunefront.pipelines.journal.layout import BOUNDS, CORRECTED_TABLE, TUNE
from prunefront.pipelines.prepare.network import Network, planned_by
from prunefront.pipelines.stages.controls import control_job, spread
from prunefront.pipelines.stages.final import Trained, chosen, standing
from prunefront.pipelines.stages.forecast import Forecast
from prunefront.pipelines.stages.rungs import event_of, keeps, metrics, rungs_of, told
from prunefront.pipelines.stages.screening import Screening
from prunefront.pipelines.stages.session import Session
from prunefront.pipelines.tracking.tracker import candidate_params
from prunefront.pipelines.workers.bench import Job
from prunefront.pipelines.workers.checkpoints import kept_in
from prunefront.pipelines.workers.failures import PASSING, REFUSED
from prunefront.pipelines.workers.scheduler import Reached
from prunefront.pipelines.workers.trials import COSTS, MEASURED_ON, RESUMED, Queue, Trials, finetune_all
from prunefront.pruners.graph.plan import DENSE, PruningPlan, Scores
from prunefront.search.outcomes.constraints import resolve, shortfall
from prunefront.search.outcomes.front import violation
from prunefront.search.outcomes.measurement import Constraint, Failure, Outcome, outcome_from_json
from prunefront.search.promotion.halving import Rungs
from prunefront.search.promotion.promotion import promote
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem


def finetune(
    session: Session,
    network: Network,
    scores: Scores,
    screening: Screening,
    task: Problem,
    bench_ref: Any,
    cluster: Cluster,
) -> list[Trained]:
    """Second stage: the promising ones and the dense network, fine-tuned, measured and published by Tune trials."""
    config, journal = session.config, session.journal
    if not journal.of("promoted"):
        bounds = task.constraints
        keys = promote(
            {k: m for k, m in screening.measured.items() if k != DENSE},
            config.training.candidates,
            cost="size_bytes" if min(config.space.bits) < 32 else "macs",
            chance=1.0 / network.splits.classes,
            constraints=bounds,
        )
        if bounds and not keys:
            _say_none_within(session, screening, bounds)
        journal.append("promoted", candidates=[screening.candidates[key].to_json() for key in keys])

    def planned(candidate: Candidate) -> PruningPlan:
        return planned_by(config, network, scores, candidate)

    nothing = planned(Candidate({}))
    jobs = [Job(DENSE, Candidate({}, DENSE), nothing, epochs=0)]
    if config.training.epochs > 0:
        # what further training alone gives: pruned networks are compared with it, too
        jobs.append(
            Job(f"{DENSE}-finetuned", Candidate({}, f"{DENSE}, fine-tuned"), nothing, config.training.epochs)
        )
    for data in journal.of("promoted")[-1]["candidates"]:
        candidate = Candidate.from_json(data)
        aim = planned(candidate)
        jobs.append(Job(aim.key(), candidate, aim, config.training.epochs, compared=True))
    compared = {job.name for job in jobs if job.compared}

    def rungs() -> Rungs:
        return rungs_of(config, task, screening.measured, journal.events, compared)

    return _make(session, jobs, bench_ref, cluster, stage="finetune", rungs=rungs)


def _say_none_within(session: Session, screening: Screening, bounds: Sequence[Constraint]) -> None:
    """That no scored candidate meets the bounds on exact costs, and which one is nearest."""
    scored = {key: m for key, m in screening.measured.items() if key != DENSE}
    if not scored or not session.config.training.candidates:
        return
    nearest = min(scored, key=lambda key: (violation(scored[key], bounds), key))
    if missed := shortfall(scored[nearest].values, bounds):
        session.display.say(
            f"none of the {len(scored)} scored candidates meets the bounds, so none is fine-tuned; nearest: {nearest} "
            f"with {missed}; give search.candidates more, or widen the bounds"
        )


def control(
    session: Session,
    network: Network,
    scores: Scores,
    front: Sequence[Trained],
    bench_ref: Any,
    cluster: Cluster,
) -> list[Trained]:
    """What the study file asks to compare some of the front's networks with, made as they were or from scratch."""
    config, journal = session.config, session.journal
    if not config.controls:
        return []
    if not journal.of("controlled"):
        names = [t.name for t in spread(front, config.controlled, network.graph)]
        journal.append("controlled", names=names)
    found = {t.name: t for t in front}
    names = journal.of("controlled")[-1]["names"]
    if unknown := [name for name in names if name not in found]:
        raise JournalError(
            f"the journal asks for controls of {unknown[0]!r}, which is not on the front: the file was changed from "
            "outside; restore it, or start the study afresh with --fresh"
        )
    subjects = [found[name] for name in names]
    jobs = [
        control_job(name, subject, network.graph, scores, config)
        for name in config.controls
        for subject in subjects
    ]
    return _make(session, jobs, bench_ref, cluster, stage="control")


def _make(
    session: Session,
    jobs: Sequence[Job],
    bench_ref: Any,
    cluster: Cluster,
    *,
    stage: str,
    rungs: Callable[[], Rungs] | None = None,
) -> list[Trained]:
    """Makes the networks that an earlier run did not, each in a Tune trial; returns all that reached the end.

    rungs: where the compared ones among them may be stopped, as the journal has it.
    """
    config, journal = session.config, session.journal
    named = {job.name: job for job in jobs}
    finished = {e["name"] for e in journal.of("trained") if e["name"] in named and _settled(e)}
    finished |= {e["name"] for e in journal.of("stopped") if e["name"] in named}
    widened: set[int] = set()
    busy = 0.0

    def record(event: Mapping[str, Any]) -> None:
        name, artifact = event["name"], event.get("artifact", "")
        stopped = {"stopped_after_epochs": event["epoch"]} if event["event"] == "stopped" else {}
        place = {MEASURED_ON: event[MEASURED_ON]["host"]} if MEASURED_ON in event else {}
        session.tracker.log(
            name,
            candidate_params(named[name].candidate) | stopped | place,
            outcome_from_json(event["outcome"]),
            artifact_uri(session.store.uri, artifact) if artifact else None,
            stage=stage,
            seconds=float(event.get("seconds", 0.0)),
        )

    for event in journal.events:  # what an earlier run could no longer record; the tracker takes each once
        settled = event["event"] == "stopped" or (event["event"] == "trained" and _settled(event))
        if settled and event["name"] in named:
            record(event)

    def on_rung(reached: Reached) -> None:
        nonlocal busy
        kind, event = event_of(reached)
        journal.append(kind, **event)
        keep = keeps(config.training)
        if reached.verdict.share > keep and reached.epoch not in widened:
            widened.add(reached.epoch)
            session.display.say(
                f"the order after {reached.epoch} epochs says too little of the end: {reached.verdict.share:.0%} go on "
                f"from there instead of {keep:.0%}"
            )
        if reached.verdict.go_on:
            return
        busy += reached.seconds
        record(journal.events[-1])
        finished.add(reached.name)
        kept.drop(reached.name)
        accuracy = reached.measurement["accuracy"]
        session.display.update(len(finished), f"stopped at epoch {reached.epoch}, accuracy {accuracy:.3f}")

    def on_trained(name: str, outcome: Outcome, result: dict[str, Any]) -> None:
        nonlocal busy
        seconds = float(result.get("busy_seconds", 0.0))
        busy += seconds
        artifact = str(result.get("artifact", ""))
        resumed = {RESUMED: result[RESUMED]} if RESUMED in result else {}
        place = {MEASURED_ON: json.loads(result[MEASURED_ON])} if MEASURED_ON in result else {}
        journal.append(
            "trained",
            name=name,
            outcome=outcome.to_json(),
            artifact=artifact.rpartition("/")[2],
            epochs=result.get("epochs", 0),
            seconds=round(seconds, 3),
            **place,
            **resumed,
            **{name: result[name] for name in COSTS if name in result},
        )
        record(journal.events[-1])
        if _settled(journal.events[-1]):  # else --resume goes on from what was kept
            kept.drop(name)
        if isinstance(outcome, Failure) and outcome.kind == REFUSED:
            raise PrunefrontError(
                f"networks cannot be published: {outcome.reason}; what was done is kept, mend that and go on with "
                "--resume"
            )
        finished.add(name)
        session.display.update(len(finished), _note(outcome))

    # Tune keeps every worker busy as long as there are networks left
    session.events.watched["workers_busy"] = lambda: min(cluster.workers, len(named.keys() - finished))
    label = {"finetune": "fine-tuning", "control": "controls"}[stage]
    with session.display.stage(label, len(named), len(finished)):
        left = Queue([job for name, job in named.items() if name not in finished])
        if len(left):
            unfinished = named.keys() - finished
            with kept_in(config.path, stage, unfinished, remote=cluster.remote) as kept:
                trials = Trials(
                    cluster.workers,
                    config.cluster,
                    config.path / TUNE,
                    stage,
                    rungs() if rungs else None,
                    kept,
                    Patience(config.cluster, session.display.say),
                )
                finetune_all(bench_ref, left, trials, on_trained, on_rung)
            if rungs:
                _say_rungs(session, rungs())
    session.timing.busy[stage] = busy
    if left_over := len(named.keys() - finished):
        raise PrunefrontError(
            f"Ray Tune ended with {left_over} of {len(named)} networks not trained; go on with --resume"
        )
    return _trained(session, named)


def _say_rungs(session: Session, rungs: Rungs) -> None:
    """What the rungs knew of the end, for whoever must decide how many candidates and epochs to pay for."""
    summaries = rungs.summary()
    for rung in summaries:
        session.display.say(told(rung, rungs.keep, session.config.search.train_images))
    if rungs.keep < 1.0 and not any(rung.level for rung in summaries):
        session.display.say(
            f"no candidate was stopped: none had lost all its channels after {rungs.levels[-1]} epochs, by procedure "
            f"{session.config.training.procedure!r}, and before that they cannot be compared"
        )
    for rung in summaries:
        session.tracker.log_values({f"rung/{k}": v for k, v in metrics(rung).items()}, step=rung.level)


def _settled(event: dict[str, Any]) -> bool:
    """Whether an outcome of the second stage stands. What failed by the machine or the store, and the dense network,
    without which there is no front, are tried again when a study is resumed."""
    outcome = outcome_from_json(event["outcome"])
    return not (isinstance(outcome, Failure) and (outcome.kind in PASSING or event["name"] == DENSE))


def latest_artifacts(events: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Of the networks that were published with test figures, by name: their newest ids."""
    return {event["name"]: event["artifact"] for event in events if event["event"] == "published"}


def _note(outcome: Outcome) -> str:
    if isinstance(outcome, Failure):
        return f"failed: {outcome.reason[:60]}"
    return f"accuracy {outcome['accuracy']:.3f}, {outcome['latency_ratio']:.2f} × dense"


def _trained(session: Session, jobs: Mapping[str, Job]) -> list[Trained]:
    """What the journal knows of these jobs. Raises PrunefrontError if the dense network itself failed."""
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
            f"{again} of them failed by the machine and not by themselves: --resume tries them again"
        )
    return trained


def need_dense(name: str, failure: Failure) -> None:
    if name == DENSE:
        raise PrunefrontError(
            f"the dense network itself could not be measured and published: {failure.reason}; nothing can be "
            "compared with it; mend that and go on with --resume"
        )


def compare_with_forecast(session: Session, predicting: Forecast, trained: Sequence[Trained]) -> None:
    """Says how far predictions were off the networks that were measured, and keeps the predictor that knows them."""
    config = session.config
    points = predicting.points(((t.job.plan, t.measurement) for t in trained), config.name)
    if not points:
        return
    corrected, error = predicting.corrected(points)
    session.display.say(f"latency, predicted against measured after training: {error}")
    session.tracker.log_values({f"latency_prediction_{k}": v for k, v in error.to_json().items()})
    write_json(config.path / CORRECTED_TABLE, corrected.table.to_json())


def choose(session: Session, trained: Sequence[Trained]) -> list[Trained]:
    """The front within the study's bounds, which are relative to the dense network as it was measured beside the
    others; how they are met is kept in a file."""
    bounds = session.config.search.constraints
    dense = next(t for t in trained if t.name == DENSE)
    limits = resolve(bounds, dense.measurement.values)
    if bounds:
        uri = session.store.uri
        found = standing(trained, bounds, limits, lambda artifact: artifact_uri(uri, artifact))
        write_json(session.config.path / BOUNDS, found)
    return chosen(trained, limits)
