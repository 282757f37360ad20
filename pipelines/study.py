"""One study from its file to its front: prepare, screen, fine-tune, report. Everything is wired here."""

import json
import math
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.tune import TuneError

from pipelines.artifacts import FRONT, ArtifactStore, locate, open_store, put_json
from pipelines.cluster import Cluster, connected, named
from pipelines.config import StudyConfig
from pipelines.controls import control_job, spread
from pipelines.failures import PASSING
from pipelines.feasibility import above_dense, check_costs
from pipelines.final import Trained, chosen, report, standing
from pipelines.forecast import CORRECTED, Forecast, PredictingPool, forecast, steered
from pipelines.gather import gather
from pipelines.inheritance import WEIGHTS, Inheritance
from pipelines.journal import Journal, lock, write_json
from pipelines.latency_table import TABLE
from pipelines.pool import ScoringPool
from pipelines.prepare import (
    Gather,
    Network,
    check_names,
    dense_network,
    fingerprint,
    know,
    make_bench,
    unchanged,
)
from pipelines.problem import problem
from pipelines.progress import Display
from pipelines.report import FrontRow, write_html, write_png
from pipelines.rungs import event_of, keeps, metrics, rungs_of, told
from pipelines.scheduler import Reached
from pipelines.screen import Pool, Screening
from pipelines.studies import BOUNDS, bounds_kept
from pipelines.tracking import MlflowTracker, Status, Tracker, candidate_params
from pipelines.tune import Queue, Trials, finetune_all
from pipelines.warm_start import (
    Earlier,
    Signature,
    WarmStart,
    check_network,
    conditions,
    from_event,
    network_digest,
    publish,
    read,
    to_event,
    warm_start,
)
from pipelines.workbench import Job, Workbench
from pruners.cost import cost
from pruners.errors import PrunefrontError
from pruners.graph import ChannelGraph
from pruners.plan import DENSE, PruningPlan, Scores, plan
from pruners.statistics import Batch, Statistics
from search.candidate import Candidate
from search.constraints import resolve, shortfall
from search.front import ParetoFront, reference_point, violation
from search.halving import Rungs
from search.measurement import Constraint, Failure, Measurement, Outcome, outcome_from_json
from search.promotion import promote
from search.searchers import searchers
from search.sensitivity import is_probe
from search.space import Problem
from search.stall import recent_gain, stalled

OURS = (
    "journal.jsonl",  # first: without it, nothing that is left counts
    "study.json",
    "prepared",
    WEIGHTS,
    "tune",
    "artifacts",
    FRONT,
    BOUNDS,
    "front.html",
    "front.png",
    "timing.json",
    CORRECTED,
)
"""What a study keeps in its folder, beside the lock; nothing else there is ever deleted."""

NETWORK_KEYS = ("model.", "data.", "dense.", "seed", "space.frozen", "training.weight_decay")
"""What the dense network and its channel graph follow from."""

NETWORK_FILES = ("dense.safetensors", "initial.safetensors", "dense.onnx", "data.json", "graph.json")
"""Where they are kept: hours of training are not repeated because a criterion was misspelt."""


@dataclass
class Timing:
    """Where a run's wall time went. seconds: per stage. busy: what workers spent on candidates, all together."""

    seconds: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    workers: int = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Session:
    """What the stages of one run share and write to."""

    config: StudyConfig
    display: Display
    journal: Journal
    tracker: Tracker
    store: ArtifactStore
    timing: Timing


def run(
    config: StudyConfig,
    *,
    display: Display,
    address: str | None = None,
    resume: bool = False,
    fresh: bool = False,
) -> list[FrontRow]:
    """Runs a study to its end and returns its front, fastest first; the dense network is always among the rows.

    address: of a Ray cluster; None = this machine. resume: go on where the study stopped. fresh: delete what an
    earlier run left. Raises PrunefrontError for everything that a person can mend.
    """
    if resume and fresh:
        raise PrunefrontError(
            "--resume goes on with what is there and --fresh deletes it; give one of the two"
        )
    check_names(config)
    with lock(config.path):
        store = open_store(config.artifact_uri, config.artifacts.endpoint_url)
        store.probe()  # before anything of an earlier run is deleted
        warm = _read_earlier(config) if fresh else None  # also before: it may be what is deleted here
        _open_folder(config, resume=resume, fresh=fresh)
        with Journal(config.path / "journal.jsonl") as journal:
            tracker = MlflowTracker(config.tracking_uri, config.tracking.experiment, config.folder)
            earlier = journal.of("tracking")
            run_id = tracker.start(config.to_json(), resume_run_id=earlier[-1]["run"] if earlier else None)
            if not earlier:
                journal.append("tracking", run=run_id)
            session = Session(config, display, journal, tracker, store, Timing())
            status: Status = "FAILED"
            try:
                rows = _stages(session, address, warm)
                status = "FINISHED"
                return rows
            except (KeyboardInterrupt, SystemExit):  # Ray turns SIGTERM into the second
                status = "KILLED"
                raise
            except (RayError, TuneError) as error:
                cause = error.cause if isinstance(error, RayTaskError) else error
                line = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
                raise PrunefrontError(
                    f"Ray failed: {line}; what was done is kept, go on with --resume"
                ) from error
            finally:
                for error in tracker.finish(status):
                    display.say(f"not recorded in MLflow: {error}")


