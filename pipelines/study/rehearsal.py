"""Rehearses a search: a study's evaluations are replayed on virtual workers, to see what another budget would bring."""

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
from prunefront.pipelines.events.display import format_duration
from prunefront.pipelines.journal.evaluations import Evaluations, evaluations, no_evaluations_error
from prunefront.pipelines.journal.journal import altered_file_error, read_events, read_json
from prunefront.pipelines.journal.layout import JOURNAL, TIMING
from prunefront.pipelines.journal.metrics import quality_in
from prunefront.pipelines.prepare.knowledge import read_knowledge
from prunefront.pipelines.prepare.problem import objectives, problem
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import DENSE, PruningPlan, Scores
from prunefront.pruners.plan.cost import cost
from prunefront.pruners.plan.decide import plan
from prunefront.search.outcomes.front import reference_point
from prunefront.search.outcomes.measurement import ACCURACY, Measurement, Metric, Outcome, quality_of
from prunefront.search.outcomes.utility import utility
from prunefront.search.prediction.emulator import Emulator, Fit
from prunefront.search.searchers import searchers
from prunefront.search.simulator import Event, History, Step, Workers, progress, simulate
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem

CHECKPOINTS = (25, 50, 100, 200, 500, 1000, 2000, 5000)
"""Numbers of evaluations at which the hypervolume is shown, beside the last."""


@dataclass(frozen=True, slots=True)
class SearcherRehearsal:
    """The rehearsals of one searcher, over all repeats.

    hypervolume: evaluations -> (mean, standard deviation) over those repeats that came so far. seconds: virtual time to
    the end, mean. busy: share of the workers' time that they computed, mean. duplicates: proposals of a known network,
    mean. recorded: share of the evaluations that the study itself had made; the rest is predicted. exhausted: repeats
    that ended early for lack of new proposals.
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
    """The result of `rehearse`. evaluations: number that the study had made, or taken over from earlier studies.

    durations: the source of the seconds of a job, in words. fit: quality of what is predicted for
    candidates which the study never scored. itself: evaluations -> the hypervolume that the study's own search had
    then; evaluations of earlier studies are in the hypervolume, and not in the count.
    """

    study: str
    evaluations: int
    workers: int
    candidates: int
    repeats: int
    durations: str
    fit: Fit
    itself: Mapping[int, float]
    rows: tuple[SearcherRehearsal, ...]

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["itself"] = {str(n): v for n, v in self.itself.items()}
        for row in data["rows"]:
            row["hypervolume"] = {str(n): {"mean": m, "std": s} for n, (m, s) in row["hypervolume"].items()}
        return data


class Replay:
    """The study's own evaluations, and predictions for candidates that it never scored.

    A recorded network has its recorded outcome and duration. For another one MACs, parameters and bytes are exact;
    quality is the emulator's, with the interval that as many images would give; the duration is a recorded one, which
    the network's key picks.
    """

    def __init__(
        self,
        config: StudyConfig,
        graph: ChannelGraph,
        scores: Scores,
        table: Evaluations,
        busy: float | None,
        metric: Metric = ACCURACY,
    ) -> None:
        """busy: seconds that workers spent on all evaluations, for a journal that lacks the time of each.

        Raises PrunefrontError where too few candidates were measured to predict others, and where the dense network was
        not measured.
        """
        self._config, self._graph, self._scores = config, graph, scores
        self.rows = {row.key: row for row in table.rows}
        measured = {k: r.outcome for k, r in self.rows.items() if isinstance(r.outcome, Measurement)}
        if DENSE not in measured:
            raise PrunefrontError(
                f"study {table.study!r} has not measured its dense network, against which hypervolume is taken; let "
                "`prunefront search` run until it has"
            )
        self.dense = measured[DENSE]
        self._metric = metric
        self._measured = [*measured.values()]
        self._utility = utility(metric, [self.dense, *measured.values()])
        self._plans: dict[str, PruningPlan] = {}
        ratios = [self.plan(self.rows[key].candidate).achieved_ratios() for key in measured]
        self.emulator = Emulator(
            ratios,
            [float(u) for u in self._utility.of(np.array([m[metric.name] for m in measured.values()]))],
        )
        self._images = _count_images(list(measured.values()), metric)
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
        """Returns the plan of a candidate. Raises PrunefrontError for one that cannot be carried out."""
        key = candidate.key()
        if key not in self._plans:
            space = self._config.space
            self._plans[key] = plan(
                self._graph,
                candidate.choices,
                self._scores,
                round_to=space.round_to,
                quantisation=self._config.quantisation.method,
            )
        return self._plans[key]

    def realise(self, candidate: Candidate) -> str:
        return self.plan(candidate).key()

    def evaluate(self, candidate: Candidate) -> Outcome:
        aim = self.plan(candidate)
        if (row := self.rows.get(aim.key())) is not None:
            return row.outcome
        price = cost(self._graph, aim)
        name = self._metric.name
        quality = float(self._utility.value(self.emulator.predict([aim.achieved_ratios()]))[0])
        if self._metric.scale == "share":
            half = (
                1.96 * float(np.sqrt(max(quality * (1 - quality), 0.0) / self._images))
                if self._images
                else 0.0
            )
        else:
            half = float(np.median([m.noise.get(name, 0.0) for m in self._measured]))
        return Measurement(
            {
                name: quality,
                "macs": float(price.macs),
                "params": float(price.params),
                "size_bytes": float(price.size_bytes),
            },
            {name: half},
        )

    def seconds(self, candidate: Candidate) -> float:
        key = self.realise(candidate)
        row = self.rows.get(key)
        if row is not None and row.seconds:
            return row.seconds
        return self._seconds[int(key, 16) % len(self._seconds) if key != DENSE else 0]


def _count_images(measured: Sequence[Measurement], metric: Metric) -> float:
    """Returns the number of images that the recorded intervals imply; 0 where there are no intervals."""
    name = metric.name
    counts = [
        1.96**2 * m[name] * (1 - m[name]) / m.noise[name] ** 2
        for m in measured
        if metric.scale == "share" and m.noise.get(name, 0.0) > 0 and 0.05 < m[name] < 0.95
    ]
    return float(np.median(counts)) if counts else 0.0


def load_evaluations(folder: Path, config: StudyConfig) -> tuple[Evaluations, ChannelGraph, Scores, Problem]:
    """Returns a study's evaluations, and the graph, scores and problem of its searcher.

    Raises PrunefrontError where there are no evaluations.
    """
    events = read_events(folder / JOURNAL)
    if not any(e["event"] == "told" for e in events):
        raise no_evaluations_error(config.name)
    graph, knowledge = read_knowledge(folder)
    space = config.space

    def realise(candidate: Candidate) -> str:
        return plan(
            graph,
            candidate.choices,
            knowledge.scores,
            round_to=space.round_to,
            quantisation=config.quantisation.method,
        ).key()

    table = evaluations(config.name, events, realise)
    task = problem(
        graph,
        knowledge.scores,
        space,
        config.goal,
        config.start,
        knowledge.facts,
        candidates=config.search.candidates,
        quantisation=config.quantisation,
        seed=config.seed,
        goals=objectives(config.goal, quality_in(events)),
    )
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

    folder, config: the study's, as it was started. workers: virtual ones; their `seconds` are replaced by recorded
    ones. candidates: budget; None = the study's. names: searchers; () = the study's and `random`. Also returns the
    table of evaluations. Raises PrunefrontError for an unknown searcher, and where the evaluations do not suffice.
    """
    for name in names:
        searchers[name]
    budget = config.search.candidates if candidates is None else candidates
    config = config.model_copy(update={"search": config.search.model_copy(update={"candidates": budget})})
    table, graph, scores, task = load_evaluations(folder, config)
    metric = quality_of(task.objectives) or ACCURACY
    replay = Replay(config, graph, scores, table, first_stage_seconds(folder), metric)
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


