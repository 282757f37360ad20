"""One study from its file to its front: prepare, screen, fine-tune, report. Everything is wired here."""

import math
import shlex
import signal
from collections.abc import Sequence, Set
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError
from ray.tune import TuneError

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.connect import Cluster, check_metrics_port, cluster_address, connect
from prunefront.pipelines.cluster.device import check_address, make_target
from prunefront.pipelines.cluster.nodes import check_nodes
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.events.events import Events
from prunefront.pipelines.events.log import to_logging
from prunefront.pipelines.events.metrics import exported
from prunefront.pipelines.fronts.page import write_html
from prunefront.pipelines.fronts.picture import write_png
from prunefront.pipelines.fronts.row import FrontRow
from prunefront.pipelines.fronts.unfinished_report import partial_front_on_failure, remove_partial_front
from prunefront.pipelines.journal.journal import Journal, lock, write_json
from prunefront.pipelines.journal.layout import (
    BOUNDS,
    FRONT,
    FRONT_PAGE,
    FRONT_PICTURE,
    JOURNAL,
    SPOOL,
    TIMING,
)
from prunefront.pipelines.prepare.network import (
    Gather,
    Network,
    check_names,
    dense_network,
    fingerprint,
    know,
    make_bench,
)
from prunefront.pipelines.prepare.problem import problem
from prunefront.pipelines.recovery.claim import claim_study, keep_ownership
from prunefront.pipelines.stages.final import Trained, report
from prunefront.pipelines.stages.first_stage import screen, warm_started
from prunefront.pipelines.stages.forecast import forecast, steered
from prunefront.pipelines.stages.second_stage import (
    choose,
    compare_with_forecast,
    control,
    finetune,
    latest_artifacts,
    need_dense,
)
from prunefront.pipelines.stages.session import Session, Timing
from prunefront.pipelines.stages.warm_start import (
    Earlier,
    Signature,
    check_network,
    conditions,
    network_digest,
    publish,
    read,
)
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.stores.spool import Refuge, Spool, spooling
from prunefront.pipelines.stores.store import put_json
from prunefront.pipelines.study.find import read_bounds
from prunefront.pipelines.study.folder import open_folder
from prunefront.pipelines.tracking.tracker import MlflowTracker, Status
from prunefront.pipelines.workers.bench import Workbench
from prunefront.pipelines.workers.gather import gather
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
) -> list[FrontRow]:
    """Runs a study to its end and returns its front, fastest first; the dense network is always among the rows.

    address: of a Ray cluster; None = this machine. resume: go on where the study stopped. fresh: delete what an
    earlier run left. metrics_port: where Ray, if it starts here, exports metrics; None = a free port. Raises
    PrunefrontError for everything that a person can mend. Whatever ends it early, a partial front is left of what was
    finished.
    """
    if resume and fresh:
        raise PrunefrontError(
            "--resume goes on with what is there and --fresh deletes it; give one of the two"
        )
    check_names(config)
    check_address(config.measure, address)
    if metrics_port is not None:
        check_metrics_port(address, metrics_port)
    with lock(config.path):
        behind = open_store(config.artifact_uri, config.artifacts.endpoint_url)
        behind.probe()  # before anything of an earlier run is deleted
        warm = _read_earlier(config) if fresh else None  # also before: it may be what is deleted here
        claim = claim_study(config, behind, display.say, resume=resume, fresh=fresh)
        open_folder(config, resume=resume, fresh=fresh)
        events = Events(config.name, display.say)
        with (
            events.heard_by(to_logging),
            keep_ownership(claim, config, behind, display.say) as ownership,
            Journal(config.path / JOURNAL, events.on_journal, guard=ownership.check) as journal,
            spooling(behind, Spool(config.path / SPOOL), display.say, events.on_outage("artifacts")) as store,
        ):
            tracker = MlflowTracker(
                config.tracking_uri,
                config.tracking.experiment,
                config.folder,
                on_outage=events.on_outage("tracking"),
            )
            earlier = journal.of("tracking")
            run_id = tracker.start(config.to_json(), resume_run_id=earlier[-1]["run"] if earlier else None)
            if not earlier or run_id != earlier[-1]["run"]:  # another machine may have another tracking store
                journal.append("tracking", run=run_id)
            events.watched["tracking_waiting"] = lambda: tracker.waiting
            events.watched["artifacts_waiting"] = lambda: len(store.spool.entries())
            display.on_say = lambda line: events.tell("said", line=line)
            timing = Timing(on_stage=events.on_stage)
            session = Session(config, display, journal, tracker, store, timing, ownership, events)
            status: Status = "FAILED"
            try:
                with events.run(resumed=bool(journal.of("asked"))):
                    rows = _stages(session, address, warm, metrics_port)
                status = "FINISHED"
                return rows
            except (KeyboardInterrupt, SystemExit):  # Ray turns SIGTERM into the second
                signal.alarm(0)  # and its C++ part has set one, to end the process after three seconds
                status = "KILLED"
                raise
            except (RayError, TuneError) as error:
                cause = error.cause if isinstance(error, RayTaskError) else error
                line = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
                raise PrunefrontError(
                    f"Ray failed: {line}; what was done is kept, go on with --resume"
                ) from error
            except ConnectionError as error:  # of ray://
                raise PrunefrontError(
                    f"the connection to the Ray cluster was lost ({error}); what was done is kept: see to the "
                    "cluster, and go on with --resume"
                ) from error
            finally:
                for error in tracker.finish(status):
                    display.say(f"not recorded in MLflow: {error}")


