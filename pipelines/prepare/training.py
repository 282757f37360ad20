"""Checks that what [training] asks for goes together with the study's procedure, bit widths and task."""

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import QuantisationSection, TrainingSection
from prunefront.pipelines.tasks import Task


def check_settings(section: TrainingSection, quantisation: QuantisationSection) -> None:
    """Raises PrunefrontError for an average of weights that a procedure or a quantiser changes on the way."""
    if section.ema is None:
        return
    if section.procedure != "one_shot":
        raise PrunefrontError(
            f"training.ema averages weights that procedure {section.procedure!r} changes on the way; leave ema out, or "
            "set procedure = 'one_shot'"
        )
    _only_floats(quantisation, "training.ema averages float weights")


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
