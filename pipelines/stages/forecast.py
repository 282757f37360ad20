"""Latency in the first stage: predictions under names of their own, never as measurements.

`predicted_latency_ratio` and `predicted_latency_ms` stand in for what a study file asks of `latency_ratio` and
`latency_ms` until networks are measured (docs/decisions/0008-latency-table.md).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import GoalSection, MeasureSection, SpaceSection
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.journal.evaluations import Evaluation
from prunefront.pipelines.journal.journal import altered_file_error, read_json, write_json
from prunefront.pipelines.journal.layout import LATENCY_TABLE, PREPARED
from prunefront.pipelines.prepare.feasibility import OverBudget
from prunefront.pipelines.prepare.network import example_input
from prunefront.pipelines.stages.latency_table import (
    LatencyTable,
    PointTimer,
    Subject,
    check_fits,
    design,
    device,
    digest,
    empty_table,
    measure,
    progress,
    read,
    widths,
)
from prunefront.pipelines.workers.workbench import Workbench
from prunefront.pipelines.workers.workers import Process, Scoring, Workers
from prunefront.pruners.graph.pruning_plan import DENSE, PruningPlan
from prunefront.search.outcomes.constraints import Bound, resolve
from prunefront.search.outcomes.measurement import Constraint, Measurement, Objective, Outcome
from prunefront.search.prediction.latency import LatencyPredictor, Point, PredictionError
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.costs import Costs
from prunefront.search.space.encoding import Encoding, Floats, Rows
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import SearchSpace

PREDICTED: Mapping[str, Objective] = {
    "latency_ratio": Objective("predicted_latency_ratio", "min", "of dense"),
    "latency_ms": Objective("predicted_latency_ms", "min", "ms"),
}
"""Measured objective -> the predicted one that stands in for it in the first stage."""

KEPT = "latency.json"
"""In a study's prepared/: the predictor that its first stage uses, so that a study that goes on predicts the same."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """table: where the predictor comes from, with its device. bounds: on `latency_ratio` and `latency_ms`, measured."""

    predictor: LatencyPredictor
    table: LatencyTable
    bounds: tuple[Constraint, ...] = ()

    def ratio(self, plan: PruningPlan) -> float:
        """Predicted latency of a plan of channels, relative to the dense network's."""
        return self.predictor.ratio(kept_units(plan))

    def check(self, plan: PruningPlan) -> None:
        """Raises OverBudget where not even the favourable end of the prediction's interval is within the bounds.

        The dense network is never refused, as everything is compared with it.
        """
        if not self.bounds or plan.key() == DENSE:
            return
        ratio = self.ratio(plan)
        low, high = self.predictor.interval(ratio)
        for bound in self.bounds:
            scale = self.scale(bound.name)
            if low * scale > bound.high or high * scale < bound.low:
                raise OverBudget(
                    f"{bound.name} is predicted at {ratio * scale:.3g} ({low * scale:.3g} to {high * scale:.3g}), "
                    "which is "
                    f"outside {_bound(bound)}"
                )

    def predicted(self, plan: PruningPlan, measurement: Measurement) -> Measurement:
        """The measurement with predictions beside it; their noise is the prediction's interval, 0 for dense itself."""
        dense = plan.key() == DENSE
        ratio = 1.0 if dense else self.ratio(plan)
        half = 0.0 if dense or math.isinf(self.predictor.half_width) else ratio * self.predictor.half_width
        scales = {objective.name: self.scale(name) for name, objective in PREDICTED.items()}
        return Measurement(
            {**measurement.values, **{name: ratio * scale for name, scale in scales.items()}},
            dict(measurement.noise) | {name: half * scale for name, scale in scales.items() if half},
        )

    def known(
        self, rows: Iterable[Evaluation], planned: Callable[[Candidate], PruningPlan]
    ) -> Iterator[Evaluation]:
        """Returns an earlier study's scores with predictions beside them, without what is predicted over budget."""
        for row in rows:
            if isinstance(row.outcome, Measurement):
                try:
                    yield replace(row, outcome=self.predicted(planned(row.candidate), row.outcome))
                except OverBudget:
                    continue

    def least(self, space: SearchSpace) -> float:
        """The smallest predicted ratio of 2,000 networks of the space and its smallest."""
        keeps = {g.name: g.keeps for g in space.groups}
        names = list(self.predictor.groups)
        sample = [{n: k[0] for n, k in keeps.items()}, *design(keeps, single=0, joint=2000)]
        rows = [[s.get(n, self.predictor.groups[n]) for n in names] for s in sample]
        return float(self.predictor.predict(np.array(rows, dtype=float)).min())

    def check_reach(self, space: SearchSpace) -> None:
        """Raises PrunefrontError where no network of the space can meet an upper bound, with what is possible."""
        if not self.bounds:
            return
        least = self.least(space)
        low, _ = self.predictor.interval(least)
        for bound in self.bounds:
            scale = self.scale(bound.name)
            if low * scale > bound.high:
                raise PrunefrontError(
                    f"no network of the space is predicted to have {bound.name} at most {bound.high:.4g}: the "
                    "fastest has "
                    f"about {least * scale:.3g}; allow that much, or raise space.max_ratio"
                )

    def points(self, measured: Iterable[tuple[PruningPlan, Measurement]], origin: str) -> list[Point]:
        """Measured networks as points for the predictor; the dense one, and what is not of channels alone, left out."""
        found = []
        for plan, measurement in measured:
            if plan.key() == DENSE or not of_channels(plan):
                continue
            ratio, noise = measurement["latency_ratio"], measurement.noise.get("latency_ratio", 0.0)
            found.append(
                Point(kept_units(plan), ratio, max(ratio - noise, 0.01 * ratio), ratio + noise, origin)
            )
        return found

    def corrected(self, points: Sequence[Point]) -> tuple["Forecast", PredictionError]:
        """The forecast fitted on these measurements as well, and how far it was off them before."""
        error = self.predictor.errors(points)
        table = replace(self.table, points=(*self.table.points, *points))
        return replace(self, predictor=self.predictor.updated(points), table=table), error

    def scale(self, name: str) -> float:
        """Returns the factor from a ratio to a value of `latency_ratio` or `latency_ms`."""
        return self.table.dense_ms if name == "latency_ms" else 1.0

    def to_json(self) -> dict[str, Any]:
        """Without the bounds, which are the study's."""
        return {"predictor": self.predictor.to_json(), "table": self.table.to_json()}