def _read_earlier(config: StudyConfig) -> list[Earlier]:
    return [read(uri, config.artifacts.endpoint_url) for uri in config.search.warm_start]


def _stages(
    session: Session,
    address: str | None,
    earlier: Sequence[Earlier] | None,
    metrics_port: int | None = None,
) -> list[FrontRow]:
    """earlier: what the study starts from where it has been read already; None = it is read here."""
    config, timing = session.config, session.timing
    if earlier is None:  # what has been taken over before is in the journal
        earlier = [] if session.journal.of("warm_start") else _read_earlier(config)
    # the partial front comes first, and Ray's end, which takes a while, after it
    with ExitStack() as stack, partial_front_on_failure(config, session.display.say, session.events.tell):
        # a cluster that cannot be used is said before anything is spent; here Ray starts when there is work for it
        cluster = _join(stack, session, address, metrics_port) if cluster_address(address) else None
        with timing.stage("prepare"):
            network = dense_network(config, session.display.say)
            bench = make_bench(config, network)
            signature = Signature(
                network_digest(bench.weights, network.graph),
                conditions(config, fingerprint(network.splits), bench.recipe.precision),
            )
            check_network(earlier, signature)  # before statistics and latencies are paid for
        cluster = cluster or _join(stack, session, address, metrics_port)
        bench = replace(bench, target=make_target(config.measure, bench.dense_onnx))
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
        bench_ref = ray.put(replace(bench, refuge=_refuge(config, cluster)))
        with timing.stage("latency"):
            predicting = forecast(config, bench, task, session.display, gpus=config.cluster.gpus_per_worker)
            task = task if predicting is None else steered(task, predicting)
        begin = warm_started(session, network, knowledge.scores, task, earlier, signature)
        with timing.stage("screen"):
            screening = screen(
                session, network, knowledge.scores, task, bench_ref, cluster, predicting, begin
            )
            session.ownership.check_now()
            publish(session.store, signature, screening.table(config.name))
        with timing.stage("finetune"):
            trained = finetune(session, network, knowledge.scores, screening, task, bench_ref, cluster)
        if predicting is not None:
            compare_with_forecast(session, predicting, trained)
        front = choose(session, trained)
        with timing.stage("control"):
            front += control(session, network, knowledge.scores, front, bench_ref, cluster)
        with timing.stage("report"):
            rows = _report(session, network, front)
    write_json(
        config.path / TIMING,
        {"seconds": timing.seconds, "busy": timing.busy, "workers": timing.workers},
    )
    return rows


def _join(stack: ExitStack, session: Session, address: str | None, metrics_port: int | None) -> Cluster:
    """Ray, and what it exports, until the end of `stack`. Raises PrunefrontError if the study cannot run or be measured
    there."""
    config = session.config
    cluster = stack.enter_context(connect(address, config.cluster, metrics_port))
    _check_storage(config, cluster)
    for line in check_nodes(config.measure, config.cluster):
        session.display.say(line)
    stack.enter_context(exported(session.events, workers=cluster.workers, remote=cluster.remote))
    return cluster


def _refuge(config: StudyConfig, cluster: Cluster) -> Refuge | None:
    """None where the study runs outside the cluster: its workers cannot write to this disk."""
    if cluster.remote:
        return None
    return Refuge(ray.get_runtime_context().get_node_id(), (config.path / SPOOL).absolute())


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
    dense, frozen = cost(network.graph), len(network.graph.frozen)
    session.display.say(
        f"{session.config.model.factory}: {dense.macs:,} MACs, {dense.params:,} parameters; to search: "
        f"{_counted(task)}; frozen: {frozen} {'group' if frozen == 1 else 'groups'}"
    )


def _counted(task: Problem) -> str:
    kinds = [g.kind for g in task.space.groups]
    words = {
        "channels": ("channel group", "channel groups"),
        "blocks": ("stack of blocks", "stacks of blocks"),
        "layer": ("layer", "layers"),
    }
    return ", ".join(f"{n} {word[n > 1]}" for kind, word in words.items() if (n := kinds.count(kind)))


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
        need_dense(name, failure)
    known = latest_artifacts(session.journal.events)
    for row in rows:  # a resumed study reports these: the ones before, without test figures, may be collected
        artifact = row.artifact.rpartition("/")[2]
        if known.get(row.key) != artifact:
            session.journal.append("published", name=row.key, artifact=artifact)
    data = [row.to_json() for row in rows]
    write_json(folder / FRONT, data)
    remove_partial_front(folder)  # a partial front of an earlier run
    session.ownership.check_now()
    put_json(session.store, FRONT, data)
    write_html(rows, folder / FRONT_PAGE, config.name, note=read_bounds(folder))
    write_png(rows, folder / FRONT_PICTURE, config.name)
    pages = [folder / name for name in (FRONT_PAGE, FRONT_PICTURE, FRONT, BOUNDS)]
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
