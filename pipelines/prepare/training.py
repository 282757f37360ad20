"""Checks that what [training] asks for goes together with the study's procedure, bit widths and task."""

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import (
    LATER_TRAINING,
    ClusterSection,
    QuantisationSection,
    ScoringSection,
    TrainingSection,
)
from prunefront.pipelines.loops import make_loop
from prunefront.pipelines.tasks import Task
from prunefront.pruners.procedures import procedures

OURS = tuple(key for key in LATER_TRAINING if key != "loop")
"""Keys of [training] that are about our loop alone."""


def check_settings(
    section: TrainingSection,
    quantisation: QuantisationSection,
    scoring: ScoringSection,
    cluster: ClusterSection,
) -> None:
    """Raises PrunefrontError for options that the procedure or the loop does not have, for a loop that cannot do what
    the study asks for, for batches too small for the processes that share them, and for an average of weights that a
    procedure or a quantiser changes on the way."""
    if section.epochs and section.batch_size < 2 * cluster.processes:
        raise PrunefrontError(
            f"training.batch_size = {section.batch_size} is less than two samples for each of the {cluster.processes} "
            "processes of a worker; raise it, or lower [cluster] gpus_per_worker or processes_per_worker"
        )
    if section.loop is not None:
        if cluster.processes > 1:
            raise PrunefrontError(
                f"training.loop = {section.loop!r} trains in one process, and [cluster] asks for {cluster.processes} a "
                "worker; set gpus_per_worker = 1 or less and leave processes_per_worker out, or leave loop out"
            )
        _check_loop(section, section.loop, quantisation, scoring)
        return
    procedures[section.procedure].check(section.options)
    if section.ema is None:
        return
    if section.procedure != "one_shot":
        raise PrunefrontError(
            f"training.ema averages weights that procedure {section.procedure!r} changes on the way; leave ema out, or "
            "set procedure = 'one_shot'"
        )
    _only_floats(quantisation, "training.ema averages float weights")


def _check_loop(
    section: TrainingSection, name: str, quantisation: QuantisationSection, scoring: ScoringSection
) -> None:
    make_loop(name, section.options)
    if section.procedure != "one_shot":
        raise PrunefrontError(
            f"training.loop = {name!r} trains what was cut before, and procedure {section.procedure!r} cuts on the "
            "way; set procedure = 'one_shot', or leave loop out"
        )
    for key in OURS:
        if getattr(section, key) != TrainingSection.model_fields[key].default:
            raise PrunefrontError(
                f"training.{key} is a setting of our loop, and training.loop = {name!r} takes its place; leave one of "
                "them out"
            )
    if scoring.train_images:
        raise PrunefrontError(
            f"scoring.train_images = {scoring.train_images} trains by our loop, and training.loop = {name!r} asks for "
            "another; set train_images = 0"
        )
    _only_floats(quantisation, f"training.loop = {name!r} trains float weights")


def check_task(section: TrainingSection, name: str, task: Task) -> None:
    """Raises PrunefrontError for label smoothing or mixup where the task's loss takes neither."""
    if task.soft_labels and task.labels:
        return
    for key in ("label_smoothing", "mixup"):
        if value := getattr(section, key):
            raise PrunefrontError(
                f"training.{key} = {value:g} needs a loss of one class a sample, which task {name!r} does not have; "
                f"leave it out, or set task.name = 'classification'"
            )


def _only_floats(quantisation: QuantisationSection, why: str) -> None:
    if short := [bits for bits in quantisation.bits if bits < 32]:
        raise PrunefrontError(
            f"{why}, and quantisation.bits has {short[0]}; set bits = [32], or leave it out"
        )
