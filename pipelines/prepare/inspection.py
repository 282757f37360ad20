"""`prunefront inspect`: what of a network can be pruned, what cannot and why, before anything is spent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import DataSection, GoalSection, TaskSection
from prunefront.pipelines.data import open_data
from prunefront.pipelines.formats.given_weights import load_given
from prunefront.pipelines.models import build
from prunefront.pipelines.prepare.checks import NamingSections, check_names, check_per_group
from prunefront.pipelines.prepare.feasibility import Infeasible, check_bounds, exact_values, least
from prunefront.pipelines.prepare.misfits import misfits
from prunefront.pipelines.prepare.network import (
    classes_of,
    example_input,
    said_of_inputs,
    trace_model,
)
from prunefront.pipelines.prepare.problem import offered, widest_space
from prunefront.pipelines.prepare.repairs import rough
from prunefront.pipelines.prepare.training import check_task
from prunefront.pipelines.tasks import make_task
from prunefront.pruners.criteria import criteria
from prunefront.pruners.granularities import layer_granularities
from prunefront.pruners.graph.channel_graph import ChannelGraph, ChannelGroup
from prunefront.pruners.graph.pruning_plan import inside
from prunefront.pruners.plan.cost import cost, locked_macs
from prunefront.pruners.plan.decide import keep_counts
from prunefront.pruners.plan.multiples import check_multiples, multiple_of
from prunefront.pruners.scoring import why_not
from prunefront.pruners.trace.rules import OWN
from prunefront.search.outcomes.constraints import EXACT, ConstraintError

REPAIRS = {
    "moments": "weights that read what is cut are fitted again, from moments of the calibration images",
    "criterion": "weights that read what is cut are fitted again where the criterion says so",
    "none": "weights stay as they are",
}
"""Lines on what follows a cut, by space.repair."""


@dataclass(frozen=True, slots=True)
class InspectedSections(NamingSections):
    """The settings that decide what of a network can be pruned."""

    seed: int
    task: TaskSection
    data: DataSection
    goal: GoalSection


@dataclass(frozen=True, slots=True)
class Inspection:
    """The dense network's channel graph, with what the study file allows in each group, stack and layer."""

    study: InspectedSections
    graph: ChannelGraph
    infeasible: str | None = None
    """Why no network of the space meets the study's bounds on exact costs."""
    notes: tuple[str, ...] = ()
    """Lines on how data and weights were read, where they are not in their plain form."""

    def to_json(self) -> dict[str, Any]:
        """notes (lines on how data and weights were read, and on what the trial of the cuts could not see), misfits
        (lines on what the study asks for and its network cannot have), groups (name, units, members, keeps, multiple,
        criteria, left_out), frozen (name, channels, macs, reason), stacks (name, blocks), unstacked, layers (name,
        shape, macs, keeps, bits, left_out), unlayered, macs, params, size_bytes, constraints (bound, limit, smallest),
        infeasible, repair (what weights are fitted by after a cut), roughly_repaired (lines on too wide ones).

        multiple: what kept channels of the group are a multiple of. macs of frozen channels: those that no cut reaches
        because of them. left_out: criterion -> why it does not fit the group, or granularity -> why the layer cannot
        take it. unstacked, unlayered: path or name -> why it is left alone. limit: null where it is known after
        training alone. smallest: what a network of the space has that is about the smallest. Stacks and layers are
        there where the study file asks for them.
        """
        price = cost(self.graph)
        space = self.study.space
        return {
            "notes": [*self.notes, *self.graph.notes],
            "misfits": self._misfits(),
            "groups": [
                {
                    "name": g.name,
                    "units": g.units,
                    "members": [f"{m.tensor}[{m.dim}]" for m in g.members],
                    "keeps": list(keep_counts(g, space.max_ratio, space.round_to)),
                    "multiple": multiple_of(g.name, space.round_to),
                    "criteria": [c for c in asked if c not in reasons],
                    "left_out": reasons,
                }
                for g in self.graph.groups
                for asked in [space.per_group.get(g.name, space.criteria)]
                for reasons in [_left_out(asked, g, self.graph)]
            ],
            "frozen": [
                {"name": f.name, "channels": f.channels, "macs": round(macs), "reason": f.reason}
                for f, macs in zip(self.graph.frozen, locked_macs(self.graph), strict=True)
            ],
            **self._stacks(),
            **self._layers(),
            "macs": price.macs,
            "params": price.params,
            "size_bytes": price.size_bytes,
            "constraints": self._constraints(),
            "infeasible": self.infeasible,
            "repair": space.repair,
            "roughly_repaired": list(rough(self.graph)) if space.repair == "moments" else [],
        }

    def _constraints(self) -> list[dict[str, Any]]:
        section, dense = self.study.space, exact_values(cost(self.graph))
        bounds = [b for b in self.study.goal.constraints if b.name in EXACT]
        space = widest_space(self.graph, section, self.study.quantisation) if bounds else None
        found: dict[str, float] = {}
        for name in dict.fromkeys(b.name for b in bounds):
            assert space is not None
            one = least(self.graph, space, self.study.quantisation.method, {name: 1.0}, widen=False)
            found[name] = one.values[name]
        return [
            {
                "bound": str(bound),
                "limit": bound.limit(dense) if bound in bounds else None,
                "smallest": found.get(bound.name),
            }
            for bound in self.study.goal.constraints
        ]

    def _misfits(self) -> list[str]:
        section = self.study.space
        try:
            space = widest_space(self.graph, section, self.study.quantisation)
        except PrunefrontError as error:  # there is no space at all
            return [str(error)]
        return misfits(self.graph, space, section, searcher=self.study.search.searcher)

    def _stacks(self) -> dict[str, Any]:
        if "block" not in self.study.space.granularities:
            return {"stacks": [], "unstacked": {}}
        return {
            "stacks": [{"name": s.name, "blocks": list(s.blocks)} for s in self.graph.stacks],
            "unstacked": dict(self.graph.unstacked),
        }

    def _layers(self) -> dict[str, Any]:
        space = self.study.space
        asked = [name for name in space.granularities if name in layer_granularities]
        if not asked and set(self.study.quantisation.bits) == {32}:
            return {"layers": [], "unlayered": {}}
        layers = []
        for layer in self.graph.layers:
            if inside(layer.module, space.whole):
                continue
            keeps = offered(layer, space)
            reasons = {name: layer_granularities[name].why_not(layer) for name in asked}
            left_out = {
                name: reasons[name] or f"reaches none of the densities {list(space.densities)}"
                for name in asked
                if name not in keeps
            }
            layers.append(
                {
                    "name": layer.name,
                    "shape": list(layer.shape),
                    "macs": layer.macs,
                    "keeps": {name: list(percent) for name, percent in keeps.items()},
                    "bits": sorted(set(self.study.quantisation.bits), reverse=True),
                    "left_out": left_out,
                }
            )
        whole = dict.fromkeys(space.whole, "is in space.whole")
        return {"layers": layers, "unlayered": {**self.graph.unlayered, **whole}}


