"""A device's table of how long a network's variants take: what is measured, in what order, and the file it is kept
in."""

import hashlib
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from prunefront.choice import GroupChoice, pattern
from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.connect import check_address, connect
from prunefront.pipelines.config.sections import (
    ClusterSection,
    DataSection,
    MeasureSection,
    SpaceSection,
    TaskSection,
)
from prunefront.pipelines.data import open_data
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.formats.example import Example, mapped, of_rows
from prunefront.pipelines.formats.onnx_cut import cut, same_as_exported
from prunefront.pipelines.formats.onnx_export import export
from prunefront.pipelines.journal.journal import write_json
from prunefront.pipelines.journal.layout import LATENCY_TABLE
from prunefront.pipelines.measure.environment import PLACE, environment
from prunefront.pipelines.measure.latency import Latency, compare, runtimes
from prunefront.pipelines.measure.target import Target
from prunefront.pipelines.measure.timing_lock import exclusive, shared
from prunefront.pipelines.models import build
from prunefront.pipelines.prepare.checks import NamingSections, check_names
from prunefront.pipelines.prepare.network import classes_of, example_input, trace_model
from prunefront.pipelines.tasks import make_task
from prunefront.pruners.cut.surgery import apply
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.pruners.plan.decide import keep_counts, plan
from prunefront.reading import read_bytes, read_json
from prunefront.search.prediction.latency import (
    Axis,
    LatencyPredictor,
    Operator,
    Point,
    check_operator,
    fit,
    operator_from_json,
    operator_to_json,
    point_from_json,
)
from prunefront.text import first_line

FORMAT = 1


SINGLE = 3
JOINT = 48
"""Number of networks with several groups cut that are timed, and most widths of each group alone."""

TRIES = 3
NOISY = 0.05
"""A point whose interval is wider than ± this is timed again, at most so often in all; the narrowest counts."""

SAME_DEVICE = ("processor", "machine", "runtime", "threads", "batch_size")
"""Facts about a device; where one differs, a table of it says nothing."""

Kept = dict[str, int]


