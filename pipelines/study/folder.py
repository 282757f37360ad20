"""A study's folder: what is its own there, and what a run may go on with or delete."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunefront.atomic import target_name
from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.differences import differences
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.events.redaction import redacted
from prunefront.pipelines.journal.journal import Journal, changed, is_begun, read_json, write_json
from prunefront.pipelines.journal.layout import (
    ARTIFACTS,
    BOUNDS,
    CHECKPOINTS,
    CORRECTED_TABLE,
    FRONT,
    FRONT_PAGE,
    FRONT_PICTURE,
    JOURNAL,
    LATENCY_TABLE,
    LOCK,
    OWNER,
    PARTIAL_FRONT,
    PARTIAL_PAGE,
    PREPARED,
    RUN,
    SPOOL,
    STUDY,
    SUPERSEDED_JOURNAL,
    TIMING,
    TUNE,
    WEIGHTS,
)

OURS = (
    JOURNAL,  # first: without it, nothing that is left counts
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
    FRONT_PAGE,
    FRONT_PICTURE,
    PARTIAL_FRONT,
    PARTIAL_PAGE,
    TIMING,
    CORRECTED_TABLE,
)
"""What a study keeps in its folder, beside the lock; nothing else there is ever deleted."""

KEPT = (LATENCY_TABLE, LOCK, OWNER, RUN)
"""Also ours, and never deleted here: what was measured by a command of its own, and whose the study is."""

NETWORK_KEYS = ("model.", "data.", "dense.", "seed", "space.frozen", "training.weight_decay")
"""What the dense network and its channel graph follow from."""

NETWORK_FILES = ("dense.safetensors", "initial.safetensors", "dense.onnx", "data.json", "graph.json")
"""Where they are kept: hours of training are not repeated because a criterion was misspelt."""


def open_folder(config: StudyConfig, *, resume: bool, fresh: bool) -> None:
    """Makes the study's folder ready: as an earlier run left it to go on, else empty of what is ours, but for the dense
    network of a run that had not begun to search.

    Raises PrunefrontError if an earlier run would be overwritten, cannot be gone on with, or differs.
    """
    folder, kept = config.path, config.path / STUDY
    # a killed `write_json` leaves a temporary file
    names = (target_name(path.name) or path.name for path in folder.iterdir())
    foreign = sorted(name for name in names if name not in (*OURS, *KEPT))
    if foreign and not kept.exists():
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
                f"study {config.name!r} has been searched before ({folder}); --resume goes on with it, --fresh "
                "deletes it, another `name` keeps both"
            )
        different = differences(config, _object(kept)) if kept.exists() else []
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
    write_json(kept, redacted(config.to_json()))


def _object(path: Path) -> Mapping[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise changed(path, "it holds no object")
    return data
