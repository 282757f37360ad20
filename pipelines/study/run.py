"""One study from its file to its front: prepare, screen, fine-tune, report. Everything is wired here."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.connect import check_address, check_metrics_port, cluster_address
from prunefront.pipelines.config.sections import StudyConfig, TaskSection
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.fronts.refreshed import Refreshed
from prunefront.pipelines.fronts.report import write_report
from prunefront.pipelines.fronts.row import FrontRow
from prunefront.pipelines.fronts.unfinished import FrontSections
from prunefront.pipelines.fronts.unfinished_report import partial_front_on_failure, remove_partial_front
from prunefront.pipelines.journal.journal import write_json
from prunefront.pipelines.journal.layout import BOUNDS, FRONT, MISTAKES, REPORT, SPOOL, TIMING
from prunefront.pipelines.journal.metrics import record_metrics
from prunefront.pipelines.measure.environment import record_versions
from prunefront.pipelines.prepare.checks import NamingSections, check_names
from prunefront.pipelines.prepare.knowledge import know
from prunefront.pipelines.prepare.misfits import misfits
from prunefront.pipelines.prepare.network import Network, NetworkSections, dense_network, fingerprint
from prunefront.pipelines.prepare.problem import objectives, problem
from prunefront.pipelines.prepare.workbench import BenchSections, make_bench
from prunefront.pipelines.stages.final import Trained, report
from prunefront.pipelines.stages.first_stage import FirstStage, FirstStageSections, warm_started
from prunefront.pipelines.stages.forecast import ForecastSections, forecast, steered
from prunefront.pipelines.stages.mistakes import mistakes, to_json
from prunefront.pipelines.stages.program import DenseModel
from prunefront.pipelines.stages.second_stage import (
    SecondStageSections,
    choose,
    compare_with_forecast,
    control,
    finetune,
    latest_artifacts,
    need_dense,
)
from prunefront.pipelines.stages.session import Session
from prunefront.pipelines.stages.warm_start import (
    ScoreSections,
    Signature,
    WarmStart,
    check_network,
    conditions,
    network_digest,
    publish,
)
from prunefront.pipelines.stores.store import put_json
from prunefront.pipelines.study.opening import opened
from prunefront.pipelines.workers.in_process import in_process
from prunefront.pipelines.workers.workers import Workers
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.plan.cost import cost
from prunefront.pruners.statistics import Batch, Statistics
from prunefront.search.space.problem import Problem


def run(
    config: StudyConfig,
    *,
    display: Display,
    address: str | None = None,
    resume: bool = False,
    fresh: bool = False,
    metrics_port: int | None = None,
    without_ray: bool = False,
) -> list[FrontRow]:
    """Runs a study to its end and returns its front, fastest first; the dense network is always among the rows.

    address: of a Ray cluster; None = this machine. resume: go on where the study stopped. fresh: delete what an
    earlier run left. metrics_port: where Ray, if it starts here, exports metrics; None = a free port. without_ray: do
    everything in this process. Raises PrunefrontError for everything that a person can mend. A run that ends early
    leaves a partial front of what was finished.
    """
    if resume and fresh:
        raise PrunefrontError("--resume continues the study and --fresh deletes it; give one of the two")
    check_names(config.part(NamingSections))
    if without_ray and address is not None:
        raise PrunefrontError(
            f"--address {address} names a Ray cluster, and --without-ray uses none; give one"
        )
    check_address(config.measure, None if without_ray else address)
    if metrics_port is not None:
        check_metrics_port(address, metrics_port)
    with (
        opened(config, display, resume=resume, fresh=fresh) as session,
        ExitStack() as stack,
        # the partial front comes before Ray's end, which takes a while
        partial_front_on_failure(config.part(FrontSections), config.path, display.say, session.events.report),
        session.events.attach(Refreshed(config.part(FrontSections), config.path, session.journal.events)),
    ):

        def join() -> Workers:
            if without_ray:
                return stack.enter_context(in_process(config.cluster))
            from prunefront.pipelines.workers.on_ray.workers import (
                on_ray,  # a second that others need not wait
            )

            return stack.enter_context(
                on_ray(
                    config.cluster,
                    config.measure,
                    address,
                    local_artifacts=config.local_artifacts,
                    events=session.events,
                    say=display.say,
                    metrics_port=metrics_port,
                )
            )

        # a cluster that cannot be used is said before anything is spent; here Ray starts when there is work for it
        workers = join() if without_ray or cluster_address(address) else None
        return _stages(config, session, workers, join)


def _stages(
    config: StudyConfig, session: Session, joined: Workers | None, join: Callable[[], Workers]
) -> list[FrontRow]:
    """Runs the stages in turn. joined: the workers, where there are any yet; join: gets them."""
    timing, say = session.timing, session.display.say
    first, second = config.part(FirstStageSections), config.part(SecondStageSections)
    with timing.stage("prepare"):
        network = dense_network(config.part(NetworkSections), say)
        bench = make_bench(config.part(BenchSections), network, say)
        signature = Signature(
            network_digest(bench.weights, network.graph),
            conditions(config.part(ScoreSections), fingerprint(network.splits), bench.recipe.precision),
        )
        record_metrics(session.journal, network.task.metrics)
        record_versions(session.journal)
        check_network(session.earlier, signature)  # before statistics and latencies are paid for
    workers = joined or join()
    timing.workers = workers.count
    with timing.stage("score"):

        def gather(graph: ChannelGraph, batches: Sequence[Batch], needs: Set[str]) -> Statistics:
            return workers.gather(bench, batches, needs)

        knowledge = know(
            config.path,
            config.space,
            network,
            gather,
            say,
            asked=config.start.allocators,
            seed=config.seed,
        )
        task = problem(
            network.graph,
            knowledge.scores,
            config.space,
            config.goal,
            config.start,
            knowledge.facts,
            candidates=config.search.candidates,
            quantisation=config.quantisation,
            seed=config.seed,
            chance=network.chance or 0.0,
            goals=objectives(config.goal, network.task.quality),
        )
        _say_problem(session, config.model.factory, network, task)
        for line in misfits(network.graph, task.space, config.space, knowledge.facts, config.search.searcher):
            say(line)
    bench = replace(
        bench,
        moments=knowledge.moments,
        target=workers.device(config.measure, bench.dense_onnx),
        refuge=workers.refuge(config.path / SPOOL),
    )
    workers.equip(bench)
    with timing.stage("latency"):
        predicting = forecast(config.part(ForecastSections), bench, task, session.display, workers)
        task = task if predicting is None else steered(task, predicting)
    begin = WarmStart()
    if config.start.warm_start:
        begin = warm_started(session, first, network, knowledge.scores, task, session.earlier, signature)
    with timing.stage("screen"):
        stage = FirstStage(session, first, network, knowledge.scores, task, workers, predicting, begin)
        screening = stage.run()
        session.ownership.check_now()
        publish(session.store, signature, screening.table(config.name))
    with timing.stage("finetune"):
        trained = finetune(session, second, network, knowledge.scores, screening, task, workers)
    if predicting is not None:
        compare_with_forecast(session, predicting, trained)
    front = choose(session, config.goal.constraints, trained)
    with timing.stage("control"):
        front += control(session, second, network, knowledge.scores, front, workers)
    with timing.stage("report"):
        dense = (
            DenseModel(config.model, network.classes, network.input_shape) if config.artifacts.pt2 else None
        )
        limits = (config.cluster.cpus_per_worker, bench.step_seconds)
        rows = _report(session, config.task, network, dense, front, workers, *limits)
    write_json(
        config.path / TIMING,
        {"seconds": timing.seconds, "busy": timing.busy, "workers": timing.workers},
    )
    write_report(config.part(FrontSections), config.path, rows, events=session.journal.events)
    pages = [config.path / name for name in (REPORT, FRONT, BOUNDS)]
    session.tracker.log_front([row.to_json() for row in rows], [page for page in pages if page.exists()])
    return rows


def _say_problem(session: Session, factory: str, network: Network, task: Problem) -> None:
    dense, frozen = cost(network.graph), len(network.graph.frozen)
    session.display.say(
        f"{factory}: {dense.macs:,} MACs, {dense.params:,} parameters; to search: "
        f"{_counted(task)}; frozen: {frozen} {'group' if frozen == 1 else 'groups'}"
    )


def _counted(task: Problem) -> str:
    kinds: list[str] = [g.kind for g in task.space.groups]
    words = {
        "channels": ("channel group", "channel groups"),
        "blocks": ("stack of blocks", "stacks of blocks"),
        "layer": ("layer", "layers"),
    }
    return ", ".join(f"{n} {word[n > 1]}" for kind, word in words.items() if (n := kinds.count(kind)))


def _report(
    session: Session,
    section: TaskSection,
    network: Network,
    dense: DenseModel | None,
    front: list[Trained],
    workers: Workers,
    threads: int,
    seconds: float | None,
) -> list[FrontRow]:
    """Last stage: the front on test images, as files, in MLflow and beside the artifacts."""
    folder = session.path
    test = network.test
    what = "images" if network.input_shape else "samples"
    session.display.say(
        f"measuring {len(front)} networks on {f'{test.count:,} ' if test.count else ''}test {what}"
    )

    def look(files: Mapping[str, bytes]) -> None:
        validation = network.splits.part("validation")
        found = mistakes(
            files, validation, section, workers, threads=threads, seconds=seconds, say=session.display.say
        )
        if found is not None:
            write_json(folder / MISTAKES, to_json(found))

    rows, failures = report(
        front,
        network.graph,
        test,
        section,
        session.store,
        workers,
        threads=threads,
        seconds=seconds,
        dense_model=dense,
        say=session.display.say,
        look=look,
    )
    for name, failure in failures.items():
        session.journal.append("unreported", name=name, outcome=failure.to_json())
        session.tracker.log(name, {}, failure, stage="test")
        session.display.say(f"{name} is left out of the front: {failure.kind}: {failure.reason}")
        need_dense(name, failure)
    known = latest_artifacts(session.journal.events)
    for row in rows:  # a resumed study reports these: the ones before, without test figures, may be collected
        artifact = (row.artifact or "").rpartition("/")[2]
        if known.get(row.key) != artifact:
            session.journal.append("published", name=row.key, artifact=artifact)
    data = [row.to_json() for row in rows]
    write_json(folder / FRONT, data)
    remove_partial_front(folder)  # a partial front of an earlier run
    session.ownership.check_now()
    put_json(session.store, FRONT, data)
    return rows


def next_steps(config: StudyConfig, study: Path, rows: list[FrontRow]) -> str:
    """Returns what to type after a search; its bound is one that the front can meet."""
    metric = rows[0].metric
    fastest = min(row.latency_ratio for row in rows)
    bound = max(0.6, math.ceil(100 * fastest) / 100)
    file = shlex.quote(str(study))
    return "\n".join(
        (
            "next:",
            f"  prunefront ui {file}",
            f"  prunefront fetch {file} --under latency_ratio={bound:g} --best {metric.name} -o best/",
            "  prunefront verify best/",
            f"  prunefront report {file} --open",
            f"page: {config.path / REPORT}",
        )
    )
