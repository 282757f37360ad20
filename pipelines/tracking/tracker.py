"""Trackers, which record a study in MLflow or in memory. The search never waits for them, nor ends because of them."""

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from prunefront.pipelines.events.redaction import redact, without_password, without_secrets
from prunefront.pipelines.tracking.reach import TrackingError, first_line, reach, sqlite_file
from prunefront.pipelines.tracking.writer import Writer
from prunefront.search.outcomes.measurement import Failure, Measurement, Outcome
from prunefront.search.space.candidate import Candidate

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Metric, Param, RunTag

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""End of a run, in MLflow's words."""

Row = Mapping[str, Any]
"""Network of the front: JSON data."""

MAX_VALUE = 500
"""Most characters of a param, which every MLflow since 1.0 takes. The whole study is in study.json."""

MAX_KEY = 250
"""Most characters of a param's name."""

MAX_TAG = 5000
"""Most characters of a tag."""

BATCH = 100
"""Most params or tags in one request."""

SHORT_PATIENCE = 10.0
"""Longest wait at the end of a study that did not come to its end, in seconds."""

ARTIFACTS = "mlartifacts"
"""Folder of artifacts where a database has no place of its own for them."""

TABLE = "front_table.json"
"""File of the front that MLflow's UI shows as a table."""


class Tracker(Protocol):
    """Records one study. Only `start` may raise (TrackingError); later failures are in `errors`."""

    @property
    def errors(self) -> tuple[str, ...]:
        """Failures to record so far, one line each."""
        ...

    def start(self, study: Mapping[str, Any], resume_run_id: str | None = None) -> str:
        """Opens a new run of the study, or the given one again, and returns its id. study: its settings as JSON."""
        ...

    def log(
        self,
        key: str,
        params: Mapping[str, Any],
        outcome: Outcome,
        artifact_uri: str | None = None,
        *,
        stage: str = "score",
        seconds: float = 0.0,
    ) -> None:
        """Records the outcome of a candidate at a stage.

        A second call for the same two does nothing, unless it brings a measurement after a failure. seconds: time that
        it took.
        """
        ...

    def log_progress(self, step: int, hypervolume: float, front_size: int) -> None:
        """Records the state of the front after `step` candidates."""
        ...

    def log_values(self, values: Mapping[str, float], step: int = 0) -> None:
        """Records finite numbers of the whole study, e.g. the errors of predictions, or at a rung of `step` epochs the
        agreement of its qualities with the final ones."""
        ...

    def log_front(self, rows: Sequence[Row], files: Sequence[Path] = ()) -> None:
        """Records the front: its rows, and files (report.html, front.json …). The files must stay until `finish`."""
        ...

    def finish(self, status: Status = "FINISHED") -> tuple[str, ...]:
        """Writes all that waits, closes the run and returns `errors`."""
        ...


def candidate_params(candidate: Candidate) -> dict[str, Any]:
    """Returns a candidate's choices as flat params: `ratio/<group>`, and few columns for the rest.

    A criterion, granularity or bit width that all groups share is one param; otherwise there is one for each group.
    """
    choices = candidate.choices
    params: dict[str, Any] = {"origin": candidate.origin} if candidate.origin else {}
    for name, values in (
        ("criterion", {group: c.criterion for group, c in choices.items()}),
        ("granularity", {group: c.granularity for group, c in choices.items()}),
        ("bits", {group: c.bits for group, c in choices.items()}),
    ):
        if len(set(values.values())) == 1:
            params[name] = next(iter(values.values()))
        else:
            params |= {f"{name}/{group}": value for group, value in values.items()}
    return params | {f"ratio/{group}": round(c.ratio, 4) for group, c in choices.items()}


@dataclass(frozen=True, slots=True)
class Record:
    """Record of `MemoryTracker` for a candidate at a stage."""

    params: Mapping[str, Any]
    outcome: Outcome
    artifact_uri: str | None = None