class TableError(PrunefrontError):
    """A latency table cannot be read, or is of something else."""


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Latencies of one network's variants, measured on one device.

    network: a digest, see `digest`. device: `environment`'s entries. keeps: group -> kept counts that were drawn
    from, the last one dense. planned: how many points there are to be; fewer `points` = cut short. dense_ms: of the
    dense network, median over the points, or nan before any.
    """

    network: str
    device: Mapping[str, Any]
    keeps: Mapping[str, tuple[int, ...]]
    operators: tuple[Operator, ...]
    planned: int
    points: tuple[Point, ...] = ()
    dense_ms: float = math.nan

    @property
    def complete(self) -> bool:
        """True where nothing of what was planned is missing."""
        return len([p for p in self.points if p.origin in ("single", "joint")]) >= self.planned

    def predictor(self) -> LatencyPredictor:
        """Fitted on all points."""
        return fit({g: keeps[-1] for g, keeps in self.keeps.items()}, self.operators, self.points)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "network": self.network,
            "device": dict(self.device),
            "keeps": {g: list(keeps) for g, keeps in self.keeps.items()},
            "operators": [operator_to_json(o) for o in self.operators],
            "planned": self.planned,
            "dense_ms": None if math.isnan(self.dense_ms) else self.dense_ms,
            "points": [p.to_json() for p in self.points],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LatencyTable":
        """Raises KeyError, TypeError, ValueError or PrunefrontError for what `to_json` did not make."""
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, this version reads {FORMAT}")
        keeps = {str(g): tuple(map(int, counts)) for g, counts in data["keeps"].items()}
        for group, counts in keeps.items():
            if not counts or list(counts) != sorted(set(counts)) or counts[0] < 1:
                raise ValueError(f"the widths of group {group!r} do not ascend")
        dense, widest = data["dense_ms"], {group: counts[-1] for group, counts in keeps.items()}
        table = cls(
            str(data["network"]),
            dict(data["device"]),
            keeps,
            tuple(operator_from_json(o) for o in data["operators"]),
            int(data["planned"]),
            tuple(point_from_json(p, widest) for p in data["points"]),
            math.nan if dense is None else float(dense),
        )
        for operator in table.operators:
            check_operator(operator, widest)
        if table.points and not 0.0 < table.dense_ms < math.inf:
            raise ValueError(f"dense_ms must be positive, got {dense!r}")
        return table


def read(path: Path) -> LatencyTable:
    """Raises TableError, in one line, where the file is no latency table."""
    try:
        return LatencyTable.from_json(read_json(path))
    except FileNotFoundError:
        raise TableError(
            f"there is no latency table {path}; `prunefront latency-table STUDY -o {path}` measures one"
        ) from None
    except OSError as error:
        raise TableError(
            f"the latency table {path} cannot be read: {error.strerror}; `prunefront latency-table` measures one"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, PrunefrontError) as error:
        raise TableError(
            f"{path} is no latency table ({type(error).__name__}: {first_line(error):.200}); measure one with "
            "`prunefront latency-table`"
        ) from None


def check_fits(
    table: LatencyTable,
    path: Path,
    network: str,
    device: Mapping[str, Any],
    keeps: Mapping[str, Sequence[int]],
) -> list[str]:
    """Returns lines about using a table for this network, device and widths; none where all is the same.

    Raises TableError where the table says nothing about them: another network, processor, runtime, number of threads or
    batch size, widths that it was not drawn from, or too few points.
    """
    again = f"measure one with `prunefront latency-table STUDY -o {path}`"
    if table.network != network:
        raise TableError(f"the latency table {path} is of another network; {again}")
    differing = [k for k in SAME_DEVICE if table.device.get(k) != device[k]]
    if differing:
        raise TableError(
            f"the latency table {path} was measured with "
            f"{', '.join(f'{k} = {table.device.get(k)!r}' for k in differing)}, here it is "
            f"{', '.join(repr(device[k]) for k in differing)}; {again}"
        )
    for group, counts in keeps.items():
        known = table.keeps.get(group)
        if known is None or not set(counts) <= set(known):
            shown = "no width" if known is None else f"only the widths {_brief(known)}"
            raise TableError(
                f"the latency table {path} has {shown} of group {group!r}, the study may keep {_brief(counts)}; {again}"
            )
    if not table.complete:
        raise TableError(
            f"the latency table {path} has only {len(table.points)} of {table.planned} networks; run the same "
            "`prunefront latency-table` again to complete it"
        )
    versions = [k for k in ("torch", "onnxruntime") if table.device.get(k) != device[k]]
    return [
        f"the latency table {path} was measured with {k} {table.device.get(k)}, this is {device[k]}"
        for k in versions
    ]


def _brief(counts: Sequence[int]) -> str:
    if len(counts) < 5:
        return ", ".join(map(str, counts))
    return f"{counts[0]}, {counts[1]} … {counts[-1]} ({len(counts)} widths)"


def device(section: MeasureSection) -> dict[str, Any]:
    """Returns what a latency depends on besides the network, on this machine."""
    return {**environment(section), "system": platform.system(), "numpy": version("numpy")}


def digest(graph: ChannelGraph, onnx_file: bytes) -> str:
    """Returns a digest of the network's shape: equal where only weights differ, or what may be cut."""
    proto = onnx.ModelProto.FromString(onnx_file)
    nodes = [
        [node.op_type, sorted(a.SerializeToString(deterministic=True).hex() for a in node.attribute)]
        for node in proto.graph.node
    ]
    text = json.dumps(
        [
            sorted((name, list(shape)) for name, shape in graph.shapes.items()),
            [[op.weight, op.positions] for op in graph.ops],
            nodes,
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def operators(graph: ChannelGraph) -> tuple[Operator, ...]:
    """Every use of a weight, its channels as functions of what the groups keep."""
    sides: dict[tuple[str, int], dict[str, int]] = {}
    for group in graph.groups:
        for member in group.members:
            per_unit = sides.setdefault((member.tensor, member.dim), {})
            per_unit[group.name] = per_unit.get(group.name, 0) + len(member.index[0])
    units = {g.name: g.units for g in graph.groups}
    found = []
    for op in graph.ops:
        shape = graph.shapes[op.weight]
        axes = []
        for dim in (0, 1):
            per_unit = sides.get((op.weight, dim), {})
            size = shape[dim] if len(shape) > dim else 1
            axes.append(Axis(size - sum(units[g] * n for g, n in per_unit.items()), per_unit))
        found.append(Operator(op.weight, float(op.positions * math.prod(shape)), op.positions, *axes))
    return tuple(found)


def design(
    keeps: Mapping[str, Sequence[int]], *, single: int = SINGLE, joint: int = JOINT, seed: int = 0
) -> list[Kept]:
    """Kept counts of the networks to time, those that stay dense left out; in an order in which any start is of use.

    Each group alone, at `single` of its widths from the least; and `joint` networks, of which a fifth are uniform,
    and the others draw a common level and how far groups may stray from it, as searchers do. Every one once.
    """
    rng = np.random.default_rng([seed, 6])
    found: list[Kept] = []
    for name, counts in keeps.items():
        smaller = list(counts[:-1])
        places = np.unique(np.linspace(0, len(smaller) - 1, min(single, len(smaller))).round().astype(int))
        found += [{name: smaller[int(p)]} for p in places]
    several = {name: counts for name, counts in keeps.items() if len(counts) > 1}
    drawn: list[Kept] = []
    for number in range(20 * joint if len(several) > 1 else 0):
        if len(drawn) == joint:
            break
        level, stray = rng.random(2)
        if number % 5 == 0:
            stray = 0.0
        kept = {}
        for name, counts in several.items():
            place = (1.0 - stray) * level + stray * rng.random()
            count = counts[min(int(place * len(counts)), len(counts) - 1)]
            if count < counts[-1]:
                kept[name] = count
        if len(kept) > 1 and kept not in drawn:
            drawn.append(kept)
    found += drawn
    return [found[i] for i in rng.permutation(len(found))]


@dataclass(frozen=True, slots=True)
class Subject:
    """The network that is timed: a module whose weights have no special values, and its ONNX file.

    example: inputs by place, of any number of samples: those that are timed, repeated or cut to a batch. What has a
    length of its own, as tokens do, is timed at the length that it has here.
    """

    model: nn.Module
    graph: ChannelGraph
    onnx_file: bytes
    example: Example


@dataclass(frozen=True, slots=True)
class TableSections(NamingSections):
    """The settings that a latency table follows from. path: the study's folder."""

    seed: int
    path: Path
    task: TaskSection
    data: DataSection
    cluster: ClusterSection


def subject(study: TableSections) -> Subject:
    """The study's network with weights drawn at random, as latency does not depend on them: no training, no weights
    file.

    Raises PrunefrontError for all that would stop a search before its first candidate.
    """
    check_names(study)
    splits = open_data(study.data)
    classes = classes_of(study.model, make_task(study.task), splits)
    model = build(study.model, classes=classes, input_shape=splits.input_shape, seed=study.seed)
    example = example_input(model, splits, max(2, study.measure.batch_size))
    graph = trace_model(model, study.model.factory, study.space, study.quantisation, of_rows(example, 2))
    generator = torch.Generator().manual_seed(study.seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            # zeros and ones of an untrained network would fold away when it is exported
            if tensor.is_floating_point():
                tensor.add_(0.01 + 0.01 * torch.rand(tensor.shape, generator=generator))
    return Subject(model.eval(), graph, exported(model, example), example)


class PointTimer:
    """Times variants of one network against it. Each is an ONNX file and a module, whichever the runtime runs."""

    def __init__(self, network: Subject, section: MeasureSection, target: Target | None = None) -> None:
        """Takes seconds: compares once whether cutting the ONNX file gives what exporting gives, else exports each.

        target: where they are timed; None = here.
        """
        self._network, self._section, self._target = network, section, target
        self._make = runtimes[section.runtime]
        self._example = of_rows(network.example, section.batch_size)
        halved = {g.name: max(1, g.units // 2) for g in network.graph.groups if g.units > 1}
        self.cuts = same_as_exported(
            network.onnx_file, network.model, network.graph, planned(network.graph, halved), network.example
        )
        if target is None:
            with _file(network.onnx_file) as path:
                self._dense = self._make(network.model, path, self._example, section.threads)

    def time(self, kept: Mapping[str, int]) -> tuple[Point, float]:
        """The network that keeps so many units of each group; and the dense one's milliseconds meanwhile."""
        network = self._network
        aim = planned(network.graph, kept)
        with shared():
            model = apply(network.model, network.graph, aim)
            once = self._prepared(model, self._onnx(model, aim))
        best = None
        for _ in range(TRIES):
            got = once()
            origin = "single" if len(kept) == 1 else "joint"
            point = Point(dict(kept), got.ratio, got.ratio_low, got.ratio_high, origin)
            if best is None or point.spread < best[0].spread:
                best = point, got.dense_ms
            if best[0].spread <= NOISY:
                break
        assert best is not None
        return best

    def _prepared(self, model: nn.Module, onnx_file: bytes) -> Callable[[], Latency]:
        section, target = self._section, self._target
        if target is not None:
            return lambda: target.time(onnx_file, mapped(lambda t: t.numpy(), self._example)).latency
        with _file(onnx_file) as path:
            call = self._make(model, path, self._example, section.threads)

        def timed() -> Latency:
            with exclusive():
                return compare(self._dense, call, pairs=section.pairs, warmup=section.warmup)

        return timed

    def _onnx(self, model: nn.Module, aim: PruningPlan) -> bytes:
        if self.cuts:
            return cut(self._network.onnx_file, self._network.graph, aim)
        return exported(model, self._network.example)


def exported(model: nn.Module, example: Example) -> bytes:
    """The module as an ONNX file."""
    with tempfile.TemporaryDirectory(prefix="prunefront-") as temporary:
        path = Path(temporary) / "model.onnx"
        export(model, of_rows(example, 2), path)
        return read_bytes(path, limit=2 << 30)


@contextmanager
def _file(content: bytes) -> Iterator[Path]:
    """A file as long as the `with` lasts."""
    with tempfile.TemporaryDirectory(prefix="prunefront-") as temporary:
        path = Path(temporary) / "model.onnx"
        path.write_bytes(content)
        yield path


def planned(graph: ChannelGraph, kept: Mapping[str, int]) -> PruningPlan:
    """The plan that keeps the first so many units of each group: which ones makes no difference to time."""
    units = {g.name: g.units for g in graph.groups}
    choices = {
        name: GroupChoice("none", 1.0 - count / units[name], keep=pattern(list(range(count))))
        for name, count in kept.items()
        if count < units[name]
    }
    return plan(graph, choices, {})


Time = Callable[[Mapping[str, int]], tuple[Point, float]]
"""Kept counts -> the point, and the dense network's milliseconds: `PointTimer.time`, or that of a worker."""


def measure(
    empty: LatencyTable,
    path: Path,
    todo: Sequence[Kept],
    time_point: Time,
    *,
    say: Callable[[str], None],
    on_point: Callable[[int, Point], None] = lambda done, point: None,
) -> LatencyTable:
    """Times what is missing, and keeps each point in the file as it comes, so that it can be cut short at any time.

    empty: what the table is to be of, without points. todo: from `design`. say: told what it will take, once one
    network was timed. Raises TableError where the file holds the table of something else, PrunefrontError as
    `PointTimer` does.
    """
    table = empty
    if path.exists():
        found = read(path)
        if replace(found, points=(), dense_ms=math.nan, device=empty.device) != replace(
            empty, dense_ms=math.nan
        ) or any(found.device.get(k) != v for k, v in empty.device.items() if k not in PLACE):
            raise TableError(
                f"{path} is a latency table of another network, device or space, or was made by another version; give "
                "-o another file, or --replace"
            )
        table = found
    dense = [table.dense_ms] * len(table.points)
    known = [dict(p.kept) for p in table.points]
    left = [kept for kept in todo if kept not in known]
    started = time.perf_counter()
    for number, kept in enumerate(left):
        point, ms = time_point(kept)
        dense.append(ms)
        table = replace(table, points=(*table.points, point), dense_ms=float(np.median(dense)))
        write_json(path, table.to_json())
        if number == 0:
            started = time.perf_counter()  # what is done once is paid for
        elif number == 1:
            seconds = (time.perf_counter() - started) * (len(left) - 2)
            say(
                f"latency table: {len(left)} networks to time on {table.device['runtime']}, about "
                f"{max(1, round(seconds))} s at the present speed"
            )
        on_point(len(table.points), point)
    for place, point in enumerate(table.points if left else ()):  # a table that was whole stays as it is
        if point.spread > NOISY:  # the machine may be calmer by now
            again, _ = time_point(point.kept)
            if again.spread < point.spread:
                points = [*table.points[:place], again, *table.points[place + 1 :]]
                table = replace(table, points=tuple(points))
                write_json(path, table.to_json())
    return table


def empty_table(
    graph: ChannelGraph,
    onnx_file: bytes,
    where: Mapping[str, Any],
    keeps: Mapping[str, Sequence[int]],
    todo: Sequence[Kept],
) -> LatencyTable:
    """The table before anything is timed."""
    return LatencyTable(
        digest(graph, onnx_file),
        where,
        {name: tuple(counts) for name, counts in keeps.items()},
        operators(graph),
        len(todo),
    )


def widths(graph: ChannelGraph, section: SpaceSection) -> dict[str, tuple[int, ...]]:
    """Group -> kept counts that the study may ask for. Raises PrunefrontError where there is none smaller."""
    keeps = {g.name: keep_counts(g, section.max_ratio, section.round_to) for g in graph.groups}
    if "channel" not in section.granularities or all(len(counts) < 2 for counts in keeps.values()):
        raise PrunefrontError(
            f"no channel group has a smaller width under max_ratio = {section.max_ratio}, round_to = "
            f"{section.round_to} "
            f"and granularities = {list(section.granularities)}; a latency table is made of channel groups"
        )
    return keeps


@dataclass(frozen=True, slots=True)
class Measured:
    """A finished table, where it is, and what it is good for."""

    path: Path
    table: LatencyTable
    predictor: LatencyPredictor

    def to_json(self) -> dict[str, Any]:
        joint = self.predictor.joint
        half_width = self.predictor.half_width
        return {
            "path": str(self.path),
            "points": len(self.table.points),
            "dense_ms": self.table.dense_ms,
            "device": dict(self.table.device),
            "leave_one_out": None if joint is None else joint.to_json(),
            "interval": half_width if math.isfinite(half_width) else None,
        }

    def lines(self) -> list[str]:
        """The same for people."""
        where = self.table.device
        joint, half_width = self.predictor.joint, self.predictor.half_width
        return [
            f"{len(self.table.points)} networks on {where['processor'] or where['machine']}, {where['runtime']}, "
            f"{where['threads']} threads, batch {where['batch_size']}; the dense one takes "
            f"{self.table.dense_ms:.3f} ms",
            "leave-one-out predictions, networks with several groups cut: "
            f"{joint or 'too few to estimate an error'}",
            f"a prediction holds within ± {half_width:.1%} (95 %)"
            if math.isfinite(half_width)
            else "too few networks for an interval",
        ]


def progress(display: Display) -> Callable[[int, Point], None]:
    """Shows each point as it comes."""

    def on_point(done: int, point: Point) -> None:
        display.update(done, f"{point.ratio:.2f} × dense, ± {point.spread:.1%}")

    return on_point


def measure_for(
    study: TableSections,
    path: Path | None = None,
    *,
    fresh: bool = False,
    joint: int = JOINT,
    address: str | None = None,
    display: Display,
) -> Measured:
    """The latency table of a study's network, measured from this process, or gone on with.

    It is of this machine, or of the study's device in the Ray cluster at `address`. path: the file; default
    `latency.json` in the study's folder. fresh: replaces it. Raises PrunefrontError.
    """
    check_address(study.measure, address)
    with ExitStack() as stack:
        if study.measure.device is not None:
            check_names(study)
            from prunefront.pipelines.cluster.nodes import check_nodes  # needs Ray

            stack.enter_context(connect(address, study.cluster))
            for line in check_nodes(study.measure, study.cluster):
                display.say(line)
        return _measured(study, path or study.path / LATENCY_TABLE, fresh, joint, display)


def _device(section: MeasureSection, onnx: bytes) -> Target | None:
    """Returns the study's device, which needs Ray; None where this machine times its networks."""
    if section.device is None:
        return None
    from prunefront.pipelines.cluster.device import find_device

    return find_device(section, onnx)


def _measured(study: TableSections, path: Path, fresh: bool, joint: int, display: Display) -> Measured:
    network = subject(study)
    there = _device(study.measure, network.onnx_file)
    where = device(study.measure) if there is None else there.run(device, study.measure)
    keeps = widths(network.graph, study.space)
    todo = design(keeps, joint=joint, seed=study.seed)
    empty = empty_table(network.graph, network.onnx_file, where, keeps, todo)
    if fresh:
        path.unlink(missing_ok=True)
    timers: list[PointTimer] = []

    def time_point(kept: Mapping[str, int]) -> tuple[Point, float]:
        if not timers:
            timers.append(PointTimer(network, study.measure, there))
            if not timers[0].cuts:
                display.say(
                    "the ONNX file of this network cannot be cut; every network is exported, which takes seconds"
                )
            timers[0].time({})  # warms the machine up, and what is slow the first time
        return timers[0].time(kept)

    with display.stage("timing", len(todo)):
        table = measure(empty, path, todo, time_point, say=display.say, on_point=progress(display))
    return Measured(path, table, table.predictor())