class PredictingPool:
    """A pool whose measurements come with the predicted latency of their plan."""

    def __init__(self, pool: Scoring, forecast: Forecast) -> None:
        self._pool, self._forecast = pool, forecast
        self._plans: dict[str, PruningPlan] = {}

    @property
    def free(self) -> int:
        return self._pool.free

    @property
    def in_flight(self) -> int:
        return self._pool.in_flight

    def submit(self, name: str, plan: PruningPlan) -> None:
        self._plans[name] = plan
        self._pool.submit(name, plan)

    def next(self, timeout: float) -> tuple[str, Outcome, float | None] | None:
        finished = self._pool.next(timeout)
        if finished is None:
            return None
        name, outcome, seconds = finished
        if isinstance(outcome, Measurement):
            outcome = self._forecast.predicted(self._plans[name], outcome)
        return name, outcome, seconds


@dataclass(frozen=True, slots=True)
class PredictedCosts:
    """Costs that follow from a candidate, predicted latency among them, for many candidates at once.

    exact: those of the plan; None where they are not known.
    """

    forecast: Forecast
    exact: Costs | None

    @property
    def amounts(self) -> frozenset[str]:
        """The costs that there are."""
        return frozenset(self.exact.amounts if self.exact is not None else ()) | {
            o.name for o in PREDICTED.values()
        }

    def __call__(self, encoding: Encoding, rows: Rows) -> dict[str, Floats]:
        """Cost -> values [n] of candidates given as rows [n, groups of the space]."""
        predictor = self.forecast.predictor
        shares = dict(
            zip(
                (g.name for g in encoding.space.groups),
                encoding.look_up(encoding.kept_fraction, rows).T,
                strict=True,
            )
        )
        kept = [np.rint(shares.get(g, np.ones(len(rows))) * units) for g, units in predictor.groups.items()]
        ratio = predictor.predict(np.stack(kept, axis=1))
        scaled = {o.name: ratio * self.forecast.scale(name) for name, o in PREDICTED.items()}
        return {**(self.exact(encoding, rows) if self.exact is not None else {}), **scaled}


class TimingWorker:
    """A `PointTimer` in a worker process. Networks are timed where candidates will be, too."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._timer: PointTimer | None = None

    def device(self) -> dict[str, Any]:
        """Describes the machine that networks are timed on: the worker's own, or the study's device."""
        target, section = self._bench.target, self._bench.measure
        return device(section) if target is None else target.run(device, section)

    def time(self, kept: Mapping[str, int]) -> tuple[Point, float]:
        """Times a network; see `PointTimer.time`."""
        if self._timer is None:
            bench = self._bench.on_this_machine()
            model = bench.dense_model().cpu()
            example = example_input(model, bench.data, max(2, bench.measure.batch_size))
            network = Subject(model, bench.graph, bench.dense_onnx, example)
            self._timer = PointTimer(network, bench.measure, bench.target)
            self._timer.time({})
        return self._timer.time(kept)


def kept_units(plan: PruningPlan) -> dict[str, int]:
    """Group -> units that stay, of the groups that lose some."""
    return {g.name: len(g.kept) for g in plan.groups if len(g.kept) < g.units}


def of_channels(plan: PruningPlan) -> bool:
    """Tells whether a plan does nothing but cut channels, which is all that a latency table knows about."""
    return not plan.stacks and not plan.layers


def limits(bounds: Sequence[Bound]) -> tuple[Constraint, ...]:
    """The bounds on latency among a study's, on what is measured: `latency_ms <= 60%` is one on `latency_ratio`."""
    return resolve(bounds, {}, tuple(PREDICTED))