def _summary(
    name: str, runs: Sequence[tuple[History, list[Step]]], budget: int, replay: Replay
) -> SearcherRehearsal:
    volumes = {}
    for count in _checkpoints(budget, budget):
        reached = [steps[count - 1].hypervolume for _, steps in runs if len(steps) >= count]
        if reached:
            std = float(np.std(reached, ddof=1)) if len(reached) > 1 else 0.0
            volumes[count] = float(np.mean(reached)), std
    known = [e.key in replay.rows for history, _ in runs for e in history.told]
    return SearcherRehearsal(
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


def first_stage_seconds(folder: Path) -> float | None:
    """Returns the seconds that workers spent on the first stage; None where they were not recorded.

    Raises StudyFolderError for a file that no search writes.
    """
    path = folder / TIMING
    if not path.exists():
        return None
    try:
        seconds = read_json(path)["busy"].get("screen")
    except (LookupError, TypeError, AttributeError) as error:
        raise altered_file_error(path, f"{type(error).__name__}: {error}") from None
    if seconds is not None and (type(seconds) not in (int, float) or not 0 <= seconds < 1e15):
        raise altered_file_error(path, f"{seconds!r:.40} are no seconds")
    return float(seconds) if seconds else None


def print_rehearsal(found: Rehearsal, console: Console) -> None:
    """Prints a rehearsal as a table for people."""
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
            format_duration(row.seconds),
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
        f"quality of candidates that the study never scored is predicted from {fit.rows} of its "
        f"{found.evaluations} scores: "
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
