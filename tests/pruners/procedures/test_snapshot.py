"""A training that was broken off and goes on equals one that was not, bit for bit; what is no snapshot is refused."""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from prunefront.choice import GroupChoice, Quantisation
from prunefront.errors import PrunefrontError
from prunefront.pruners.procedures import procedures
from prunefront.pruners.procedures.loop import fit
from prunefront.pruners.procedures.run import Run, SnapshotError
from prunefront.pruners.procedures.snapshot import HEADER, Snapshot, Sums, take_snapshot
from tests.pruners.cut.test_compact import tower
from tests.pruners.cut.test_compact_training import batches as images
from tests.pruners.cut.test_compact_training import everything
from tests.pruners.fixtures import Grouped, Residual, made
from tests.pruners.training import RATE, backward, data, goal_of, sgd, start, tensors

RESUMING = sorted(name for name in procedures if procedures[name].resumes)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Trained:
    """Result of a run: reports without their seconds, networks between epochs, and its snapshots as bytes."""

    run: Run
    reports: list[tuple[int, float, int]]
    between: list[dict[str, Tensor]]
    kept: list[bytes]


def train(name: str, run: Run, snapshot: Snapshot | None = None) -> Trained:
    """Trains to the end, with the batches that come after the snapshot."""
    batches = images() if run.goal.layers else data()
    done = 0 if snapshot is None else snapshot.step
    stream = itertools.islice(itertools.cycle(batches), done % len(batches), None)
    found = Trained(run, [], [], [])

    def keep(sums: Sums) -> None:
        found.kept.append(take_snapshot(run, sums, ["any", "JSON"]).to_bytes())

    phases = procedures[name](run)
    reports = fit(
        run,
        phases,
        stream,
        backward,
        learning_rate=RATE,
        schedule=lambda d: 1.0 - 0.9 * d,
        keep=keep,
        snapshot=snapshot,
    )
    for report in reports:
        found.reports.append((report.epoch, report.loss, report.images))
        found.between.append(tensors(run.model))
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def momenta(run: Run) -> dict[str, Tensor]:
    return {n: run.optimizer.state[p]["momentum_buffer"] for n, p in run.model.named_parameters()}


def everything_asked() -> Run:
    """Channels, a block, layers of every granularity, quantisation of 4 bits of weights and 8 of inputs."""
    model, _, graph = tower()
    goal = everything(graph, model, quantisation=Quantisation("fixed_point", True, "fixed_point", 8))
    assert goal.stacks
    assert goal.layers
    return Run(model, graph, goal, steps=8, per_epoch=3, optimizer=sgd, calibration=images()[:2])


RUNS: dict[str, Callable[[], Run]] = {
    "whole epochs": lambda: start(steps=15, per_epoch=5),
    "a part of an epoch at the end": lambda: start(steps=12, per_epoch=5),
    "no batch norms": lambda: start(Grouped, steps=9, per_epoch=3),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [*itertools.product(RESUMING, RUNS), ("one_shot", "everything"), ("cubic_ramp", "everything")],
)
def test_it_goes_on_as_if_nothing_had_happened(name: str, kind: str) -> None:
    begin = RUNS.get(kind, everything_asked)
    whole = train(name, begin())
    # what is made compact on trained weights would be chosen otherwise: no snapshot is taken from there on
    assert len(whole.kept) == (1 if (name, kind) == ("cubic_ramp", "everything") else len(whole.reports))
    for epoch, content in enumerate(whole.kept, 1):
        torch.manual_seed(epoch)  # the global generator plays no part
        again = train(name, begin(), Snapshot.from_bytes(content))
        # the epoch that had ended is told once more, as whoever heard of it may be gone
        assert again.reports == whole.reports[epoch - 1 :]
        assert all(map(same, again.between, whole.between[epoch - 1 :]))
        assert again.run.kept == whole.run.kept
        assert again.run.plan() == whole.run.plan()
        assert same(momenta(again.run), momenta(whole.run))
        assert again.run.rng.bit_generator.state == whole.run.rng.bit_generator.state
        # and it can be broken off again
        assert [without_seconds(c) for c in again.kept] == [without_seconds(c) for c in whole.kept[epoch:]]


def without_seconds(content: bytes) -> bytes:
    snapshot = Snapshot.from_bytes(content)
    return replace(snapshot, sums=replace(snapshot.sums, seconds=0.0)).to_bytes()


def test_no_snapshot_is_taken_of_what_would_not_be_made_again() -> None:
    whole = train("cubic_ramp", everything_asked())
    with pytest.raises(ValueError, match="made compact on trained weights"):
        take_snapshot(whole.run, Sums(), None)


def test_the_simplest_procedures_resume_and_an_entry_says_so() -> None:
    assert {"one_shot", "iterative", "cubic_ramp"} <= set(RESUMING) < set(procedures)
    resume, again = docs_say()
    assert (resume, again) == (RESUMING, sorted(set(procedures) - set(RESUMING)))
    # masks that are drawn or learned are not in the snapshot
    assert not any(procedures[name].over == "weights" for name in RESUMING)


def docs_say() -> tuple[list[str], list[str]]:
    """The names that docs/placement.md has under each of its two points."""
    text = (Path(__file__).parents[3] / "docs" / "placement.md").read_text()
    found = []
    for begin in ("- Procedures whose cuts", "- The others start again"):
        point = text[text.index(begin) :].partition("\n- ")[0]
        found.append(sorted(re.findall(r"`(\w+)`", point)))
    return found[0], found[1]


def test_a_snapshot_of_another_run_is_refused() -> None:
    snapshot = Snapshot.from_bytes(train("iterative", start(steps=15)).kept[1])
    model = made(Residual).float()
    one_group = goal_of(model, inner=GroupChoice("l1", 0.5))
    for name, run in (
        ("one_shot", start(steps=15)),
        ("iterative", start(Grouped, steps=15)),
        ("iterative", start(steps=6)),
        ("iterative", start(goal=one_group, steps=15)),
    ):
        with pytest.raises(SnapshotError) as caught:
            train(name, run, snapshot)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, PrunefrontError)


def test_what_is_no_snapshot_is_refused_in_one_line() -> None:
    content = train("one_shot", start()).kept[0]
    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][HEADER])

    def changed(**values: Any) -> bytes:
        return save({"network/x": torch.zeros(1)}, {HEADER: json.dumps({**header, **values})})

    cases = [
        b"", b"\x00" * 8, b"\xff" * 64, content[: length // 2], content[:-1], content[8:], b"\x80\x04N.",
        save({"x": torch.zeros(1)}),
        *(save({"x": torch.zeros(1)}, {HEADER: text}) for text in ("{", "[]", "null")),
        changed(format="another"), changed(step="x"), changed(sums=[1]), changed(cuts=[[1]]),
        changed(cuts=[{"a": ["b"]}]), changed(rng=3), changed(sums=None), changed(step=None),
    ]  # fmt: skip
    for case in cases:
        with pytest.raises(SnapshotError) as caught:
            Snapshot.from_bytes(case)
        assert "\n" not in str(caught.value), case
    with pytest.raises(SnapshotError):
        train("one_shot", start(), Snapshot.from_bytes(changed()))
    with pytest.raises(SnapshotError):
        train("one_shot", start(), replace(Snapshot.from_bytes(content), rng={"bit_generator": "none"}))
