"""A study's rungs: made from its file, recalled from its journal, told to people and to MLflow."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

from prunefront.pipelines.config.sections import TrainingSection
from prunefront.pipelines.workers.rung_results import Reached
from prunefront.search.outcomes.measurement import Failure, Measurement, outcome_from_json
from prunefront.search.promotion.halving import FEWEST_PAIRS, TRUSTED, Rungs, RungSummary, Verdict, levels
from prunefront.search.space.problem import Problem


def keeps(section: TrainingSection) -> float:
    """Returns the share of a rung that goes on, as the study file has it."""
    return 1.0 / section.eta if section.early_stopping else 1.0


def rungs_of(
    section: TrainingSection,
    task: Problem,
    scored: Mapping[str, Measurement],
    events: Iterable[Mapping[str, Any]],
    names: Set[str],
    *,
    seed: int,
) -> Rungs:
    """Returns the rungs as the journal's events left them.

    task: as the first stage searched it. scored: measurements without training, which are rung 0. names: networks that
    are compared.
    """
    rungs = Rungs(
        task.objectives,
        levels=levels(section.epochs, section.eta),
        keep=keeps(section),
        constraints=task.constraints,
        seed=seed,
    )
    for name in sorted(names & scored.keys()):
        rungs.observe(0, name, scored[name])
    for event in events:
        if event["event"] not in ("rung", "stopped", "trained") or event["name"] not in names:
            continue
        outcome = outcome_from_json(event["outcome"])
        if isinstance(outcome, Failure):
            rungs.withdraw(event["name"])
        elif event["event"] == "trained":
            rungs.end(event["name"], outcome)
        else:
            verdict = Verdict(event["event"] == "rung", event["share"], event["of"])
            rungs.recall(event["epoch"], event["name"], outcome, verdict)
    return rungs


def event_of(reached: Reached) -> tuple[str, dict[str, Any]]:
    """The journal's event, and what it holds."""
    verdict = reached.verdict
    return "rung" if verdict.go_on else "stopped", {
        "name": reached.name,
        "epoch": reached.epoch,
        "outcome": reached.measurement.to_json(),
        "share": verdict.share,
        "of": verdict.of,
        "seconds": round(reached.seconds, 3),
    }


def rung_line(rung: RungSummary, keep: float, images: int = 0) -> str:
    """Returns a line that says how well the quality at a rung agreed with the final one.

    keep: share that the study file asks a rung to keep; 1 = all. images: number that the first stage trains on.
    """
    first = f"after {images} images" if images else "before training"
    when = f"after {rung.level} epoch{'s' * (rung.level > 1)}" if rung.level else first
    parts = [f"{rung.came} candidates, {rung.stopped} stopped" if rung.level else f"{rung.came} candidates"]
    like, correlations = rung.similar_cost, []
    if rung.overall is not None:
        correlations.append(f"{rung.overall:.2f} over {rung.finished} networks")
    if like.value is not None:
        error = f" ± {like.error:.2f}" if like.pairs >= FEWEST_PAIRS else ""
        pairs = f"{like.pairs} pair{'s' * (like.pairs != 1)} of similar cost"
        correlations.append(f"{like.value:.2f}{error} over {pairs}")
    if correlations:
        parts.append(f"rank correlation {', '.join(correlations)} (1 = same order, 0 = unrelated)")
    if like.value is None:
        parts.append("no two of similar cost differ clearly")
    if rung.level and rung.share > keep:
        parts.append(f"too low to stop by, so {rung.share:.0%} continue instead of {keep:.0%}")
    if (
        not rung.level
        and like.value is not None
        and like.pairs >= FEWEST_PAIRS
        and like.value + like.error < TRUSTED
    ):
        parts.append("too low to choose by: raise training.candidates")
    return f"quality {when} compared with the final quality: {'; '.join(parts)}"


def metrics(rung: RungSummary) -> dict[str, float]:
    """For the tracking store; what is not known is left out."""
    found = {"candidates": float(rung.came), "stopped": float(rung.stopped), "share": rung.share}
    if rung.overall is not None:
        found["correlation"] = rung.overall
    if rung.similar_cost.value is not None:
        found |= {"correlation_like": rung.similar_cost.value, "pairs_like": float(rung.similar_cost.pairs)}
    return found
