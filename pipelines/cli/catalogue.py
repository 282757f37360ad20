"""Everything that a study file can name, for `prunefront list` and the tables of docs/methods.md."""

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunefront.errors import UnknownName
from prunefront.reading import read_text

Entry = Mapping[str, Any]
"""Fields of one entry: name and summary, and for methods also needs, cost, choose, paper and others."""

METHODS = ("criteria", "procedures", "allocators", "controls")
"""Lists that docs/methods.md has a table of."""


def catalogue(what: str) -> list[Entry]:
    """Returns the entries of one list, sorted by name. Raises UnknownName for a list that does not exist."""
    if what not in LISTS:
        raise UnknownName(f"there is no list of {what!r}; there are: {', '.join(LISTS)}")
    return LISTS[what]()


# each list imports only what it lists


def _criteria() -> list[Entry]:
    from prunefront.pruners.criteria import criteria
    from prunefront.pruners.statistics import gathered_by

    def entry(name: str) -> Entry:
        c = criteria[name]
        gathered = {s.name: s for need in sorted(c.needs) if (s := gathered_by(need))}
        takes = {s.takes[need] if (s := gathered_by(need)) else "weights" for need in c.needs}
        return {
            "name": name,
            "summary": c.summary,
            "unit": c.unit,
            "needs": sorted(takes),
            "fields": sorted(c.needs),
            "cost": "; ".join(s.cost for s in gathered.values()) or "nothing",
            "ranks": "all units" if c.comparable else "one group's",
            "repair": c.repair,
            "choose": c.choose,
            "paper": c.paper,
        }

    return [entry(name) for name in criteria]


def _procedures() -> list[Entry]:
    from prunefront.pruners.procedures import procedures

    return [
        {
            "name": name,
            "summary": p.summary,
            "options": dict(p.options),
            "cost": "the steps of training.epochs",
            "choose": p.choose,
            "paper": p.paper,
        }
        for name in procedures
        for p in [procedures[name]]
    ]


def _allocators() -> list[Entry]:
    from prunefront.pruners.allocators import allocators
    from prunefront.pruners.statistics import gathered_by

    def entry(name: str) -> Entry:
        a = allocators[name]
        gathered = [s for need in sorted(a.needs) if (s := gathered_by(need))]
        return {
            "name": name,
            "summary": a.summary,
            "needs": sorted(a.needs),
            "cost": "; ".join(s.cost for s in gathered) or "nothing",
            "choose": a.choose,
            "paper": a.paper,
        }

    return [entry(name) for name in allocators]


def _controls() -> list[Entry]:
    from prunefront.pruners.controls import controls

    return [
        {"name": name, "summary": c.summary, "choose": c.choose, "paper": c.paper}
        for name in controls
        for c in [controls[name]]
    ]


def _tasks() -> list[Entry]:
    from prunefront.pipelines.tasks import tasks

    return [
        {"name": name, "summary": _first_line(tasks[name]), "metrics": [m.name for m in known]}
        for name in tasks
        for known in [getattr(tasks[name], "KNOWN", ())]
    ]


def _loops() -> list[Entry]:
    from prunefront.pipelines.loops import loops

    return [{"name": name, "summary": _first_line(loops[name])} for name in loops]


def _granularities() -> list[Entry]:
    from prunefront.pruners.granularities import granularities, layer_granularities
    from prunefront.pruners.granularities.block import Block

    entries = {name: _first_line(granularities[name]) for name in granularities}
    entries |= {name: _first_line(layer_granularities[name]) for name in layer_granularities}
    entries["block"] = _first_line(Block)
    return [{"name": name, "summary": summary} for name, summary in sorted(entries.items())]


def _quantisers() -> list[Entry]:
    from prunefront.pruners.quantisers import quantisers

    return [
        {
            "name": name,
            "summary": q.summary,
            "bits": f"{q.bits[0]}–{q.bits[-1]}" if len(q.bits) > 1 else str(q.bits[0]),
            "choose": q.choose,
            "paper": q.paper,
        }
        for name in quantisers
        for q in [quantisers[name]]
    ]


def _searchers() -> list[Entry]:
    from prunefront.search.searchers import searchers

    return [{"name": name, "summary": _first_line(searchers[name])} for name in searchers]


def _models() -> list[Entry]:
    from prunefront.pipelines.models import models

    return [{"name": name, "summary": _first_line(models[name])} for name in models]


def _runtimes() -> list[Entry]:
    from prunefront.pipelines.measure.runtimes import runtimes

    entries: list[Entry] = []
    for name in runtimes:
        missing = runtimes[name].missing()
        absent = f" [not on this machine: {missing}]" if missing else ""
        entries.append({"name": name, "summary": runtimes[name].summary + absent})
    return entries


def _settings() -> list[Entry]:
    from prunefront.pipelines.config.read import settings

    return [{"name": name, "summary": line} for name, line in settings().items()]


LISTS: Mapping[str, Callable[[], list[Entry]]] = {
    "criteria": _criteria,
    "procedures": _procedures,
    "allocators": _allocators,
    "controls": _controls,
    "granularities": _granularities,
    "quantisers": _quantisers,
    "searchers": _searchers,
    "tasks": _tasks,
    "loops": _loops,
    "models": _models,
    "runtimes": _runtimes,
    "settings": _settings,
}


def _first_line(entry: object) -> str:
    text = inspect.getdoc(entry) or ""
    return text.splitlines()[0] if text else ""


COLUMNS = {
    "name": "method",
    "summary": "what it does",
    "unit": "unit",
    "ranks": "ranks",
    "repair": "repair",
    "needs": "needs",
    "options": "options",
    "cost": "cost",
    "choose": "when to choose it",
    "paper": "paper",
}


def methods_table(what: str) -> str:
    """Returns the table of one of METHODS, in Markdown."""
    entries = catalogue(what)
    columns = [key for key in COLUMNS if key in entries[0]]
    lines = [[COLUMNS[key] for key in columns], ["---"] * len(columns)]
    lines += [[_cell(key, entry[key]) for key in columns] for entry in entries]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(key: str, value: Any) -> str:
    if key == "name":
        return f"`{value}`"
    if isinstance(value, Mapping):
        return ", ".join(f"`{k} = {v!r}`" for k, v in value.items()) or "none"
    text = ", ".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    return text.replace("|", "\\|")


def with_tables(page: str) -> str:
    """Returns a page whose parts between `<!-- table: LIST -->` and `<!-- end -->` are written from the registries."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{methods_table(match[2])}\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) -->).*?(<!-- end -->)", table, page, flags=re.DOTALL)


if __name__ == "__main__":  # make docs
    for name in sys.argv[1:]:
        Path(name).write_text(with_tables(read_text(name)))
