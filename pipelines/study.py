"""One study from its file to its front: prepare, screen, fine-tune, report. Everything is wired here."""

import math
import shlex
from collections.abc import Sequence, Set
from contextlib import ExitStack
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError
from ray.tune import TuneError

from pipelines.artifacts import FRONT, open_store, put_json
from pipelines.cluster import Cluster, connected, named
from pipelines.config import StudyConfig
from pipelines.final import Trained, report
from pipelines.first_stage import screen, warm_started
from pipelines.forecast import forecast, steered
from pipelines.gather import gather
from pipelines.journal import Journal, lock, write_json
from pipelines.prepare import Gather, Network, check_names, dense_network, fingerprint, know, make_bench
from pipelines.problem import problem
from pipelines.progress import Display
from pipelines.report import FrontRow, write_html, write_png
from pipelines.second_stage import choose, compare_with_forecast, control, finetune, need_dense
from pipelines.session import Session, Timing
from pipelines.studies import BOUNDS, bounds_kept
from pipelines.study_folder import open_folder
from pipelines.tracking import MlflowTracker, Status
from pipelines.warm_start import Earlier, Signature, check_network, conditions, network_digest, publish, read
from pipelines.workbench import Workbench
from pruners.cost import cost
from pruners.errors import PrunefrontError
from pruners.graph import ChannelGraph
from pruners.statistics import Batch, Statistics
from search.space import Problem


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
        open_folder(config, resume=resume, fresh=fresh)
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
        begin = warm_started(session, network, knowledge.scores, task, earlier, signature)
        with timing.stage("screen"):
            screening = screen(
                session, network, knowledge.scores, task, bench_ref, cluster, predicting, begin
            )
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
        config.path / "timing.json",
        {"seconds": timing.seconds, "busy": timing.busy, "workers": timing.workers},
    )
    return rows


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