@dataclass
class MemoryTracker:
    """Tracker in memory, for tests and for studies that shall leave nothing behind."""

    study: Mapping[str, Any] = field(default_factory=dict)
    records: dict[tuple[str, str], Record] = field(default_factory=dict)
    progress: list[tuple[int, float, int]] = field(default_factory=list)
    values: dict[tuple[str, int], float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    status: str = "RUNNING"
    errors: tuple[str, ...] = ()

    def start(self, study: Mapping[str, Any], resume_run_id: str | None = None) -> str:
        self.study, self.status = study, "RUNNING"
        return resume_run_id or "memory"

    def log(
        self,
        key: str,
        params: Mapping[str, Any],
        outcome: Outcome,
        artifact_uri: str | None = None,
        *,
        stage: str = "score",
        seconds: float = 0.0,
    ) -> None:
        before = self.records.get((key, stage))
        if before is None or (isinstance(before.outcome, Failure) and isinstance(outcome, Measurement)):
            self.records[key, stage] = Record(dict(params), outcome, artifact_uri)

    def log_progress(self, step: int, hypervolume: float, front_size: int) -> None:
        self.progress.append((step, hypervolume, front_size))

    def log_values(self, values: Mapping[str, float], step: int = 0) -> None:
        self.values.update({(name, step): value for name, value in values.items()})

    def log_front(self, rows: Sequence[Row], files: Sequence[Path] = ()) -> None:
        self.rows, self.files = list(rows), list(files)

    def finish(self, status: Status = "FINISHED") -> tuple[str, ...]:
        self.status = status
        return self.errors


class MlflowTracker:
    """Writes a parent run for the study and a child run for each candidate and stage, by one background thread.

    uri: an MLflow server (`http://…`) or a database that this process writes itself (`sqlite:///…`,
    `postgresql://…`). folder: place for artifacts where a database has none of its own; an SQLite file has them beside
    itself. patience: longest wait of `finish` for a store that does not answer, in seconds; `SHORT_PATIENCE` at the
    most where the study did not come to its end, since it can be resumed. on_outage: takes the reason, in another
    thread, when the store stops to answer.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        folder: Path,
        *,
        patience: float = 120.0,
        on_outage: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._on_outage = on_outage
        self.uri, self.experiment, self.folder, self.patience = uri, experiment, folder, patience
        self._children: dict[
            tuple[str, str], str
        ] = {}  # (key, stage) -> run id; of the writer's thread alone
        self._done: dict[
            tuple[str, str], Status
        ] = {}  # (key, stage) -> its end; of the caller's thread alone
        self._last_step = -1  # of progress that an earlier run of the study recorded

    @property
    def errors(self) -> tuple[str, ...]:
        return tuple(self._writer.errors)

    @property
    def waiting(self) -> int:
        """Number of writes that the store has not taken yet."""
        return self._writer.waiting

    def start(self, study: Mapping[str, Any], resume_run_id: str | None = None) -> str:
        """Raises TrackingError within seconds: no answer, an address of no use, a deleted experiment, a refusal."""
        reach(self.uri)
        # MLflow's own patience (7 retries of 120 s) suits a script that has nothing else to do. A request that it
        # sends twice may be carried out twice: the writer tries again
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        # it prints two lines for every run that ends, between ours
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        # what a database refuses, such as a full disk, it logs with all of its traceback; the line is in `errors`
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._writer = Writer(self._recover, self.patience, on_outage=self._on_outage)
        study = redact(study)
        try:
            with _quiet_migrations():
                self._client = MlflowClient(tracking_uri=self.uri)
                self._experiment_id = self._open_experiment()
                self.run_id = self._open_run(study, resume_run_id)
        except (MlflowException, OSError) as error:
            raise TrackingError(
                f"the tracking store {without_password(self.uri)} refused the study: {_refusal(error)}"
            ) from error
        self._writer.start()
        return self.run_id

    def log(
        self,
        key: str,
        params: Mapping[str, Any],
        outcome: Outcome,
        artifact_uri: str | None = None,
        *,
        stage: str = "score",
        seconds: float = 0.0,
    ) -> None:
        before = self._done.get((key, stage))
        if before == "FINISHED" or (before and isinstance(outcome, Failure)):
            return
        self._done[key, stage] = "FAILED" if isinstance(outcome, Failure) else "FINISHED"
        now, copy = _now(), dict(params)
        self._writer.put(
            f"candidate {key} ({stage})",
            lambda: self._write_child(key, stage, copy, outcome, artifact_uri, now, seconds, bool(before)),
        )

    def log_progress(self, step: int, hypervolume: float, front_size: int) -> None:
        from mlflow.entities import Metric

        if step <= self._last_step:
            return
        values = {"hypervolume": hypervolume, "front_size": float(front_size)}
        metrics = [Metric(name, value, _now(), step) for name, value in values.items()]
        self._writer.put(f"progress at {step}", lambda: self._client.log_batch(self.run_id, metrics=metrics))

    def log_values(self, values: Mapping[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, _now(), step) for name, value in values.items()]
        self._writer.put(f"values of the study at {step}", lambda: self._log_batch(self.run_id, metrics))

    def log_front(self, rows: Sequence[Row], files: Sequence[Path] = ()) -> None:
        copies = [dict(row) for row in rows]
        self._writer.put("the front", lambda: self._write_front(copies, list(files)))

    def finish(self, status: Status = "FINISHED") -> tuple[str, ...]:
        self._writer.put("the end", lambda: self._write_end(status))
        self._writer.close(self.patience if status == "FINISHED" else min(self.patience, SHORT_PATIENCE))
        return self.errors

    def _open_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        experiment: Experiment | None = self._client.get_experiment_by_name(self.experiment)
        if experiment is None:
            try:
                return self._client.create_experiment(
                    self.experiment,
                    artifact_location=self._artifacts(),
                    # without it the UI opens on its page for language models
                    tags={"mlflow.experimentKind": "custom_model_development"},
                )
            except MlflowException as error:
                # another study may have created it in the meantime
                experiment = self._client.get_experiment_by_name(self.experiment)
                if experiment is None:
                    raise error
        if experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the MLflow experiment {self.experiment!r} is deleted in {without_password(self.uri)}; "
                f"bring it back with `mlflow experiments restore --experiment-id {experiment.experiment_id}`, "
                "or set another `experiment` under [tracking]"
            )
        return str(experiment.experiment_id)

    def _artifacts(self) -> str | None:
        """Returns the address for artifacts; None for a server, which has its own. A database would use ./mlruns."""
        if self.uri.startswith(("http", "databricks")):
            return None
        file = sqlite_file(self.uri)
        return ((file.parent if file else self.folder).absolute() / ARTIFACTS).as_uri()

    def _open_run(self, study: Mapping[str, Any], resume_run_id: str | None) -> str:
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        params = flatten(study)
        if resume_run_id is not None:
            try:
                run = self._client.get_run(resume_run_id)
                self._client.update_run(resume_run_id, status="RUNNING")
            except MlflowException as error:
                self._writer.errors.append(
                    f"run {resume_run_id} is gone, a new one continues in its place: {first_line(error)}"
                )
            else:
                self._done = self._find_children(resume_run_id)
                history = self._client.get_metric_history(resume_run_id, "front_size")
                self._last_step = max((metric.step for metric in history), default=-1)
                # MLflow refuses to change a param, and a study may go on with another [cluster] than before
                params = {key: value for key, value in params.items() if key not in run.data.params}
                self._log_batch(resume_run_id, params=[Param(*item) for item in params.items()])
                return resume_run_id
        tags = {
            "prunefront.study": str(study.get("name", "")),
            "prunefront.seed": str(study.get("seed", "")),
            "prunefront.version": _version(),
        }
        run = self._client.create_run(
            self._experiment_id, run_name=str(study.get("name", "study")), tags=tags
        )
        run_id = str(run.info.run_id)
        self._log_batch(run_id, params=[Param(*item) for item in params.items()])
        self._client.log_dict(run_id, dict(study), "study.json")
        return run_id

    def _find_children(self, parent: str) -> dict[tuple[str, str], Status]:
        """Notes the run of every child, and returns (key, stage) -> end of the finished ones.

        A child that was cut off in the middle is written again, into the same run. A server that had stopped to answer
        may have created a run for every try: one of them stays.
        """
        children: dict[tuple[str, str], list[Any]] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                f"tags.`mlflow.parentRunId` = '{parent}'",
                max_results=1000,
                page_token=token,
            )
            for run in page:
                name = (run.data.tags.get("prunefront.key", ""), run.data.tags.get("prunefront.stage", ""))
                children.setdefault(name, []).append(run)
            token = page.token
            if not token:
                break
        finished: dict[tuple[str, str], Status] = {}
        for name, runs in children.items():
            known = [run for run in runs if run.info.run_id == self._children.get(name)]
            child = (known or [run for run in runs if run.info.status != "RUNNING"] or runs)[0]
            self._children[name] = child.info.run_id
            if child.info.status != "RUNNING":
                finished[name] = child.info.status
            for run in runs:
                if run is not child:
                    self._client.delete_run(run.info.run_id)
        return finished

    def _recover(self) -> None:
        """Returns when the store answers, and the runs are known that it created without an answer; else raises."""
        reach(self.uri)
        self._find_children(self.run_id)

    def _write_child(
        self,
        key: str,
        stage: str,
        params: Mapping[str, Any],
        outcome: Outcome,
        artifact_uri: str | None,
        now: int,
        seconds: float,
        failed_before: bool,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        tags = {MLFLOW_PARENT_RUN_ID: self.run_id, "prunefront.key": key, "prunefront.stage": stage}
        if artifact_uri:
            tags["prunefront.artifact"] = without_password(artifact_uri)
        metrics: list[Metric] = []
        match outcome:
            case Failure(kind, reason):
                tags |= {"prunefront.failure": kind, "prunefront.reason": without_secrets(reason)[:MAX_TAG]}
            case Measurement():
                metrics = [Metric(name, value, now, 0) for name, value in with_bounds(outcome).items()]
        if (key, stage) not in self._children:
            name = key if stage == "score" else f"{key} ({stage})"
            run = self._client.create_run(
                self._experiment_id, start_time=now - int(1000 * seconds), run_name=name, tags=tags
            )
            self._children[key, stage] = run.info.run_id
        run_id = self._children[key, stage]
        if failed_before:
            for tag in {"prunefront.failure", "prunefront.reason"} & self._client.get_run(
                run_id
            ).data.tags.keys():
                self._client.delete_tag(run_id, tag)
            self._client.log_batch(run_id, tags=[RunTag(*item) for item in tags.items()])
        self._log_batch(run_id, metrics, [Param(*item) for item in flatten(params).items()])
        status = "FAILED" if isinstance(outcome, Failure) else "FINISHED"
        self._client.set_terminated(run_id, status, end_time=now)

    def _write_end(self, status: Status) -> None:
        if self._writer.outages:  # the store may have carried out a request after it
            self._find_children(self.run_id)
        self._client.set_terminated(self.run_id, status)

    def _write_front(self, rows: Sequence[Row], files: Sequence[Path]) -> None:
        # not client.log_table: it appends to what is there, and a resumed study writes its front again
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "front.json").write_text(json.dumps(rows, indent=1))
            (Path(folder) / TABLE).write_text(json.dumps(_table(rows)))
            self._client.log_artifacts(self.run_id, folder)
        for file in files:
            self._client.log_artifact(self.run_id, str(file))
        self._client.set_tag(
            self.run_id, "mlflow.loggedArtifacts", json.dumps([{"path": TABLE, "type": "table"}])
        )

    def _log_batch(
        self,
        run_id: str,
        metrics: "Sequence[Metric]" = (),
        params: "Sequence[Param]" = (),
        tags: "Sequence[RunTag]" = (),
    ) -> None:
        self._client.log_batch(run_id, metrics=metrics, params=params[:BATCH], tags=tags)
        for start in range(BATCH, len(params), BATCH):
            self._client.log_batch(run_id, params=params[start : start + BATCH])


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns nested dicts as MLflow params: `search.candidates` -> "64". None is left out, long values are cut."""
    flat: dict[str, str] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            key = re.sub(r"[^\w./: -]", "_", f"{prefix}{name}")[:MAX_KEY]
            flat[key] = text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}…"
    return flat


