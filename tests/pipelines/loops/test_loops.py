"""Loops that are not ours: the contract of all of them, what a bad one is told, and how a worker gets on with them."""

import copy
import math
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cluster.package import PackedSections, pack
from prunefront.pipelines.config.read import load
from prunefront.pipelines.config.sections import (
    ClusterSection,
    QuantisationSection,
    ScoringSection,
    TrainingSection,
)
from prunefront.pipelines.data import Inputs, Parts, Tensors
from prunefront.pipelines.loops import Budget, LoopError, loops, make_loop
from prunefront.pipelines.loops.checkpoint import LoopSnapshot
from prunefront.pipelines.loops.loop import takes_checkpoint
from prunefront.pipelines.loops.running import epochs_of
from prunefront.pipelines.prepare.training import check_settings
from prunefront.pipelines.tasks import CLASSIFICATION
from prunefront.pipelines.workers.checkpoints import Folder
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.failures import failure
from prunefront.pipelines.workers.trial import Trial, outcome_of
from prunefront.pipelines.workers.workbench import Job
from prunefront.pruners.procedures.run import SnapshotError
from prunefront.pruners.shrink import shrink
from prunefront.search.outcomes.measurement import Failure
from prunefront.search.space.candidate import Candidate
from tests.pipelines.workers.test_checkpoints import planned_half
from tests.pipelines.workers.test_failures import bench

EPOCHS = 3
BUDGET = Budget(EPOCHS, 64, 16, 0.05, 1e-4, 0.5, 2.0, seed=7)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Plain(nn.Module):
    """Two classes of vectors of length 6."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 2)

    def logits(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)


class Lit(Plain):
    """Written as a LightningModule is."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        return {"loss": F.cross_entropy(self(x), y)}

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


@dataclass
class Answer:
    """Written as an output of transformers is."""

    logits: Tensor
    loss: Tensor | None = field(default=None)


class ReturnsLoss(Plain):
    """Written as a model of transformers is."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.logits(x)
        return logits if labels is None else Answer(logits, F.cross_entropy(logits, labels))


def ours(
    model: nn.Module,
    task: Any,
    *,
    data: Any,
    teacher: nn.Module,
    budget: Budget,
    on_epoch: Callable[[int], Mapping[str, float]],
    device: torch.device,
    rate: float = 0.1,
    calls: int = EPOCHS,
    passing: Callable[[nn.Module, int], None] = lambda model, epoch: None,
) -> None:
    """A person's loop, which draws from every global generator."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    rng = np.random.default_rng(budget.seed)
    for epoch in range(1, calls + 1):
        model.train()
        for batch in data.part("train").batches(budget.batch_size, rng=rng, device=device, smallest=2):
            optimizer.zero_grad()
            noise = torch.rand(1) + random.random() + np.random.rand()  # noqa: NPY002
            loss = task.loss(batch.inputs.call(model), batch.targets) * (1.0 + 0.01 * float(noise))
            loss.backward()
            optimizer.step()
        passing(model, epoch)
        on_epoch(epoch)