def as_predicted(constraints: Sequence[Constraint]) -> tuple[Constraint, ...]:
    """Bounds on measured latency as bounds on predicted latency; others as they are."""
    return tuple(replace(c, name=PREDICTED[c.name].name) if c.name in PREDICTED else c for c in constraints)


def steered(task: Problem, found: Forecast) -> Problem:
    """The problem as the first stage sees it: predictions in the place of measured latency, and known beforehand."""
    return replace(
        task,
        objectives=tuple(PREDICTED.get(o.name, o) for o in task.objectives),
        constraints=(*task.constraints, *as_predicted(found.bounds)),
        costs=PredictedCosts(found, task.costs),
    )


@dataclass(frozen=True, slots=True)
class ForecastSections:
    """The settings that a forecast follows from. path: the study's folder."""

    seed: int
    path: Path
    goal: GoalSection
    space: SpaceSection
    measure: MeasureSection


def forecast(
    study: ForecastSections, bench: Workbench, task: Problem, display: Display, workers: Workers
) -> Forecast | None:
    """Returns the study's forecast: an earlier run's, one of its table, or one of a table that is measured now.

    None where latency neither steers the search nor a table is given; and where only bounds name it but more than
    channels can be cut, so that it cannot be predicted. Networks are timed where a worker runs. Raises
    PrunefrontError for a table of something else, and bounds that nothing meets; and where latency cannot be predicted
    but is an objective or has a table.
    """
    given = study.measure.latency_table
    bounds = limits(study.goal.constraints)
    wanted = given is not None or any(o.name in PREDICTED for o in task.objectives)
    if not wanted and not bounds:
        return None
    channels_only = all(g.kind == "channels" for g in task.space.groups)
    if not wanted and not channels_only:
        display.say(
            "bounds on latency are checked on measured networks only: only cuts of channels are predicted"
        )
        return None
    if not channels_only:
        raise PrunefrontError(
            "latency is predicted from the widths of channel groups, but the space also varies layers or blocks; take "
            "latency off goal.objectives and measure.latency_table, or set space.granularities = "
            "['channel'] and "
            "quantisation.bits = [32]"
        )
    path = study.path / PREPARED / KEPT
    if path.exists():
        found = kept_forecast(path, task.space, bounds)
    else:
        table = _table(study, bench, task, given, display, workers)
        found = Forecast(table.predictor(), table, bounds)
        write_json(path, found.to_json())
    if math.isinf(found.predictor.half_width) and bounds:
        display.say(
            f"the latency table has too few well measured networks ({len(found.table.points)}) to estimate the error "
            "of "
            "predictions, so no candidate is refused because of them"
        )
    error = found.predictor.joint
    display.say(
        "latency is predicted in the first stage; leave-one-out on the table: "
        f"{error if error is not None else 'too few networks to estimate it'}"
    )
    found.check_reach(task.space)
    return found


def kept_forecast(path: Path, space: SearchSpace, bounds: tuple[Constraint, ...] = ()) -> Forecast:
    """Reads the forecast of an earlier run. Raises PrunefrontError where it does not fit the space."""
    data = read_json(path)
    try:
        table = LatencyTable.from_json(data["table"])
        predictor = LatencyPredictor.from_json(data["predictor"])
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, PrunefrontError) as error:
        raise altered_file_error(path, f"{type(error).__name__}: {error}") from None
    groups = {g.name: g.units for g in space.groups}
    if predictor.operators != table.operators or not groups.items() <= predictor.groups.items():
        raise altered_file_error(path, "it predicts another network")
    return Forecast(predictor, table, bounds)


def _table(
    study: ForecastSections,
    bench: Workbench,
    task: Problem,
    given: Path | None,
    display: Display,
    workers: Workers,
) -> LatencyTable:
    with workers.process(TimingWorker) as worker:
        where = worker.call("device")
        path = given or study.path / LATENCY_TABLE
        if given is None:
            _measure(study, bench, path, where, worker, display)
        table = read(path)
        network = digest(bench.graph, bench.dense_onnx)
        for line in check_fits(table, path, network, where, {g.name: g.keeps for g in task.space.groups}):
            display.say(line)
        return table


def _measure(
    study: ForecastSections,
    bench: Workbench,
    path: Path,
    where: Mapping[str, Any],
    worker: Process,
    display: Display,
) -> None:
    keeps = widths(bench.graph, study.space)
    todo = design(keeps, seed=study.seed)
    empty = empty_table(bench.graph, bench.dense_onnx, where, keeps, todo)

    def time_point(kept: Mapping[str, int]) -> tuple[Point, float]:
        point, ms = worker.call("time", dict(kept))
        return point, ms

    with display.stage("timing", len(todo)):
        measure(empty, path, todo, time_point, say=display.say, on_point=progress(display))


def _bound(bound: Constraint) -> str:
    if math.isinf(bound.low):
        return f"at most {bound.high:.4g}"
    return (
        f"{bound.low:.4g} to {bound.high:.4g}" if math.isfinite(bound.high) else f"at least {bound.low:.4g}"
    )