def _left_out(asked: Sequence[str], group: ChannelGroup, graph: ChannelGraph) -> dict[str, str]:
    """Criterion -> why it does not fit the group."""
    found = {name: why_not(criteria[name], group, graph) for name in asked}
    return {name: reason for name, reason in found.items() if reason is not None}


def inspect(study: InspectedSections) -> Inspection:
    """Builds and traces the study's network; trains, searches and writes nothing.

    Raises PrunefrontError for all that would stop a search before its first candidate, but for bounds that cannot be
    met: `infeasible` has them.
    """
    check_names(study)
    notes: list[str] = []
    splits = open_data(study.data, say=notes.append)
    task = make_task(study.task)
    check_task(study.training, study.task.name, task)
    classes = classes_of(study.model, task, splits)
    model = build(study.model, classes=classes, input_shape=splits.input_shape, seed=study.seed)
    if found := load_given(model, study.model):
        notes.append(found)
    notes += said_of_inputs(study.model, model, splits)
    if study.model.rules is not None:
        notes.append(f"channel rules of your own ({study.model.rules}): {', '.join(sorted(OWN))}")
    graph = trace_model(
        model, study.model.factory, study.space, study.quantisation, example_input(model, splits, 2)
    )
    check_per_group(study.space.per_group, graph)
    check_multiples(study.space.round_to, [g.name for g in graph.groups])
    infeasible = None
    if study.goal.constraints:
        space = widest_space(graph, study.space, study.quantisation)
        try:
            check_bounds(graph, space, study.space, study.quantisation, study.goal.constraints)
        except (Infeasible, ConstraintError) as error:
            infeasible = str(error)
    return Inspection(study, graph, infeasible, tuple(notes))