def resuming(
    model: nn.Module, task: Any, *, data: Any, budget: Budget, on_epoch: Any, checkpoint: Any, **rest: Any
) -> None:
    """A person's loop that goes on where it was broken off, and draws from every global generator."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rng, first = np.random.default_rng(budget.seed), 1
    if (state := checkpoint.load()) is not None:
        optimizer.load_state_dict(state["optimizer"])
        first, rng.bit_generator.state = state["epoch"] + 1, state["rng"]
    for epoch in range(first, budget.epochs + 1):
        model.train()
        for batch in data.part("train").batches(budget.batch_size, rng=rng, smallest=2):
            optimizer.zero_grad()
            noise = torch.rand(1) + random.random() + np.random.rand()  # noqa: NPY002
            (task.loss(batch.inputs.call(model), batch.targets) * (1.0 + 0.01 * float(noise))).backward()
            optimizer.step()
        checkpoint.save(
            {
                "optimizer": optimizer.state_dict(),
                "epoch": epoch,
                "rng": rng.bit_generator.state,
                "best": float("-inf"),
            }
        )
        on_epoch(epoch)


CASES: dict[str, type[Plain]] = {
    "lightning": Lit,
    "returns_loss": ReturnsLoss,
    f"{__name__}:ours": Plain,
    f"{__name__}:resuming": Plain,
}
"""Network of each loop. A new one needs a case here."""


def made(kind: type[Plain]) -> Plain:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def pruned(kind: type[Plain]) -> Plain:
    batch = next(iter(data().train.batches(64)))
    found = shrink(made(kind), [(batch.inputs.args[0], batch.targets)], kept_macs=0.5, criterion="l1").model
    assert isinstance(found, kind)
    assert found.first.out_features == 6
    return found


def part(count: int, seed: int) -> Tensors:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return Tensors(Inputs((x,)), (x[:, 0] * x[:, 1] > 0).long())


def data() -> Parts:
    return Parts(part(64, 0), part(64, 1), None)


def begun(name: str, model: nn.Module, keep: Any = None, snapshot: Any = None, **options: Any) -> Any:
    return epochs_of(
        make_loop(name, options),
        name,
        model,
        CLASSIFICATION,
        data=data(),
        teacher=made(Plain),
        budget=BUDGET,
        around=nullcontext,
        identity="this",
        keep=keep,
        snapshot=snapshot,
    )


def trained(name: str, model: nn.Module, **options: Any) -> list[int]:
    told, running = [], begun(name, model, **options)
    epoch = next(running)
    try:
        while True:
            told.append(epoch)
            random.seed(1)  # the loop sees nothing of it
            torch.manual_seed(len(told))
            epoch = running.send({"accuracy": 0.5})
    except StopIteration:
        return told


def loss(model: Plain) -> float:
    batch = next(iter(data().train.batches(64)))
    with torch.no_grad():
        return F.cross_entropy(model.logits(batch.inputs.args[0]), batch.targets).item()


def waiting_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loop ")]


def test_every_loop_has_a_case() -> None:
    assert set(loops) == {name for name in CASES if ":" not in name}


@pytest.mark.parametrize("name", CASES)
def test_a_loop_learns_calls_back_once_an_epoch_and_repeats(name: str) -> None:
    model, again = pruned(CASES[name]), pruned(CASES[name])
    shapes = {n: t.shape for n, t in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr,call-overload]  # noqa: NPY002
    before = loss(model)
    next(begun(name, copy.deepcopy(model)))  # a loop that is dropped after an epoch leaves nothing behind
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr,call-overload]  # noqa: NPY002
    assert torch.equal(states[0], after[0]), "global generators are put back"
    assert states[1:] == after[1:]
    assert trained(name, model) == list(range(1, EPOCHS + 1))
    assert loss(model) < before
    assert not model.training
    assert {n: t.shape for n, t in model.state_dict().items()} == shapes
    trained(name, again)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert waiting_threads() == []


@pytest.mark.parametrize("name", CASES)
def test_a_loop_that_takes_checkpoints_goes_on_as_if_nothing_had_happened(name: str) -> None:
    """One that takes none begins anew."""
    whole, kept = pruned(CASES[name]), []
    trained(name, whole, keep=lambda content: kept.append(content()))
    if not takes_checkpoint(make_loop(name, {})):
        assert kept == []
        return
    assert len(kept) == EPOCHS
    for epoch, content in enumerate(kept, 1):
        model = pruned(CASES[name])
        again = trained(name, model, snapshot=LoopSnapshot.from_bytes(content))
        assert again == list(range(epoch, EPOCHS + 1)), (
            "its own epoch is told first, for who compares at rungs"
        )
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.state_dict().values(), whole.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize("change", [{"identity": "that"}, {"network": {}}, {"draws": [1, 2, 3, 4]}], ids=str)
def test_a_checkpoint_of_another_training_is_refused(change: dict[str, Any]) -> None:
    kept: list[bytes] = []
    trained("lightning", made(Lit), keep=lambda content: kept.append(content()))
    for content in (b"", kept[0][:-1], kept[0].replace(b"prunefront loop 1", b"prunefront loop 9")):
        with pytest.raises(SnapshotError, match="this is no snapshot of a loop's training"):
            LoopSnapshot.from_bytes(content)
    with pytest.raises(SnapshotError, match="the snapshot is of"):
        trained("lightning", made(Lit), snapshot=replace(LoopSnapshot.from_bytes(kept[0]), **change))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner)
    ),
    max_leaves=10,
)


@settings(max_examples=30)
@given(PLAIN, st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8]))
def test_a_state_comes_back_as_it_was(plain: Any, dtype: torch.dtype) -> None:
    tensor, array = torch.arange(6).reshape(2, 3).to(dtype).T, np.arange(3, dtype=np.uint32)
    state = {"plain": plain, 0: [tensor, array, tensor]}
    snapshot = LoopSnapshot("this", 2, 8, {"w": tensor}, None, state)
    found = LoopSnapshot.from_bytes(snapshot.to_bytes())
    assert found.state["plain"] == plain
    assert torch.equal(found.state[0][0], tensor)
    assert found.state[0][1].tolist() == array.tolist()
    assert torch.equal(found.network["w"], tensor)
    assert (found.identity, found.epoch, found.step) == ("this", 2, 8)


def test_a_state_that_cannot_be_kept_is_named() -> None:
    snapshot = LoopSnapshot("this", 1, 1, {}, None, {"a": [1, {"f": len}]})
    with pytest.raises(
        LoopError, match=r"state\['state'\]\['a'\]\[1\]\['f'\] is a builtin_function_or_method"
    ):
        snapshot.to_bytes()


def test_a_stopped_loop_ends_and_an_error_is_its_own() -> None:
    running = begun(f"{__name__}:ours", made(Plain))
    assert next(running) == 1
    assert waiting_threads() != []
    running.close()
    assert waiting_threads() == []

    def broken(model: nn.Module, epoch: int) -> None:
        if epoch == 2:
            raise MemoryError

    with pytest.raises(MemoryError):
        trained(f"{__name__}:ours", made(Plain), passing=broken)


def narrower(model: nn.Module, epoch: int) -> None:
    model.last = nn.Linear(12, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"calls": 0}, "never called on_epoch"),
        ({"calls": EPOCHS + 1}, f"more often than the budget's {EPOCHS} epochs"),
        (
            {"passing": narrower},
            r"changed the network's shapes: 'last\.bias' was float32 \(2,\) on cpu, and is .*3",
        ),
        ({"rate": 0.0}, "trained nothing: all weights are as they were"),
    ],
    ids=["never calls", "calls too often", "changes shapes", "trains nothing"],
)
def test_a_bad_loop_is_told_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LoopError, match=said) as caught:
        trained(f"{__name__}:ours", made(Plain), **options) or pytest.fail("it went through")
    found = failure(caught.value)
    assert found.kind == "refused"
    assert "\n" not in found.reason
    assert waiting_threads() == []


def test_what_a_ready_made_loop_needs_of_its_network_is_said() -> None:
    with pytest.raises(LoopError, match=r"needs a network with training_step\(\), which Plain does not have"):
        trained("lightning", made(Plain))

    class Two(Lit):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD([p], lr=0.1) for p in self.parameters()]

    with pytest.raises(LoopError, match="cannot take one optimiser"):
        trained("lightning", made(Two))

    class Silent(ReturnsLoss):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            return self.logits(x)

    with pytest.raises(LoopError, match="its Tensor holds no scalar loss"):
        trained("returns_loss", made(Silent))


SEEN: list[tuple[int, Mapping[str, float]]] = []


def telling(model: nn.Module, task: Any, *, on_epoch: Any, **given: Any) -> None:
    """A person's loop that notes what it is answered."""
    ours(model, task, on_epoch=lambda epoch: SEEN.append((epoch, on_epoch(epoch))), rate=0.3, **given)


