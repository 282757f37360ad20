"""Quality of a network: what its task says of it on a part of the data."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from prunefront.errors import PrunefrontError
from prunefront.pipelines.data.samples import Samples, laid_out_inputs, map_tensors
from prunefront.pipelines.measure.dense_outputs import DenseOutputs
from prunefront.pipelines.tasks import Estimate, Task, TaskError
from prunefront.pruners.units.eval_mode import eval_mode
from prunefront.search.outcomes.measurement import NotFinite

Noted = Mapping[str, Tensor]
"""Notes of a task's `judge` on one batch."""

JUDGED_AT_ONCE = 256
"""Number of samples that are judged together."""


def quality(
    model: nn.Module,
    samples: Samples,
    task: Task,
    *,
    teacher: nn.Module | None = None,
    known: DenseOutputs | None = None,
    batch_size: int = JUDGED_AT_ONCE,
    precision: str = "float32",
    channels_last: bool = False,
    yield_point: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Mapping[str, Estimate]:
    """Returns the task's metrics on the samples, plain (never augmented), in order.

    teacher: the dense network, whose outputs are the targets of a task without labels. known: those outputs on these
    samples, as far as they were computed before. precision: "bfloat16" is faster
    on some machines, but moves single samples across a border, and so candidates past each other: rank in float32.
    yield_point: context of each batch. The modules' modes are put back afterwards. Raises NotFinite where an output is
    NaN: the largest of such outputs means nothing.
    """
    device = next(model.parameters()).device
    noted: list[Noted] = []
    seen = 0
    broken = torch.zeros((), dtype=torch.bool, device=device)
    with eval_mode(model):
        for batch in samples.batches(batch_size, device=device):
            with (
                yield_point(),
                torch.inference_mode(),
                torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
            ):
                inputs = laid_out_inputs(batch.inputs, channels_last)
                outputs = inputs.call(model)
                targets = None if known is None else known.beside(outputs, seen, batch.count)
                if targets is None:
                    targets = targets_of(task, batch.targets, teacher, inputs.call)
                seen += batch.count
                for leaf in _pytree.tree_leaves(outputs):
                    if isinstance(leaf, Tensor) and leaf.is_floating_point():
                        broken |= leaf.isnan().any()
                noted.append(judged(task, outputs, targets, batch.count))
    if broken:
        raise NotFinite("the network's outputs are not finite: NaN on some of the samples")
    return scored(task, noted)


def targets_of(task: Task, given: Any, teacher: nn.Module | None, call: Callable[[nn.Module], Any]) -> Any:
    """Returns what a task compares outputs with: the given labels, or what the dense network makes of the inputs.

    Raises PrunefrontError where there is neither.
    """
    if task.labels:
        if given is None:
            raise TaskError(
                "the data have no labels, which this task needs; task.name = 'embedding' needs none"
            )
        return given
    if teacher is None:
        raise PrunefrontError(
            "a task without labels compares networks with the dense one, which is not at hand"
        )
    with torch.no_grad():
        return map_tensors(lambda t: t.float() if t.is_floating_point() else t, call(teacher))


def judged(task: Task, outputs: Any, targets: Any, count: int) -> Noted:
    """Returns the task's notes on a batch, on the CPU. Raises TaskError for notes that are not one row a sample."""
    found = task.judge(outputs, targets)
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise TaskError(
            f"judge of {type(task).__name__} returned a {type(found).__name__}; it must return tensors by name"
        )
    for name, values in found.items():
        if values.ndim == 0 or len(values) != count:
            raise TaskError(
                f"judge of {type(task).__name__} noted {name!r} in shape {tuple(values.shape)} for {count} samples; "
                "the first axis counts samples"
            )
    return {name: values.detach().cpu() for name, values in found.items()}


def scored(task: Task, noted: Iterable[Noted]) -> dict[str, Estimate]:
    """Returns the task's metrics of all notes. Raises TaskError for a metric that is missing, NotFinite for NaN."""
    notes = list(noted)
    if not notes:
        raise TaskError("the data gave no batch to judge networks on")
    names = notes[0].keys()
    for later in notes:
        if later.keys() != names:
            raise TaskError(
                f"judge of {type(task).__name__} noted {', '.join(sorted(names))} of one batch and "
                f"{', '.join(sorted(later)) or 'nothing'} of a later one; the names must stay"
            )
    wanted = [m.name for m in task.metrics]
    if type(task).score is Task.score and (unnoted := [name for name in wanted if name not in names]):
        raise TaskError(
            f"judge of {type(task).__name__} noted no {unnoted[0]!r}, which is among its metrics; it noted "
            f"{', '.join(sorted(names)) or 'nothing'}; note that name, or give the task a score of its own"
        )
    try:
        found = task.score({name: torch.cat([note[name] for note in notes]) for name in names})
    except NotFinite as error:
        raise NotFinite(f"{type(task).__name__}, {', '.join(wanted)}: {error}") from None
    if missing := [name for name in wanted if not isinstance(found.get(name), Estimate)]:
        raise TaskError(
            f"score of {type(task).__name__} returned no {missing[0]!r}, which is among its metrics; it returned "
            f"{', '.join(found) or 'nothing'}"
        )
    return {name: found[name] for name in wanted}
