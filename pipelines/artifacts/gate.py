"""Requirements that a fetched network must meet before it is deployed, on figures that this machine measures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.record import Entries
from prunefront.pipelines.data import Samples
from prunefront.pipelines.formats.example import feed
from prunefront.pipelines.formats.onnx_runtime import bound_call, open_session
from prunefront.pipelines.measure.latency import Latency, compare
from prunefront.pipelines.measure.timing_lock import exclusive
from prunefront.search.outcomes.constraints import EXACT, Bound, check_compatible, check_metrics, parse
from prunefront.search.outcomes.measurement import Metric

LATENCIES = ("latency_ms", "latency_ratio")


@dataclass(frozen=True, slots=True)
class Requirement:
    """A bound, the figure that it was held against as text, and the outcome."""

    asked: str
    found: str
    ok: bool


def read_requirements(texts: Sequence[str], metric: Metric) -> tuple[Bound, ...]:
    """Returns bounds as a study file writes them. Raises ConstraintError for other text, and for other metrics."""
    bounds = tuple(parse(text, any_metric=True) for text in texts)
    check_metrics(bounds, [metric])
    check_compatible(bounds)
    return bounds


def needs_dense_folder(bound: Bound) -> bool:
    """Tells whether a bound compares latencies, for which both networks are timed in turn."""
    return bound.measured == "latency_ratio"


def held(
    bounds: Sequence[Bound],
    folder: Path,
    *,
    metric: Metric,
    quality: float | None,
    test: Samples,
    dense: Path | None,
    measured: Callable[[Path], float],
) -> Iterator[Requirement]:
    """Yields each bound with the figure of the network in `folder`.

    quality: measured on the test data here; None where it could not be. Latency is measured here, in ONNX Runtime with
    the batch size and the threads of the study, and compared with that of the dense network in the folder `dense`,
    timed in turn. Costs are the recorded ones. measured: returns the quality of another folder's network; `dense` is
    measured with it where a bound is relative to its quality, else that is as the artifact records it. Raises
    PrunefrontError where a bound is relative to what is not known.
    """
    recorded = Entries(folder / "measurement.json")
    values: dict[str, tuple[float, str]] = {
        name: (float(recorded.get(name, (int, float))), "as recorded")
        for name in EXACT
        if any(bound.name == name for bound in bounds)
    }
    if quality is not None:
        values[metric.name] = quality, f"measured on {recorded.get('images', int):,} test samples"
    if any(bound.measured in LATENCIES for bound in bounds):
        values |= _latencies(folder, dense, test, recorded, bounds)
    for bound in bounds:
        if bound.measured not in values:
            yield Requirement(str(bound), "not measured", False)
            continue
        reference = {}
        if bound.relative and not needs_dense_folder(bound):
            reference = {bound.name: _of_dense(bound, folder, dense, metric, measured)}
        value, how = values[bound.measured]
        limit = bound.limit(reference)
        ok = value >= limit if bound.side == "low" else value <= limit
        against = f" (limit {limit:.6g})" if bound.relative else ""
        yield Requirement(str(bound), f"{value:.6g}{against}, {how}", ok)


def _of_dense(
    bound: Bound, folder: Path, dense: Path | None, metric: Metric, measured: Callable[[Path], float]
) -> float:
    """Returns the dense network's value that a bound is relative to."""
    if bound.name == metric.name and dense is not None:
        return measured(dense)
    entries = Entries(folder / ("measurement.json" if bound.name == metric.name else "plan.json"))
    known = entries.get("dense", dict) if "dense" in entries.data else {}
    value = known.get(bound.name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise PrunefrontError(
            f"'{bound}' is relative to the dense network, of which {folder} records no {bound.name}; fetch it with "
            "--key dense, and name its folder with --dense"
        )
    return float(value)


def _latencies(
    folder: Path, dense: Path | None, test: Samples, recorded: Entries, bounds: Sequence[Bound]
) -> dict[str, tuple[float, str]]:
    where = Entries(recorded.file, recorded.get("environment", dict), "environment.")
    batch, threads = where.get("batch_size", int), where.get("threads", int)
    if dense is None and (relative := [bound for bound in bounds if needs_dense_folder(bound)]):
        raise PrunefrontError(
            f"'{relative[0]}' compares with the dense network, timed in turn with this one; fetch it with --key dense, "
            "and name its folder with --dense"
        )
    mine = _call(folder, test, batch, threads)
    other = mine if dense is None else _call(dense, test, batch, threads)
    with exclusive():
        found: Latency = compare(other, mine)
    how = f"timed here, batch {batch}, {threads} thread{'s' * (threads > 1)}"
    values: dict[str, tuple[float, str]] = {"latency_ms": (found.ms, how)}
    if dense is not None:
        ends = f"{found.ratio_low:.3f} to {found.ratio_high:.3f}"
        values["latency_ratio"] = found.ratio, f"{ends}, {how}, in turn with {dense}"
    return values


def _call(folder: Path, test: Samples, batch: int, threads: int) -> Callable[[], None]:
    session = open_session(folder / "model.onnx", threads)
    samples = next(iter(test.first(batch).batches(batch)))
    inputs: Mapping[str, Any] = feed(session, samples.inputs.args, samples.inputs.kwargs)
    return bound_call(session, inputs)