def _open_folder(config: StudyConfig, *, resume: bool, fresh: bool) -> None:
    """Makes the study's folder ready: as an earlier run left it to go on, else empty of what is ours, but for the dense
    network of a run that had not begun to search.

    Raises PrunefrontError if an earlier run would be overwritten, cannot be gone on with, or differs.
    """
    folder, kept = config.path, config.path / "study.json"
    names = (path.name.removesuffix(".new") for path in folder.iterdir())  # `write_json` may have been killed
    foreign = sorted(name for name in names if name not in (*OURS, TABLE, "lock"))
    if foreign and not kept.exists():
        raise PrunefrontError(
            f"{folder} holds {', '.join(foreign[:3])} and no study; give the study another `name` or `folder`"
        )
    different, prepared = [], False
    if not fresh:
        with Journal(folder / "journal.jsonl") as journal:
            begun = bool(journal.of("asked"))
        prepared = (folder / "prepared" / "graph.json").exists()
        if begun and not resume:
            raise PrunefrontError(
                f"study {config.name!r} has been searched before ({folder}); --resume goes on with it, --fresh "
                "deletes it, another `name` keeps both"
            )
        different = unchanged(config, json.loads(kept.read_text())) if kept.exists() else []
        if begun and different:
            raise PrunefrontError(
                f"study {config.name!r} was started with another {', '.join(different)}; set that back, or start "
                "afresh with --fresh or another `name`"
            )
        if begun and not (prepared and kept.exists()):
            raise PrunefrontError(
                f"study {config.name!r} cannot go on: {folder / 'prepared' if kept.exists() else kept} is gone; put "
                "it back, or start afresh with --fresh"
            )
        if begun or (resume and prepared and not different):
            return
    keep_network = not fresh and prepared and not any(key.startswith(NETWORK_KEYS) for key in different)
    for name in OURS:
        path = folder / name
        if name == "prepared" and keep_network:
            for file in path.iterdir():
                if file.name not in NETWORK_FILES:
                    file.unlink()
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    write_json(kept, config.to_json())


def _read_earlier(config: StudyConfig) -> list[Earlier]:
    return [read(uri, config.artifacts.endpoint_url) for uri in config.search.warm_start]


def _stages(session: Session, address: str | None, earlier: Sequence[Earlier] | None) -> list[FrontRow]:
    """earlier: what the study starts from where it has been read already; None = it is read here."""
    config, timing = session.config, session.timing
    if earlier is None:  # what has been taken over before is in the journal
        earlier = [] if session.journal.of("warm_start") else _read_earlier(config)
    with ExitStack() as stack:
        # a cluster that cannot be used is said before anything is spent; here Ray starts when there is work for it
        cluster = _join(stack, config, address) if named(address) else None
        with timing.stage("prepare"):
            network = dense_network(config, session.display.say)
            bench = make_bench(config, network)
            signature = Signature(
                network_digest(bench.weights, network.graph),
                conditions(config, fingerprint(network.splits), bench.recipe.precision),
            )
            check_network(earlier, signature)  # before statistics and latencies are paid for
        cluster = cluster or _join(stack, config, address)
        timing.workers = cluster.workers
        with timing.stage("score"):
            knowledge = know(config, network, _gather(bench, cluster, config), session.display.say)
            task = problem(
                network.graph,
                knowledge.scores,
                config.space,
                config.search,
                knowledge.facts,
                seed=config.seed,
                chance=1.0 / network.splits.classes,
            )
            _say_problem(session, network, task)
        bench_ref = ray.put(bench)
        with timing.stage("latency"):
            predicting = forecast(config, bench, task, session.display, gpus=config.cluster.gpus_per_worker)
            task = task if predicting is None else steered(task, predicting)
        begin = _begin(session, network, knowledge.scores, task, earlier, signature)
        with timing.stage("screen"):
            screening = _screen(
                session, network, knowledge.scores, task, bench_ref, cluster, predicting, begin
            )
            publish(session.store, signature, screening.table(config.name))
        with timing.stage("finetune"):
            trained = _finetune(session, network, knowledge.scores, screening, task, bench_ref, cluster)
        if predicting is not None:
            _compare_with_forecast(session, predicting, trained)
        front = _choose(session, trained)
        with timing.stage("control"):
            front += _control(session, network, knowledge.scores, front, bench_ref, cluster)
        with timing.stage("report"):
            rows = _report(session, network, front)
    write_json(
        config.path / "timing.json",
        {"seconds": timing.seconds, "busy": timing.busy, "workers": timing.workers},
    )
    return rows


