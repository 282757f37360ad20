"""What each small study would do anew, done once for a process's tests: its dense network, and MLflow's database."""

import json
import shutil
import tempfile
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from prunefront.pipelines.config.read import load, parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pipelines.journal.layout import PREPARED
from prunefront.pipelines.prepare.network import NetworkSections, dense_network
from prunefront.pipelines.study.folder import open_folder

_made: dict[str, Path] = {}


def prepare(file: Path, **settings: Any) -> None:
    """Leaves the dense network of a study where an interrupted run of it, in the file's folder, would have left it.

    file: of the study. settings: its content, instead of what the file holds. Its network must be one that this process
    can import. A search that follows begins with what comes after the network.
    """
    config = parse(settings, source=str(file), base=file.parent) if settings else load(file)
    made = _prepared(config)
    with chdir(file.parent):
        config.path.mkdir(parents=True)
        open_folder(config, resume=False, fresh=False)
        shutil.copytree(made, config.path / PREPARED)
        if config.tracking.uri is None and not (database := config.folder / "mlflow.db").exists():
            shutil.copy(empty_mlflow(), database)


def _prepared(config: StudyConfig) -> Path:
    """Returns the folder of a study's network, which is made where there is none with the same settings."""
    sections = config.model_dump(mode="json", include={"model", "data", "dense", "seed", "task", "space"})
    key = json.dumps(sections, sort_keys=True)
    if key not in _made:
        there = config.model_copy(update={"folder": Path(tempfile.mkdtemp(prefix="prepared-"))})
        network = dense_network(there.part(NetworkSections), lambda line: None)
        export(network.model, network.example(2), there.path / PREPARED / "dense.onnx")
        _made[key] = there.path / PREPARED
    return _made[key]


@cache
def empty_mlflow() -> Path:
    """A database as MLflow makes it: a hundred migrations, seconds of work, the same for each study."""
    path = Path(tempfile.mkdtemp(prefix="mlflow-")) / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
