"""Which trained networks are on the front, and how they stand to a study's bounds."""

import json

from prunefront.choice import GroupChoice, pattern
from prunefront.pipelines.stages.final import Trained, chosen, standing
from prunefront.pipelines.workers.workbench import Job
from prunefront.pruners.graph.pruning_plan import DENSE
from prunefront.pruners.plan.decide import plan
from prunefront.search.outcomes.constraints import parse, resolve
from prunefront.search.outcomes.measurement import Measurement
from prunefront.search.space.candidate import Candidate
from tests.pruners.plans import traced

GRAPH = traced("Plain")


def trained(name: str, accuracy: float, ratio: float, size: float, kept: int = 8) -> Trained:
    """A network of so many channels of its first group."""
    group = GRAPH.groups[0]
    choice = GroupChoice("l1", 1 - kept / group.units, keep=pattern(list(range(kept))))
    made = plan(GRAPH, {group.name: choice}, {})
    values = {"accuracy": accuracy, "latency_ratio": ratio, "latency_ms": 3 * ratio, "size_bytes": size}
    measured = Measurement({**values, "macs": 1e6 * ratio, "params": size / 4}, {"accuracy": 0.002})
    return Trained(Job(name, Candidate({}), made, 1), measured, f"{name}-0", 1)


NETWORKS = [
    trained(DENSE, 0.9, 1.0, 100_000),
    trained("dense-finetuned", 0.905, 1.0, 100_000),
    trained("large", 0.897, 0.7, 70_000, kept=6),
    trained("small", 0.885, 0.5, 40_000, kept=4),
    trained("tiny", 0.7, 0.2, 9_000, kept=1),
]


def stand(*texts: str) -> tuple[set[str], dict[str, object]]:
    bounds = [parse(text) for text in texts]
    limits = resolve(bounds, NETWORKS[0].measurement.values)
    found = standing(NETWORKS, bounds, limits, lambda artifact: f"s3://bucket/{artifact}")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return {t.name for t in chosen(NETWORKS, limits)}, found


def test_the_front_keeps_all_bounds_beside_the_dense_network_which_is_always_shown() -> None:
    front, found = stand("accuracy >= -2pt", "latency_ms <= 60%", "size_bytes <= 50kB")
    assert front == {DENSE, "small"}
    assert (found["met"], found["of"], found["nearest"]) == (1, 3, None)
    assert str(found["said"]).startswith(
        "1 of 3 fine-tuned networks meet accuracy >= -2pt, latency_ms <= 60%, size"
    )
    assert stand("latency_ms <= 2.2ms")[0] == {DENSE, "large", "small", "tiny"}
    assert stand("accuracy >= 89.6%")[0] == {DENSE, "dense-finetuned", "large"}


def test_where_none_keeps_them_the_nearest_is_named_with_what_it_lacks_and_where_it_is() -> None:
    front, found = stand("accuracy >= -1pt", "latency_ratio <= 0.45")
    assert front == {DENSE}
    assert found["nearest"] == "small"
    assert found["said"] == (
        "no pruned network meets accuracy >= -1pt, latency_ratio <= 0.45; nearest: small with accuracy 0.885 (>= 0.89 "
        "was asked), latency_ratio 0.5 (<= 0.45 was asked) on validation images; prunefront fetch s3://bucket/small-0"
    )


def test_where_nothing_was_fine_tuned_it_is_said() -> None:
    bounds = [parse("macs <= 1%")]
    limits = resolve(bounds, NETWORKS[0].measurement.values)
    assert standing(NETWORKS[:2], bounds, limits, str)["said"] == (
        "no pruned network meets macs <= 1%: none was fine-tuned"
    )