def _choose(session: Session, trained: Sequence[Trained]) -> list[Trained]:
    """The front within the study's bounds, which are relative to the dense network as it was measured beside the
    others; how they are met is kept in a file."""
    bounds = session.config.search.constraints
    dense = next(t for t in trained if t.name == DENSE)
    limits = resolve(bounds, dense.measurement.values)
    if bounds:
        uri = session.store.uri
        found = standing(trained, bounds, limits, lambda artifact: locate(uri, artifact))
        write_json(session.config.path / BOUNDS, found)
    return chosen(trained, limits)


def _join(stack: ExitStack, config: StudyConfig, address: str | None) -> Cluster:
    """Ray until the end of `stack`. Raises PrunefrontError if the study cannot run there."""
    cluster = stack.enter_context(connected(address, config.cluster))
    _check_storage(config, cluster)
    return cluster


def _gather(bench: Workbench, cluster: Cluster, config: StudyConfig) -> Gather:
    """Statistics by the study's workers."""

    def gathered(graph: ChannelGraph, batches: Sequence[Batch], needs: Set[str]) -> Statistics:
        return gather(
            bench.model,
            bench.classes,
            bench.input_shape,
            bench.weights,
            graph,
            batches,
            needs,
            workers=cluster.workers,
            cluster=config.cluster,
        )

    return gathered


def _say_problem(session: Session, network: Network, task: Problem) -> None:
    dense = cost(network.graph)
    session.display.say(
        f"{session.config.model.factory}: {dense.macs:,} MACs, {dense.params:,} parameters; to search: "
        f"{_counted(task)}; {len(network.graph.frozen)} groups are frozen"
    )


def _counted(task: Problem) -> str:
    kinds = [g.kind for g in task.space.groups]
    words = {"channels": "channel groups", "blocks": "stacks of blocks", "layer": "layers"}
    return ", ".join(f"{kinds.count(kind)} {word}" for kind, word in words.items() if kind in kinds)


def _check_storage(config: StudyConfig, cluster: Cluster) -> None:
    """Raises PrunefrontError if workers on other machines would publish into their own disks."""
    if (
        (cluster.nodes > 1 or cluster.remote)
        and "://" not in config.artifact_uri
        and not config.artifacts.shared
    ):
        raise PrunefrontError(
            f"workers may run on another machine, but artifacts go to the folder {config.artifact_uri}; set "
            "[artifacts] uri = 's3://bucket/prefix', or shared = true if all machines see that folder"
        )