def idle(model: nn.Module, task: Any, *, on_epoch: Any, **given: Any) -> None:
    """A loop that trains nothing."""
    ours(model, task, on_epoch=on_epoch, rate=0.0, **given)


def test_a_worker_trains_by_a_persons_loop_and_may_stop_it() -> None:
    SEEN.clear()
    worker = Evaluator(replace(bench(None), loop=f"{__name__}:telling"))
    job = Job("a", Candidate({}), planned_half(worker.bench.graph), epochs=EPOCHS, compared=True)
    told, running = [], worker.train(job)
    try:
        while True:
            told.append(next(running))
    except StopIteration as ended:
        model, plan, epochs = ended.value
    assert epochs == EPOCHS
    assert [(p.epochs, p.whole) for p in told] == [(1, True), (2, True)], "rungs may compare it"
    assert [epoch for epoch, _ in SEEN] == [1, 2, 3]
    assert SEEN[0][1] == {"accuracy": told[0].measurement["accuracy"]}
    untrained = worker.measure(worker.prune(plan), plan)["accuracy"]
    assert worker.measure(model, plan)["accuracy"] == SEEN[-1][1]["accuracy"] > untrained + 0.05
    assert plan.key() == job.plan.key()
    again = []
    for progress in worker.train(job):
        random.seed(1)  # the loop sees nothing of it
        torch.manual_seed(1)
        again.append(progress)
    assert again == told
    stopped = worker.train(job)
    next(stopped)
    del stopped  # as a rung does
    assert waiting_threads() == []


def test_a_bad_loop_is_the_failure_of_its_candidate_alone() -> None:
    trial = Trial(replace(bench(None), loop=f"{__name__}:idle"), None, 1)
    trial.start(Job("a", Candidate({}), planned_half(bench(None).graph), epochs=EPOCHS))
    *before, last = (trial.step() for _ in range(EPOCHS))
    assert [result["epoch"] for result in before] == [1, 2]
    outcome, name = outcome_of(last), f"{__name__}:idle"
    assert isinstance(outcome, Failure)
    assert outcome.reason == f"training.loop = {name!r} trained nothing: all weights are as they were"


