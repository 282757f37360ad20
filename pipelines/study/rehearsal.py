"""`prunefront rehearse`: a study's evaluations replayed on virtual workers, to see what a budget would bring."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.events.display import clock
from prunefront.pipelines.journal.evaluations import Evaluations, evaluations, nothing_yet
from prunefront.pipelines.journal.journal import changed, read_events, read_json
from prunefront.pipelines.journal.layout import JOURNAL, TIMING
from prunefront.pipelines.prepare.network import kept
from prunefront.pipelines.prepare.problem import problem
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.plan import DENSE, PruningPlan, Scores
from prunefront.pruners.plan.cost import cost
from prunefront.pruners.plan.decide import plan
from prunefront.search.outcomes.front import reference_point
from prunefront.search.outcomes.measurement import Measurement, Outcome
from prunefront.search.prediction.emulator import Emulator, Fit
from prunefront.search.searchers import searchers
from prunefront.search.simulator import Event, History, Step, Workers, progress, simulate
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem

CHECKPOINTS = (25, 50, 100, 200, 500, 1000, 2000, 5000)
"""Evaluation counts at which the hypervolume is shown, beside the last."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """One searcher over all repeats.

    hypervolume: evaluations -> (mean, standard deviation over repeats), of those repeats that came so far. seconds,
    busy: virtual time to the end, share of the workers' time that they computed; means. duplicates: proposals that came
    down to what was known; mean. recorded: share of the evaluations that the study itself had made, so that only the
    rest is predicted. exhausted: repeats that ended early for lack of new proposals.
    """

    searcher: str
    hypervolume: Mapping[int, tuple[float, float]]
    seconds: float
    busy: float
    duplicates: float
    recorded: float
    exhausted: int


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What `rehearse` found. evaluations: that the study had made or taken over.

    durations: where the seconds of a job come from. fit: of the accuracy that stands in for that of candidates which
    the study never scored. itself: evaluations -> the hypervolume that the study's own search had then; it begins with
    what was taken over from earlier studies, which is not counted.
    """

    study: str
    evaluations: int
    workers: int
    candidates: int
    repeats: int
    durations: str
    fit: Fit
    itself: Mapping[int, float]
    rows: tuple[Rehearsed, ...]

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["itself"] = {str(n): v for n, v in self.itself.items()}
        for row in data["rows"]:
            row["hypervolume"] = {str(n): {"mean": m, "std": s} for n, (m, s) in row["hypervolume"].items()}
        return data


