"""The workbench that every worker of a study holds: made once, sent once, read-only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import ArtifactSection, MeasureSection, ModelSection, TaskSection
from prunefront.pipelines.data import Parts, SearchData
from prunefront.pipelines.data.samples import map_tensors
from prunefront.pipelines.measure.dense_outputs import DenseOutputs
from prunefront.pipelines.measure.target import Target
from prunefront.pipelines.models import build
from prunefront.pipelines.stores.spool import Refuge
from prunefront.pipelines.workers.train import Recipe
from prunefront.pruners.controls import Start
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.statistics import Batch
from prunefront.search.space.candidate import Candidate

DEFAULT_TASK = TaskSection()
"""Section of a study that names no task."""


@dataclass(frozen=True, slots=True)
class Job:
    """One network to be made, measured and published.

    start: what it is cut from, see `controls.Rival`. control: which control it is, and `of` which network; "" =
    it was found by the search. compared: whether it is at rungs, and may be stopped there.
    """

    name: str
    candidate: Candidate
    plan: PruningPlan
    epochs: int
    start: Start = "dense"
    control: str = ""
    of: str = ""
    compared: bool = False


@dataclass(frozen=True, slots=True)
class Workbench:
    """Names, numbers and arrays, no module: each worker builds the network from its factory, the task from its name.
    Holds no test image.

    weights: the dense network's state dict as numpy arrays, which Ray shares between processes without a copy.
    calibration_images: how many augmented training images re-estimate batch norm statistics.
    validation_limit: how many validation images score a candidate; None = all.
    dense_onnx: the dense network as ONNX, the other half of every timed pair.
    recipe, procedure, options: how a candidate is trained; loop: in place of our own, with these options. scratch: how
    a network is that starts without training.
    initial: the weights before the dense training, where they are known.
    train_images: on how many a candidate is trained before it is scored; 0 = it is scored as it was cut.
    device: of training and scoring. processes: that share a training, each with a device of its own. target: the node
    that measures for all; None = each worker measures where it is.
    artifact_uri: where workers publish; refuge: where that waits while the store is away, None = nowhere. description:
    goes into every plan.json. repair: what weights are fitted by after a cut; moments: of the dense network, by weight,
    None = not gathered. targets: the dense network's outputs on validation data, for a task without labels.
    score_seconds, step_seconds: most seconds of a score, and of an epoch or of measuring and publishing; None = any.
    """

    study: str
    seed: int
    model: ModelSection
    classes: int | None
    input_shape: tuple[int, ...] | None
    weights: Mapping[str, NDArray[np.generic]]
    graph: ChannelGraph
    data: SearchData | Parts
    calibration_images: int
    validation_limit: int | None
    recipe: Recipe
    scratch: Recipe
    initial: Mapping[str, NDArray[np.generic]] | None
    procedure: str
    options: Mapping[str, object]
    measure: MeasureSection
    dense_onnx: bytes
    artifact_uri: str
    artifacts: ArtifactSection
    description: Mapping[str, object]
    device: str = "cpu"
    train_images: int = 0
    refuge: Refuge | None = None
    target: Target | None = None
    task: TaskSection = DEFAULT_TASK
    repair: Literal["moments", "criterion", "none"] = "criterion"
    moments: Mapping[str, NDArray[np.float64]] | None = None
    loop: str | None = None
    targets: DenseOutputs | None = None
    processes: int = 1
    score_seconds: float | None = None
    step_seconds: float | None = None

    def on_this_machine(self) -> "Workbench":
        """Returns the bench as this process can use it: on the CPU where GPUs were asked for and torch sees none."""
        return self if torch.cuda.is_available() else replace(self, device="cpu")

    def dense_model(self) -> nn.Module:
        """Returns a fresh copy of the dense network in eval mode, with its own memory."""
        return self._holding(self.weights)

    def untrained(self, start: Start, seed: int) -> nn.Module:
        """A dense-sized network before any training: newly drawn by its factory, or the one that was trained."""
        if start == "initial":
            if self.initial is None:
                raise PrunefrontError(
                    "the weights before training are not known: give model.initial, or let the study train"
                )
            return self._holding(self.initial)
        model = build(self.model, classes=self.classes, input_shape=self.input_shape, seed=seed)
        return model.to(self.device).eval()

    def _holding(self, weights: Mapping[str, NDArray[np.generic]]) -> nn.Module:
        model = build(self.model, classes=self.classes, input_shape=self.input_shape)
        model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
        return model.to(self.device).eval()


def arrays(model: nn.Module) -> dict[str, NDArray[np.generic]]:
    """Returns the state dict as numpy arrays."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}


def on_device(batches: Sequence[Batch], device: str) -> list[Batch]:
    """Returns batches whose inputs and labels lie on a device."""

    return [map_tensors(lambda tensor: tensor.to(device), batch) for batch in batches]