def print_inspection(found: Inspection, console: Console) -> None:
    """The same for people."""
    data = found.to_json()
    console.print(
        f"{found.study.model.factory}: {data['macs']:,} MACs, {data['params']:,} parameters, "
        f"{data['size_bytes']:,} bytes",
        highlight=False,
    )
    for line in (*data["notes"], *data["misfits"]):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(f"after a cut: {REPAIRS[data['repair']]}", highlight=False, soft_wrap=True)
    for line in data["roughly_repaired"]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if data["constraints"]:
        table = Table("bound", "that is", "smallest network of the space", box=None, padding=(0, 2, 0, 0))
        for row in data["constraints"]:
            limit = "known after training" if row["limit"] is None else f"{row['limit']:,.0f}"
            smallest = "" if row["smallest"] is None else f"{row['smallest']:,.0f}"
            table.add_row(*map(Text, (row["bound"], limit, smallest)))
        console.print(table)
    rounded = any(group["multiple"] > 1 for group in data["groups"])
    titles = ("group", "units", "may keep", *("multiple of",) * rounded, "members", "criteria")
    table = Table(*titles, box=None, padding=(0, 2, 0, 0))
    for group in data["groups"]:
        keeps = group["keeps"]
        spread = f"{keeps[0]}–{keeps[-1]}" if len(keeps) > 1 else "all"
        shown = ", ".join(sorted({m.rpartition(".")[0] for m in group["members"]}))
        multiple = (str(group["multiple"]),) * rounded
        cells = (group["name"], str(group["units"]), spread, *multiple, shown, ", ".join(group["criteria"]))
        table.add_row(*map(Text, cells))
    console.print(table)
    if data["stacks"]:
        table = Table("stack", "blocks, one of which stays", box=None, padding=(0, 2, 0, 0))
        for stack in data["stacks"]:
            table.add_row(*map(Text, (stack["name"], ", ".join(stack["blocks"]))))
        console.print(table)
    if data["layers"]:
        table = Table("layer", "shape", "granularities (% kept)", "bits", box=None, padding=(0, 2, 0, 0))
        for layer in data["layers"]:
            keeps = ", ".join(f"{n} {'/'.join(map(str, k))}" for n, k in layer["keeps"].items())
            shape, bits = "×".join(map(str, layer["shape"])), "/".join(map(str, layer["bits"]))
            table.add_row(*map(Text, (layer["name"], shape, keeps or "whole only", bits)))
        console.print(table)
    absent: dict[tuple[str, str], list[str]] = {}
    for group in (*data["groups"], *data["layers"]):
        for name, reason in group["left_out"].items():
            absent.setdefault((name, reason), []).append(group["name"])
    if absent:
        table = Table("does not fit", "where", "why: it", box=None, padding=(0, 2, 0, 0))
        for (name, reason), groups in absent.items():
            table.add_row(*map(Text, (name, ", ".join(groups), reason)))
        console.print(table)
    for kind in ("unstacked", "unlayered"):
        if data[kind]:
            table = Table("not pruned", "why: it", box=None, padding=(0, 2, 0, 0))
            for name, reason in data[kind].items():
                table.add_row(Text(name), Text(reason))
            console.print(table)
    if data["frozen"]:
        table = Table("frozen", "channels", "locks", "why", box=None, padding=(0, 2, 0, 0))
        for frozen in data["frozen"]:
            share = f"{frozen['macs'] / max(1, data['macs']):.1%} of MACs" if frozen["macs"] else ""
            table.add_row(*map(Text, (frozen["name"], str(frozen["channels"]), share, frozen["reason"])))
        console.print(table)
        locked = sum(frozen["macs"] for frozen in data["frozen"])
        console.print(
            f"cuts of channels reach {1 - locked / max(1, data['macs']):.1%} of the MACs", highlight=False
        )
