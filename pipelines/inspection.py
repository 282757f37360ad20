"""`prunefront inspect`: what of a network can be pruned, what cannot and why, before anything is spent."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.config import StudyConfig
from pipelines.data import load
from pipelines.models import build
from pipelines.prepare import check_names, trace_model
from pipelines.weights import load_weights
from pruners.cost import cost
from pruners.graph import ChannelGraph
from pruners.plan import keep_counts
from pruners.scoring import available


@dataclass(frozen=True, slots=True)
class Inspection:
    """The dense network's channel graph, with what the study file allows in each group."""

    config: StudyConfig
    graph: ChannelGraph

    def to_json(self) -> dict[str, Any]:
        """groups (name, units, members, keeps, criteria), frozen (name, channels, reason), macs, params, size_bytes."""
        price = cost(self.graph)
        scorable = available(self.graph)
        space = self.config.space
        return {
            "groups": [
                {
                    "name": g.name,
                    "units": g.units,
                    "members": [f"{m.tensor}[{m.dim}]" for m in g.members],
                    "keeps": list(keep_counts(g, space.max_ratio, space.round_to)),
                    "criteria": [c for c in space.criteria if c in scorable[g.name]],
                }
                for g in self.graph.groups
            ],
            "frozen": [
                {"name": f.name, "channels": f.channels, "reason": f.reason} for f in self.graph.frozen
            ],
            "macs": price.macs,
            "params": price.params,
            "size_bytes": price.size_bytes,
        }


def inspect(config: StudyConfig) -> Inspection:
    """Builds and traces the study's network; trains, searches and writes nothing.

    Raises PrunefrontError for all that would stop a search before its first candidate.
    """
    check_names(config)
    splits = load(config.data)
    shape = splits.train.images.shape[1:]
    model = build(config.model, classes=splits.classes, input_shape=shape, seed=config.seed)
    if config.model.weights is not None:
        load_weights(model, config.model.weights)
    return Inspection(config, trace_model(model, config, shape))


def print_inspection(found: Inspection, console: Console) -> None:
    """The same for people."""
    data = found.to_json()
    console.print(
        f"{found.config.model.factory}: {data['macs']:,} MACs, {data['params']:,} parameters, "
        f"{data['size_bytes']:,} bytes",
        highlight=False,
    )
    table = Table("group", "units", "may keep", "members", "criteria", box=None, padding=(0, 2, 0, 0))
    for group in data["groups"]:
        keeps = group["keeps"]
        spread = f"{keeps[0]}–{keeps[-1]}" if len(keeps) > 1 else "all"
        shown = ", ".join(sorted({m.rpartition(".")[0] for m in group["members"]}))
        cells = (group["name"], str(group["units"]), spread, shown, ", ".join(group["criteria"]))
        table.add_row(*map(Text, cells))
    console.print(table)
    if data["frozen"]:
        table = Table("frozen", "channels", "why", box=None, padding=(0, 2, 0, 0))
        for frozen in data["frozen"]:
            table.add_row(*map(Text, (frozen["name"], str(frozen["channels"]), frozen["reason"])))
        console.print(table)
