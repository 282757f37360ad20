"""The content of an artifact's plan.json and measurement.json, which are not trusted."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from prunefront.pipelines.config.sections import DataSection, ModelSection, TaskSection
from prunefront.pipelines.stores.store import ArtifactError, read_json_file
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.search.outcomes.measurement import ACCURACY
from prunefront.text import LONGEST

S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """The content of plan.json and measurement.json, checked for form. logits: (k, classes), finite.

    integers: the ONNX network computes in integers, so that torch's floats differ from it. plan_key, achieved: key and
    ratios as the files state them. planned_key, planned: key and ratios worked out from the plan. sampled: of a task
    without labels, the number of test samples that the dense network's outputs are published of, and quality on them.
    """

    key: str
    model: ModelSection
    data: DataSection
    plan: PruningPlan
    integers: bool
    plan_key: str
    planned_key: str
    planned: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]
    task: TaskSection
    quality: float
    images: int
    params: int
    achieved: Mapping[str, float]
    logits: NDArray[np.float64]
    sampled: tuple[int, float] | None = None


def read_record(folder: Path) -> ArtifactRecord:
    """Reads plan.json and measurement.json of an artifact. Raises ArtifactError, which names a wrong entry."""
    plan = Entries(folder / "plan.json")
    measurement = Entries(folder / "measurement.json")
    shapes = plan.get("shapes", dict)
    outputs = Entries(measurement.file, measurement.get("outputs", dict), "outputs.")
    achieved = measurement.get("achieved", dict)
    stated = plan.get("plan", dict)
    try:
        pruning = PruningPlan.from_json(stated)
        return ArtifactRecord(
            key=measurement.get("key", str),
            model=plan.section("model", ModelSection),
            data=plan.section("data", DataSection),
            plan=pruning,
            integers=plan.get("onnx", str) == "int8",
            plan_key=str(stated["key"]),
            planned_key=pruning.key(),
            planned=pruning.achieved_ratios(),
            shapes={str(name): tuple(int(n) for n in shape) for name, shape in shapes.items()},
            task=plan.section("task", TaskSection) if "task" in plan.data else TaskSection(),
            quality=float(measurement.get(_metric(measurement), (int, float))),
            images=measurement.get("images", int),
            params=measurement.get("params", int),
            achieved={str(name): float(ratio) for name, ratio in achieved.items()},
            logits=_read_logits(outputs),
            sampled=_read_sampled(measurement),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # raised by plain code on JSON of the wrong form
        raise ArtifactError(
            f"{folder}: plan.json or measurement.json is not what prunefront writes ({type(error).__name__}: "
            f"{error!s:.120})"
        ) from None


def _read_sampled(measurement: "Entries") -> tuple[int, float] | None:
    if measurement.data.get("sampled") is None:
        return None
    found = Entries(measurement.file, measurement.get("sampled", dict), "sampled.")
    return found.get("samples", int), float(found.get("quality", (int, float)))


def _metric(measurement: "Entries") -> str:
    """Returns the name of the metric that the figures are of."""
    if "metric" not in measurement.data:
        return ACCURACY.name
    described = measurement.get("metric", dict)
    return str(Entries(measurement.file, described, "metric.").get("name", str))


class Entries:
    """The entries of a JSON object that is not trusted."""

    def __init__(self, file: Path, data: object = None, prefix: str = "") -> None:
        self.file, self.prefix = file, prefix
        found = read_json_file(file) if data is None else data
        if not isinstance(found, dict):
            raise ArtifactError(f"{file} must hold an object")
        self.data: dict[str, Any] = found

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        if key not in self.data:
            raise ArtifactError(
                f"{self.file} lacks {self.prefix}{key}: only a network of a reported front can be verified"
            )
        value = self.data[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ArtifactError(f"{self.file}: {self.prefix}{key} = {value!r:.60} has the wrong type")
        if isinstance(value, str) and not (value.isprintable() and len(value) <= LONGEST):
            raise ArtifactError(
                f"{self.file}: {self.prefix}{key} = {value!r:.60} is no text that can be shown"
            )
        return value

    def section(self, key: str, kind: type[S]) -> S:
        try:
            return kind.model_validate(self.get(key, dict))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ArtifactError(f"{self.file}: {key}.{where}: {first['msg']}") from None


def _read_logits(outputs: Entries) -> NDArray[np.float64]:
    described = outputs.get("inputs", str)
    logits = np.asarray(outputs.get("logits", list), dtype=np.float64)
    match = re.fullmatch(r"test\[:(\d{1,4})\]", described)
    whole = logits.ndim == 2 and logits.size > 0 and bool(np.isfinite(logits).all())
    if match is None or not whole or len(logits) != int(match[1]):
        raise ArtifactError(
            f"{outputs.file}: outputs must hold k rows of finite logits of 'test[:k]', got {logits.shape} of "
            f"{described!r:.40}"
        )
    return logits
