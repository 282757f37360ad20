"""What every worker of a study holds: made once, sent once through the object store, read-only."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.config import ArtifactSection, MeasureSection, ModelSection
from pipelines.data import SearchData
from pipelines.models import build
from pipelines.train import Recipe
from pruners.graph import ChannelGraph


@dataclass(frozen=True, slots=True)
class Workbench:
    """Names, numbers and arrays, no module: each worker builds the network from its factory. Holds no test image.

    weights: the dense network's state dict as numpy arrays, which Ray shares between processes without a copy.
    calibration_images: how many augmented training images re-estimate batch norm statistics.
    validation_limit: how many validation images score a candidate; None = all.
    dense_onnx: the dense network as ONNX, the other half of every timed pair.
    device: of training and scoring. artifact_uri: where workers publish. description: goes into every plan.json.
    """

    study: str
    seed: int
    model: ModelSection
    classes: int
    input_shape: tuple[int, int, int]
    weights: Mapping[str, NDArray[np.generic]]
    graph: ChannelGraph
    data: SearchData
    calibration_images: int
    validation_limit: int | None
    recipe: Recipe
    measure: MeasureSection
    dense_onnx: bytes
    artifact_uri: str
    artifacts: ArtifactSection
    description: Mapping[str, object]
    device: str = "cpu"

    def dense_model(self) -> nn.Module:
        """A fresh copy of the dense network in eval mode, with its own memory."""
        model = build(self.model, classes=self.classes, input_shape=self.input_shape)
        model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in self.weights.items()})
        return model.to(self.device).eval()


def arrays(model: nn.Module) -> dict[str, NDArray[np.generic]]:
    """The state dict as numpy arrays."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}
