"""A study's folder, made ready for a run: left as it is to go on, or emptied of what belongs to the study."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunefront.atomic import target_name
from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.differences import differences
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.events.redaction import redact
from prunefront.pipelines.journal.journal import Journal, altered_file_error, is_begun, read_json, write_json
from prunefront.pipelines.journal.layout import (
    ARTIFACTS,
    BOUNDS,
    CHECKPOINTS,
    CORRECTED_TABLE,
    EARLIER_PAGES,
    FRONT,
    JOURNAL,
    LATENCY_TABLE,
    LOCK,
    MISTAKES,
    OWNER,
    PARTIAL_FRONT,
    PREPARED,
    REPORT,
    RUN,
    SPOOL,
    STUDY,
    SUPERSEDED_JOURNAL,
    TIMING,
    TUNE,
    WEIGHTS,
)

OURS = (
    JOURNAL,  # first: without a journal the other files count for nothing
    SUPERSEDED_JOURNAL,
    STUDY,
    PREPARED,
    WEIGHTS,
    TUNE,
    SPOOL,
    CHECKPOINTS,
    ARTIFACTS,
    FRONT,
    BOUNDS,
    MISTAKES,
    REPORT,
    PARTIAL_FRONT,
    *EARLIER_PAGES,
    TIMING,
    CORRECTED_TABLE,
)
"""Files and folders of a study that a fresh start deletes; nothing else in its folder is ever deleted."""

NEVER_DELETED = (LATENCY_TABLE, LOCK, OWNER, RUN)
"""Files of a study that a fresh start leaves: the latency table of another command, and the records of its owner."""

NETWORK_KEYS = ("model.", "data.", "dense.", "seed", "space.frozen", "training.weight_decay")
"""Beginnings of the keys that decide the dense network and its channel graph."""

NETWORK_FILES = ("dense.safetensors", "initial.safetensors", "dense.onnx", "data.json", "graph.json")
"""Files of the dense network, which stay while those keys do: a misspelt criterion must not cost hours of training."""


def open_folder(config: StudyConfig, *, resume: bool, fresh: bool) -> None:
    """Makes the study's folder ready for a run.

    To go on, it stays as an earlier run left it. Else what belongs to the study is deleted, but for the dense network
    of a run that had not begun to search. Raises PrunefrontError where an earlier run would be overwritten, where it
    cannot go on, and where its configuration differs.
    """
    folder, study = config.path, config.path / STUDY
    # a killed `write_json` leaves a temporary file
    names = (target_name(path.name) or path.name for path in folder.iterdir())
    foreign = sorted(name for name in names if name not in (*OURS, *NEVER_DELETED))
    if foreign and not study.exists():
        raise PrunefrontError(
            f"{folder} holds {', '.join(foreign[:3])} and no study; give the study another `name` or `folder`"
        )
    different, prepared = [], False
    if not fresh:
        with Journal(folder / JOURNAL) as journal:
            begun = is_begun(journal.events)
        prepared = (folder / PREPARED / "graph.json").exists()
        if begun and not resume:
            raise PrunefrontError(
                f"study {config.name!r} has been searched before ({folder}); --resume continues it, --fresh "
                "deletes it, another `name` keeps both"
            )
        kept = kept_config(folder)
        different = [] if kept is None else differences(config, kept)
        if begun and different:
            raise PrunefrontError(
                f"study {config.name!r} was started with another {', '.join(different)}; set that back, or start "
                "again with --fresh or another `name`"
            )
        if begun and not (prepared and study.exists()):
            raise PrunefrontError(
                f"study {config.name!r} cannot continue: {folder / PREPARED if study.exists() else study} is missing; "
                "restore it, or start again with --fresh"
            )
        if begun or (resume and prepared and not different):
            return
    keep_network = not fresh and prepared and not any(key.startswith(NETWORK_KEYS) for key in different)
    for name in OURS:
        path = folder / name
        if name == PREPARED and keep_network:
            for file in path.iterdir():
                if file.name not in NETWORK_FILES:
                    file.unlink()
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in folder.iterdir():
        if target_name(path.name) in OURS:
            path.unlink()
    write_json(study, redact(config.to_json()))


def kept_config(folder: Path) -> Mapping[str, Any] | None:
    """Returns the configuration that an earlier run kept in a study's folder, None without one.

    Raises PrunefrontError for a file that is not what a run wrote.
    """
    path = folder / STUDY
    if not path.exists():
        return None
    data = read_json(path)
    if not isinstance(data, dict):
        raise altered_file_error(path, "it holds no object")
    return data