def _begin(
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
            return _planned(config, network, scores, candidate).key()

        found = warm_start(earlier, task.space, realised, task.objectives, signature, session.display.say)
        journal.append("warm_start", **to_event(found))
    return from_event(journal.of("warm_start")[-1])


def _planned(config: StudyConfig, network: Network, scores: Scores, candidate: Candidate) -> PruningPlan:
    return plan(
        network.graph, candidate.choices, scores, round_to=config.space.round_to, words=config.space.words
    )


def _screen(
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
        aim = _planned(config, network, scores, candidate)
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
            pool = ScoringPool(bench_ref, cluster.workers, config.cluster, inheritance)
            try:
                scoring: Pool = pool if predicting is None else PredictingPool(pool, predicting)
                screening.run(scoring, config.search.candidates, enough)
            finally:
                session.timing.busy["screen"] = pool.busy_seconds
                pool.close()
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


def _finetune(
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
        return _planned(config, network, scores, candidate)

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


def _compare_with_forecast(session: Session, predicting: Forecast, trained: Sequence[Trained]) -> None:
    """Says how far predictions were off the networks that were measured, and keeps the predictor that knows them."""
    config = session.config
    points = predicting.points(((t.job.plan, t.measurement) for t in trained), config.name)
    if not points:
        return
    corrected, error = predicting.corrected(points)
    session.display.say(f"latency, predicted against measured after training: {error}")
    session.tracker.log_values({f"latency_prediction_{k}": v for k, v in error.to_json().items()})
    write_json(config.path / CORRECTED, corrected.table.to_json())


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


def _control(
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
    subjects = [found[name] for name in journal.of("controlled")[-1]["names"]]
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
        session.tracker.log(
            reached.name,
            candidate_params(named[reached.name].candidate) | {"stopped_after_epochs": reached.epoch},
            reached.measurement,
            stage=stage,
            seconds=reached.seconds,
        )
        finished.add(reached.name)
        accuracy = reached.measurement["accuracy"]
        session.display.update(len(finished), f"stopped at epoch {reached.epoch}, accuracy {accuracy:.3f}")

    def on_trained(name: str, outcome: Outcome, result: dict[str, Any]) -> None:
        nonlocal busy
        seconds = float(result.get("busy_seconds", 0.0))
        busy += seconds
        artifact = str(result.get("artifact", ""))
        journal.append(
            "trained",
            name=name,
            outcome=outcome.to_json(),
            artifact=artifact.rpartition("/")[2],
            epochs=result.get("epochs", 0),
        )
        session.tracker.log(
            name,
            candidate_params(named[name].candidate),
            outcome,
            artifact or None,
            stage=stage,
            seconds=seconds,
        )
        finished.add(name)
        session.display.update(len(finished), _note(outcome))

    label = {"finetune": "fine-tuning", "control": "controls"}[stage]
    with session.display.stage(label, len(named), len(finished)):
        left = Queue([job for name, job in named.items() if name not in finished])
        if len(left):
            trials = Trials(
                cluster.workers, config.cluster, config.path / "tune", stage, rungs() if rungs else None
            )
            finetune_all(bench_ref, left, trials, on_trained, on_rung)
            if rungs:
                _say_rungs(session, rungs())
    session.timing.busy[stage] = busy
    if unfinished := len(named.keys() - finished):
        raise PrunefrontError(
            f"Ray Tune ended with {unfinished} of {len(named)} networks not trained; go on with --resume"
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


def _note(outcome: Outcome) -> str:
    if isinstance(outcome, Failure):
        return f"failed: {outcome.reason[:60]}"
    return f"accuracy {outcome['accuracy']:.3f}, {outcome['latency_ratio']:.2f} × dense"


def _trained(session: Session, jobs: Mapping[str, Job]) -> list[Trained]:
    """What the journal knows of these jobs. Raises PrunefrontError if the dense network itself failed."""
    trained, failures = [], []
    latest = {event["name"]: event for event in session.journal.of("trained")}
    stopped = {event["name"] for event in session.journal.of("stopped")}
    for name, job in jobs.items():
        if name in stopped:
            continue
        event = latest[name]
        outcome = outcome_from_json(event["outcome"])
        if isinstance(outcome, Failure):
            failures.append((name, outcome))
            continue
        trained.append(Trained(job, outcome, event["artifact"], event["epochs"]))
    for name, failure in failures:
        session.display.say(f"{name} failed in training: {failure.kind}: {failure.reason}")
        _need_dense(name, failure)
    return trained


def _need_dense(name: str, failure: Failure) -> None:
    if name == DENSE:
        raise PrunefrontError(
            f"the dense network itself could not be measured and published: {failure.reason}; nothing can be "
            "compared with it; mend that and go on with --resume"
        )


def _report(session: Session, network: Network, front: list[Trained]) -> list[FrontRow]:
    """Last stage: the front on test images, as files, in MLflow and beside the artifacts."""
    config, folder = session.config, session.config.path
    splits = network.splits
    session.display.say(f"measuring {len(front)} networks on {len(splits.test):,} test images")
    rows, failures = report(
        front,
        network.graph,
        splits.test,
        splits.transform,
        session.store,
        threads=config.cluster.cpus_per_worker,
    )
    for name, failure in failures.items():
        session.journal.append("unreported", name=name, outcome=failure.to_json())
        session.tracker.log(name, {}, failure, stage="test")
        session.display.say(f"{name} is left out of the front: {failure.kind}: {failure.reason}")
        _need_dense(name, failure)
    data = [row.to_json() for row in rows]
    write_json(folder / FRONT, data)
    put_json(session.store, FRONT, data)
    write_html(data, folder / "front.html", config.name, note=bounds_kept(folder))
    write_png(data, folder / "front.png", config.name)
    pages = [folder / name for name in ("front.html", "front.png", FRONT, BOUNDS)]
    session.tracker.log_front(data, [page for page in pages if page.exists()])
    return rows


def next_steps(config: StudyConfig, study: Path, rows: list[FrontRow]) -> str:
    """What to type after a search; the bound is one that the front can meet."""
    fastest = min(row.latency_ratio for row in rows)
    bound = max(0.6, math.ceil(100 * fastest) / 100)
    file = shlex.quote(str(study))
    return "\n".join(
        (
            "next:",
            f"  prunefront ui {file}",
            f"  prunefront fetch {file} --under latency_ratio={bound:g} --best accuracy -o best/",
            "  prunefront verify best/",
            f"pages: {config.path / 'front.html'}  {config.path / 'front.png'}",
        )
    )