def with_bounds(measurement: Measurement) -> dict[str, float]:
    """Returns the values, and the ends `<name>_low`, `<name>_high` of the 95 % interval where noise is known."""
    values = dict(measurement.values)
    for name, noise in measurement.noise.items():
        if name in values:
            values.setdefault(f"{name}_low", values[name] - noise)
            values.setdefault(f"{name}_high", values[name] + noise)
    return values


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the rows in the layout that MLflow's UI shows as a table; nested values are in front.json alone."""
    columns = [name for name, value in (rows[0] if rows else {}).items() if not isinstance(value, Mapping)]
    data = [[_rounded(row.get(name)) for name in columns] for row in rows]
    return {"columns": columns, "data": data}


def _rounded(value: object) -> object:
    """Returns a number with six significant digits, since the UI shows all digits."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _refusal(error: BaseException) -> str:
    """Returns a line on a store's refusal that says what to do; MLflow says little more than the number."""
    line = first_line(error)
    if "error code 401" in line:
        known = "MLFLOW_TRACKING_USERNAME" in os.environ or "MLFLOW_TRACKING_TOKEN" in os.environ
        return (
            f"it {'does not accept the name and password' if known else 'asks for a name and password'} (401); set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if "error code 403" in line or "PERMISSION_DENIED" in line:
        return (
            "this user may not record here (403); ask who owns the experiment for the permission EDIT, or set another "
            "`experiment` under [tracking]; a server that does not know its own host name answers so, too "
            "(`mlflow server --allowed-hosts`)"
        )
    return line


def _version() -> str:
    """Returns the version of the installed distribution; a checkout without an installation has none."""
    try:
        return version("prunefront")
    except PackageNotFoundError:
        return "uninstalled"


def _now() -> int:
    """Returns milliseconds since the epoch."""
    return int(1000 * time.time())


@contextmanager
def _quiet_migrations() -> Iterator[None]:
    """Keeps back the lines that MLflow logs for each of its migrations of a fresh database."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