def not_finite(model: nn.Module, task: Any, **given: Any) -> None:
    """A loop whose loss is NaN."""
    ours(model, task, **given, rate=math.nan)


def not_scalar(model: nn.Module, task: Any, *, data: Any, **rest: Any) -> None:
    """A loop that goes backward from a loss a sample."""
    batch = next(iter(data.part("train").batches(8)))
    batch.inputs.call(model).sum(1).backward()


def short(model: nn.Module, task: Any, **given: Any) -> None:
    """A loop that ends before its budget does."""
    ours(model, task, **given, calls=1)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("not_finite", "not_finite", "outputs are not finite"),
        ("not_scalar", "error", "RuntimeError: grad can be implicitly created only for scalar outputs"),
    ],
)
def test_what_goes_wrong_within_a_loop_is_its_candidates_failure(name: str, kind: str, said: str) -> None:
    made = bench(None)
    trial = Trial(replace(made, loop=f"{__name__}:{name}"), None, 1)
    trial.start(Job("a", Candidate({}), planned_half(made.graph), epochs=EPOCHS))
    outcome = outcome_of(trial.step())
    assert isinstance(outcome, Failure)
    assert outcome.kind == kind
    assert said in outcome.reason
    assert "\n" not in outcome.reason
    assert waiting_threads() == []


def test_a_loop_that_ends_early_has_trained_the_epochs_that_it_has() -> None:
    made = bench(None)
    worker = Evaluator(replace(made, loop=f"{__name__}:short"))
    running = worker.train(Job("a", Candidate({}), planned_half(made.graph), epochs=EPOCHS))
    assert next(running).epochs == 1
    with pytest.raises(StopIteration) as ended:
        next(running)
    assert ended.value.value.epochs == 1


def test_a_trial_by_a_loop_is_resumed_by_another_worker(tmp_path: Path) -> None:
    made = replace(bench(None), loop=f"{__name__}:resuming")
    job = Job("a", Candidate({}), planned_half(made.graph), epochs=EPOCHS)
    results = []
    for folder, broken_off in (("whole", False), ("broken", True)):
        trial = Trial(made, Folder(tmp_path / folder), 1)
        steps = trial._trained(job)
        next(steps)
        if broken_off:
            steps.close()
            trial = Trial(made, Folder(tmp_path / folder), 1)
            steps = trial._trained(job)
            assert next(steps).epochs == 1
            assert trial._resumed > 0
        while True:
            try:
                next(steps)
            except StopIteration as ended:
                results.append(ended.value.model.state_dict())
                break
    assert all(torch.equal(results[0][n], t) for n, t in results[1].items())


@pytest.mark.parametrize(
    ("training", "more", "said"),
    [
        ({"procedure": "iterative"}, {}, r"procedure 'iterative' cuts on the way"),
        ({"ema": 0.9}, {}, r"training\.ema is a setting of our loop"),
        ({}, {"scoring": ScoringSection(train_images=64)}, r"train_images = 64 trains by our loop"),
        (
            {},
            {"cluster": ClusterSection(gpus_per_worker=2)},
            r"trains in one process, and \[cluster\] asks for 2",
        ),
        ({}, {"quantisation": QuantisationSection(bits=(8,))}, r"quantisation\.bits has 8"),
        ({"options": {"colour": 3}}, {}, r"cannot be called as loop\(.*colour=3\)"),
        ({"loop": "lightening"}, {}, r"did you mean 'lightning'"),
        ({"loop": "nowhere:loop"}, {}, r"there is no module 'nowhere'"),
    ],
    ids=str,
)
def test_what_a_loop_cannot_do_is_refused_before_anything_is_spent(
    training: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    def check(section: TrainingSection, **other: Any) -> None:
        sections = {
            "quantisation": QuantisationSection(),
            "scoring": ScoringSection(),
            "cluster": ClusterSection(),
        } | other
        check_settings(section, sections["quantisation"], sections["scoring"], sections["cluster"])

    check(TrainingSection(loop=f"{__name__}:ours", options={"rate": 0.1}))
    with pytest.raises(PrunefrontError, match=said):
        check(TrainingSection.model_validate({"loop": f"{__name__}:ours"} | training), **more)


def test_the_modules_of_loop_and_task_go_along_with_a_job(tmp_path: Path) -> None:
    for name in ("my_loop", "my_task"):
        (tmp_path / f"{name}.py").write_text("")
    file = tmp_path / "s.toml"
    file.write_text(
        'name = "mine"\n[model]\nfactory = "digits_cnn"\n[task]\nname = "my_task:make"\n'
        '[training]\nloop = "my_loop:train"\n'
    )
    packed = pack(file, load(file, base=Path()).part(PackedSections), here=tmp_path)
    assert set(packed.files) == {"s.toml", "my_loop.py", "my_task.py"}