class Replay:
    """The study's own evaluations, and what stands in for those that it never made.

    A recorded architecture has its recorded outcome and duration. Of another one MACs, parameters and bytes are exact,
    accuracy is the emulator's with the interval that as many images would give, and the duration is that of a recorded
    one, which its key picks.
    """

    def __init__(
        self, config: StudyConfig, graph: ChannelGraph, scores: Scores, table: Evaluations, busy: float | None
    ) -> None:
        """busy: seconds that workers spent on all of them, for a journal that does not say how long each took.

        Raises PrunefrontError where too few were measured to predict others, or the dense network was not.
        """
        self._config, self._graph, self._scores = config, graph, scores
        self.rows = {row.key: row for row in table.rows}
        measured = {k: r.outcome for k, r in self.rows.items() if isinstance(r.outcome, Measurement)}
        if DENSE not in measured:
            raise PrunefrontError(
                f"study {table.study!r} has not measured its dense network, against which hypervolume is taken; let "
                "`prunefront search` go on"
            )
        self.dense = measured[DENSE]
        self._plans: dict[str, PruningPlan] = {}
        ratios = [self.plan(self.rows[key].candidate).achieved_ratios() for key in measured]
        self.emulator = Emulator(ratios, [m["accuracy"] for m in measured.values()])
        self._images = _images(list(measured.values()))
        self._seconds = [r.seconds for r in table.rows if r.seconds is not None and r.seconds > 0]
        if self._seconds:
            self.durations = f"recorded, {np.median(self._seconds):.2f} s at the median"
        elif busy:
            self._seconds = [busy / (len(table.rows) - table.recalled)]
            self.durations = f"{self._seconds[0]:.2f} s each, the recorded mean"
        else:
            self._seconds = [1.0]
            self.durations = "1 s each, for none were recorded"

    def plan(self, candidate: Candidate) -> PruningPlan:
        """Raises PrunefrontError for a candidate that cannot be had."""
        key = candidate.key()
        if key not in self._plans:
            space = self._config.space
            self._plans[key] = plan(
                self._graph,
                candidate.choices,
                self._scores,
                round_to=space.round_to,
                quantisation=space.quantisation,
            )
        return self._plans[key]

    def realise(self, candidate: Candidate) -> str:
        return self.plan(candidate).key()

    def evaluate(self, candidate: Candidate) -> Outcome:
        aim = self.plan(candidate)
        if (row := self.rows.get(aim.key())) is not None:
            return row.outcome
        price = cost(self._graph, aim)
        accuracy = float(self.emulator.predict([aim.achieved_ratios()])[0])
        half = 1.96 * float(np.sqrt(accuracy * (1 - accuracy) / self._images)) if self._images else 0.0
        return Measurement(
            {
                "accuracy": accuracy,
                "macs": float(price.macs),
                "params": float(price.params),
                "size_bytes": float(price.size_bytes),
            },
            {"accuracy": half},
        )

    def seconds(self, candidate: Candidate) -> float:
        key = self.realise(candidate)
        row = self.rows.get(key)
        if row is not None and row.seconds:
            return row.seconds
        return self._seconds[int(key, 16) % len(self._seconds) if key != DENSE else 0]


def _images(measured: Sequence[Measurement]) -> float:
    """How many images the recorded intervals speak of, 0 where there are none."""
    found = [
        1.96**2 * m["accuracy"] * (1 - m["accuracy"]) / m.noise["accuracy"] ** 2
        for m in measured
        if m.noise.get("accuracy", 0.0) > 0 and 0.05 < m["accuracy"] < 0.95
    ]
    return float(np.median(found)) if found else 0.0


def recorded(folder: Path, config: StudyConfig) -> tuple[Evaluations, ChannelGraph, Scores, Problem]:
    """The table of a study's evaluations, and what its searcher was given. Raises PrunefrontError if there is none."""
    events = read_events(folder / JOURNAL)
    if not any(e["event"] == "told" for e in events):
        raise nothing_yet(config.name)
    graph, knowledge = kept(folder)
    space = config.space

    def realise(candidate: Candidate) -> str:
        return plan(
            graph,
            candidate.choices,
            knowledge.scores,
            round_to=space.round_to,
            quantisation=space.quantisation,
        ).key()

    table = evaluations(config.name, events, realise)
    task = problem(graph, knowledge.scores, space, config.search, knowledge.facts, seed=config.seed)
    return table, graph, knowledge.scores, task


def rehearse(
    folder: Path,
    config: StudyConfig,
    *,
    workers: Workers,
    candidates: int | None = None,
    names: Sequence[str] = (),
    repeats: int = 3,
) -> tuple[Rehearsal, Evaluations]:
    """Runs each searcher on the study's problem `repeats` times, seeds counting up from the study's.

    folder, config: of the study, as it was started. workers: their `seconds` are replaced by recorded ones. candidates:
    default, the study's own number. names: of searchers; default, the study's own and `random`. Also returns the table.
    Raises PrunefrontError for an unknown searcher, and where the study's evaluations do not suffice.
    """
    for name in names:
        searchers[name]
    budget = config.search.candidates if candidates is None else candidates
    config = config.model_copy(update={"search": config.search.model_copy(update={"candidates": budget})})
    table, graph, scores, task = recorded(folder, config)
    replay = Replay(config, graph, scores, table, seconds_of_first_stage(folder))
    reference = reference_point(task.objectives, replay.dense)
    events = tuple(Event(0.0, "told", r.key, r.candidate, r.outcome) for r in table.rows)
    steps = progress(events, task, reference)
    placed = replace(workers, seconds=replay.seconds)
    rows = []
    for name in dict.fromkeys(names or (config.search.searcher, "random")):
        options = config.search.options if name == config.search.searcher else {}
        runs = []
        for seed in range(config.seed, config.seed + repeats):
            history = simulate(
                searchers[name](task, seed=seed, **options),
                replay.evaluate,
                placed,
                budget=budget,
                seed=seed,
                realise=replay.realise,
            )
            runs.append((history, progress(history.told, task, reference)))
        rows.append(_summary(name, runs, budget, replay))
    return (
        Rehearsal(
            study=config.name,
            evaluations=len(table.rows),
            workers=workers.count,
            candidates=budget,
            repeats=repeats,
            durations=replay.durations,
            fit=replay.emulator.fit,
            itself={
                n: steps[table.recalled + n - 1].hypervolume
                for n in _checkpoints(budget, len(steps) - table.recalled)
            },
            rows=tuple(rows),
        ),
        table,
    )


