"""One network of a front, as it is read from front.json and written there."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from prunefront.errors import PrunefrontError
from prunefront.pipelines.journal.typed_json import Printable, first_fault
from prunefront.pruners.graph.pruning_plan import DENSE, PruningPlan
from prunefront.search.outcomes.measurement import ACCURACY, COSTS, Measurement, Metric, Objective

Label = Annotated[Printable, Field(max_length=300)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0, le=1 << 62, strict=False)]  # 1e6 is a count too


def front_objectives(metric: Metric) -> tuple[Objective, ...]:
    """Returns what decides who is on a front. The ratio of latencies is steadier than milliseconds."""
    return metric, COSTS["latency_ratio"], COSTS["size_bytes"]


class FrontError(PrunefrontError):
    """The front cannot be read, or no network of it is what was asked for."""


@dataclass(frozen=True, slots=True, config=ConfigDict(strict=True, allow_inf_nan=False))
class FrontRow:
    """One network of a front: quality by the task's metric, 95 % intervals, latencies on the study's runtime.

    achieved: channel group -> fraction dropped. control: the kind of control that this network is for the network whose
    key is `of`; "" for a network that the search found. made: what the network has besides fewer channels, in a few
    words (`describe_plan`).
    """

    key: Label
    quality: float
    quality_low: float
    quality_high: float
    images: Count
    latency_ms: Positive
    latency_ratio: Positive
    latency_ratio_low: Positive
    latency_ratio_high: Positive
    dense_latency_ms: Positive
    size_bytes: Count
    macs: Count
    params: Count
    achieved: dict[Label, float]
    artifact: Annotated[Printable, Field(max_length=2000)] | None = None
    validation_quality: float | None = None
    origin: Label = ""
    epochs: Count = 0
    on_test_front: bool = True
    control: Label = ""
    of: Label = ""
    made: Label = ""
    metric: Metric = ACCURACY

    def __post_init__(self) -> None:
        if self.metric.scale == "share" and self.metric.chance != 0.0:
            for name in QUALITIES[:3]:
                if not 0 <= getattr(self, name) <= 1:
                    raise ValueError(f"{name}: it must be at least 0, and less than or equal to 1")

    @property
    def accuracy(self) -> float:
        """The quality, of a front whose metric is accuracy. Raises AttributeError for another metric."""
        if self.metric.name != ACCURACY.name:
            raise AttributeError(f"this front's networks are judged by {self.metric.name}: take row.quality")
        return self.quality

    @property
    def shown(self) -> tuple[float, ...]:
        """Quality, low and high end as a person reads them: a share in percent."""
        return shown(self.metric, self.quality, self.quality_low, self.quality_high)

    @property
    def is_dense(self) -> bool:
        """True for the network that the others are compared with."""
        return self.key == DENSE

    @classmethod
    def from_json(cls, data: object) -> "FrontRow":
        """Reads a row, which may come from elsewhere; unknown fields are left out. Raises FrontError, one line."""
        if not isinstance(data, Mapping):
            raise FrontError("row None of the front is not valid: it must be an object")
        try:
            metric = ACCURACY if data.get("metric") is None else Metric(**data["metric"])
            own = {_own(name, metric): name for name in QUALITIES}
            found = {own.get(name, name): value for name, value in data.items()}
            return cls(
                **{f.name: found[f.name] for f in fields(cls) if f.name in found and f.name != "metric"},
                metric=metric,
            )
        except (TypeError, AttributeError, PrunefrontError) as error:
            raise FrontError(
                f"row {data.get('key')!r:.80} of the front is not valid: metric: {error}"
            ) from None
        except ValidationError as error:
            raise FrontError(
                f"row {data.get('key')!r:.80} of the front is not valid: {_named(first_fault(error), metric)}"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """Returns the row under the metric's own names; what the metric is, for another one than accuracy."""
        return under_own_names(asdict(self), self.metric)


def _named(fault: str, metric: Metric) -> str:
    """Returns a fault whose place has the metric's own name."""
    place, colon, rest = fault.partition(":")
    return _own(place, metric) + colon + rest if place in QUALITIES else fault


QUALITIES = ("quality", "quality_low", "quality_high", "validation_quality")
"""Fields that are written under the metric's own name."""


def _own(name: str, metric: Metric) -> str:
    return name.replace("quality", metric.name)


def shown(metric: Metric, *values: float) -> tuple[float, ...]:
    """Returns values of a metric as a person reads them: a share in percent."""
    return tuple(100 * value if metric.scale == "share" else value for value in values)


def under_own_names(row: dict[str, Any], metric: Metric) -> dict[str, Any]:
    """Returns a row's fields with those of its quality under the metric's own name.

    What the metric is goes beside them, unless it is accuracy.
    """
    described = row.pop("metric")
    named = {_own(name, metric) if name in QUALITIES else name: value for name, value in row.items()}
    return named if metric == ACCURACY else {**named, "metric": described}


def read_rows(data: object) -> list[FrontRow]:
    """Reads the content of a front.json, fastest first. Raises FrontError when it is something else, or empty."""
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise FrontError("the front must be a list of at least one row")
    return arrange(FrontRow.from_json(row) for row in data)


def measurement_of(row: FrontRow) -> Measurement:
    """Returns a row's objectives with the half-widths of their intervals."""
    return Measurement(
        {
            row.metric.name: row.quality,
            "latency_ratio": row.latency_ratio,
            "size_bytes": float(row.size_bytes),
        },
        {
            row.metric.name: (row.quality_high - row.quality_low) / 2,
            "latency_ratio": (row.latency_ratio_high - row.latency_ratio_low) / 2,
        },
    )


def arrange(rows: Iterable[FrontRow]) -> list[FrontRow]:
    """Returns the rows fastest first. Raises FrontError for no row, and for two of one key."""
    arranged = sorted(rows, key=lambda row: (row.latency_ms, row.key))
    if not arranged:
        raise FrontError("the front must be a list of at least one row")
    if twice := [key for key, count in Counter(row.key for row in arranged).items() if count > 1]:
        raise FrontError(f"the front holds {', '.join(sorted(twice))} more than once")
    return arranged


def describe_plan(plan: PruningPlan) -> str:
    """Returns what a plan does besides taking channels, in a few words: blocks gone, compact layers, bit widths."""
    parts = []
    if gone := sum(s.units - len(s.kept) for s in plan.stacks):
        parts.append(f"−{gone} block{'s' * (gone > 1)}")
    kinds = Counter(p.choice.granularity for p in plan.layers if p.count is not None)
    parts += [f"{kinds[name]} {name}" for name in sorted(kinds)]
    if bits := sorted({*plan.bit_widths().values()}):
        parts.append(f"{bits[0]} bit" if len(bits) == 1 else f"{bits[0]}–{bits[-1]} bit")
    return ", ".join(parts)