def _summary(name: str, runs: Sequence[tuple[History, list[Step]]], budget: int, replay: Replay) -> Rehearsed:
    volumes = {}
    for count in _checkpoints(budget, budget):
        found = [steps[count - 1].hypervolume for _, steps in runs if len(steps) >= count]
        if found:
            volumes[count] = float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
    known = [e.key in replay.rows for history, _ in runs for e in history.told]
    return Rehearsed(
        searcher=name,
        hypervolume=volumes,
        seconds=float(np.mean([h.seconds for h, _ in runs])),
        busy=float(np.mean([h.busy_share for h, _ in runs])),
        duplicates=float(np.mean([h.duplicates for h, _ in runs])),
        recorded=float(np.mean(known)) if known else 0.0,
        exhausted=sum(h.exhausted for h, _ in runs),
    )


def _checkpoints(budget: int, most: int) -> list[int]:
    return [n for n in (*(c for c in CHECKPOINTS if c < budget), budget) if n <= most]


def seconds_of_first_stage(folder: Path) -> float | None:
    path = folder / TIMING
    if not path.exists():
        return None
    try:
        found = read_json(path)["busy"].get("screen")
    except (LookupError, TypeError, AttributeError) as error:
        raise changed(path, f"{type(error).__name__}: {error}") from None
    if found is not None and (type(found) not in (int, float) or not 0 <= found < 1e15):
        raise changed(path, f"{found!r:.40} are no seconds")
    return float(found) if found else None


def print_rehearsal(found: Rehearsal, console: Console) -> None:
    """The same for people."""
    counts = sorted({n for row in found.rows for n in row.hypervolume})
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("searcher", no_wrap=True)
    for title in (*(f"at {n}" for n in counts), "time", "busy", "recorded"):
        table.add_column(title, no_wrap=not title.startswith("at"))
    for row in found.rows:
        volumes = [row.hypervolume.get(n) for n in counts]
        cells = [
            row.searcher,
            *(
                "–" if v is None else f"{v[0]:.3f}" + (f" ± {v[1]:.3f}" if found.repeats > 1 else "")
                for v in volumes
            ),
            clock(row.seconds),
            f"{row.busy:.0%}",
            f"{row.recorded:.0%}",
        ]
        table.add_row(*map(Text, cells))
    own = [f"{found.itself[n]:.3f}" if n in found.itself else "–" for n in counts]
    table.add_row(*map(Text, ("the study", *own)), style="dim")
    fit = found.fit
    lines = (
        f"hypervolume after so many evaluations, mean ± standard deviation of {found.repeats} seeds; {found.workers} "
        f"workers; durations: {found.durations}",
        f"accuracy of what the study never scored is predicted from {fit.rows} of its {found.evaluations} scores: "
        f"cross-validated error {100 * fit.error:.1f} points, bias {100 * fit.bias:+.1f}, rank correlation "
        f"{fit.rank_correlation:.2f}; its costs are exact",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    for row in found.rows:
        if row.exhausted:
            console.print(
                f"{row.searcher}: {row.exhausted} of {found.repeats} repeats ended early, with nothing new to propose",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
