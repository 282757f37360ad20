"""Trainings that several processes share: they equal those of one, and a process that dies does no harm."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import (
    ClusterSection,
    QuantisationSection,
    ScoringSection,
    TaskSection,
    TrainingSection,
)
from prunefront.pipelines.data import Inputs
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.prepare.training import check_settings
from prunefront.pipelines.study.run import run
from prunefront.pipelines.tasks import TaskError
from prunefront.pipelines.tasks.classification import Classification
from prunefront.pipelines.workers.checkpoints import Folder
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.failures import ProcessFailed, ProcessLost, failure
from prunefront.pipelines.workers.parallel import Processes, parts_of
from prunefront.pipelines.workers.train import Work
from prunefront.pipelines.workers.trial import Trial
from prunefront.pipelines.workers.workbench import DEFAULT_TASK, Job, Workbench
from prunefront.pruners.procedures import procedures
from prunefront.search.outcomes.measurement import Failure
from prunefront.search.space.candidate import Candidate
from tests.pipelines.workers.test_checkpoints import planned_half, state
from tests.pipelines.workers.test_failures import bench

EPOCHS = 2


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pair() -> Iterator[Processes]:
    """This process and another. Who loses the other finds a new one at the next training."""
    made = Processes(DEFAULT_TASK, 2, "cpu")
    yield made
    made.close()


@cache
def dense() -> Workbench:
    return bench(None)


def small(**changes: Any) -> Workbench:
    """A quarter of the digits: six steps an epoch, the last one with a few samples."""
    made = dense()
    train = made.data.part("train").first(5 * 64 + 3)
    recipe = replace(made.recipe, batch_size=64, learning_rate=0.05, seed=1)
    return replace(made, data=replace(made.data, train=train.split), recipe=recipe, **changes)


def job(worker: Evaluator, start: Any = "dense") -> Job:
    return Job("a", Candidate({}), planned_half(worker.bench.graph), EPOCHS, start=start)


def trained(made: Workbench, crew: Processes | None, start: Any = "dense") -> Mapping[str, Tensor]:
    worker = Evaluator(made)
    worker._crew = crew
    return state(worker.train(job(worker, start)))[1]


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], within: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    far = {
        name: float((tensor.double() - theirs[name].double()).abs().max())
        for name, tensor in ours.items()
        if not torch.allclose(tensor, theirs[name], rtol=1e-4, atol=within)
    }
    assert far == {}


@given(st.integers(2, 5), st.integers(1, 40))
def test_parts_make_the_batch(processes: int, count: int) -> None:
    x, y = torch.arange(count), [str(i) for i in range(count)]
    parts = parts_of(Work(Inputs((x, None, {"a": x}), {"scale": torch.tensor(2.0)}), y, 3), processes)
    assert [p.rank for p in parts] == list(range(processes))
    assert sum(p.weight for p in parts) == pytest.approx(1.0)
    if count < 2 * processes:
        assert all(torch.equal(p.inputs.args[0], x) and p.targets == y for p in parts)
    else:
        assert torch.equal(torch.cat([p.inputs.args[0] for p in parts]), x)
        assert torch.equal(torch.cat([p.inputs.args[2]["a"] for p in parts]), x)
        assert [t for p in parts for t in p.targets] == y
        assert [p.weight for p in parts] == [len(p.targets) / count for p in parts]


def test_what_cannot_be_shared_out_is_said() -> None:
    with pytest.raises(TaskError, match=r"a batch of 8 samples holds a tensor of shape \(3, 2\)"):
        parts_of(Work(Inputs((torch.zeros(8, 2), torch.zeros(3, 2))), None, 0), 2)


SETTINGS: dict[str, Callable[[Workbench], Workbench]] = {
    "distil, mixup, smoothing, clipping, average": lambda b: replace(
        b,
        recipe=replace(b.recipe, distill=0.5, mixup=0.2, label_smoothing=0.1, clip_norm=0.5, ema=0.9),
    ),
    **{name: lambda b, name=name: replace(b, procedure=name) for name in sorted(procedures)},
}


ROUNDING = {"network_slimming": 5e-3, "spectral_radius": math.inf}
"""How far the weights of procedures may be apart that turn a last digit into more: by the sign of a weight near zero,
and by ranking units whose scores are almost equal. Noise of 1e-7 in the dense weights does as much to one process."""


@pytest.mark.parametrize("case", SETTINGS)
def test_two_processes_train_what_one_does(case: str, pair: Processes) -> None:
    """Batch norms included. Every procedure, as each sees gradients of whole batches."""
    made = SETTINGS[case](small())
    assert_equal(trained(made, pair), trained(made, None), ROUNDING.get(case, 1e-5))


def test_a_control_from_new_weights_is_shared_too(pair: Processes) -> None:
    assert_equal(trained(small(), pair, "fresh"), trained(small(), None, "fresh"))


def kill(crew: Processes, with_signal: int = signal.SIGKILL) -> None:
    for pid in crew.pids:
        os.kill(pid, with_signal)


def begun(pair: Processes, folder: Path) -> tuple[Trial, Any]:
    trial = Trial(small(), Folder(folder), 1)
    trial._evaluator._crew = pair
    steps = trial._trained(job(trial._evaluator))
    assert next(steps).epochs == 1
    return trial, steps


def test_a_process_that_dies_costs_the_steps_since_the_checkpoint(pair: Processes, tmp_path: Path) -> None:
    trial, steps = begun(pair, tmp_path)
    kill(pair)
    assert next(steps).epochs == 1, "the epoch that was kept is told again, as after a death of the worker"
    assert trial._resumed == 6
    with pytest.raises(StopIteration) as ended:
        next(steps)
    assert_equal(ended.value.value[0].state_dict(), trained(small(), None))


def test_a_process_that_hangs_is_waited_for_no_longer_than_the_limit_and_a_second_loss_is_a_failure(
    pair: Processes, tmp_path: Path
) -> None:
    _, steps = begun(pair, tmp_path)
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
    kill(pair, signal.SIGSTOP)
    assert next(steps).epochs == 1
    kill(pair)
    with pytest.raises(ProcessLost, match="twice, a process of this training ended by SIGKILL") as lost:
        next(steps)
    found = failure(lost.value)
    assert (found.kind, "\n" in found.reason, pair.pids) == ("crashed", False, [])


class Fussy(Classification):
    """A task whose loss only the second process cannot compute."""

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        if dist.is_initialized() and dist.get_rank():
            raise MemoryError("no room\nfor this")
        return super().loss(outputs, targets)


def test_an_error_of_another_process_is_the_candidates_failure() -> None:
    crew = Processes(TaskSection(name=f"{__name__}:Fussy"), 2, "cpu")
    with pytest.raises(ProcessFailed) as caught:
        trained(small(), crew)
    assert failure(caught.value) == Failure("out_of_memory", "MemoryError: no room")
    assert crew.pids == []


ORPHANS = """
import os, signal
from prunefront.pipelines.workers.parallel import Processes
from prunefront.pipelines.workers.workbench import DEFAULT_TASK

if __name__ == "__main__":
    crew = Processes(DEFAULT_TASK, 2, "cpu")
    crew._start()
    print(crew.pids[0], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "orphans.py").write_text(ORPHANS)
    found = subprocess.run([sys.executable, tmp_path / "orphans.py"], stdout=subprocess.PIPE, check=False)
    assert found.returncode == -signal.SIGKILL
    (pid,) = map(int, found.stdout.split())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} is still there")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"processes_per_worker": 2}, "cpus_per_worker = 1 cannot be shared .* set cpus_per_worker = 2"),
        ({"processes_per_worker": 2, "gpus_per_worker": 1}, "or set gpus_per_worker = 2"),
        ({"processes_per_worker": 1, "gpus_per_worker": 2}, "leave processes_per_worker out"),
    ],
    ids=["CPUs", "one GPU", "an idle GPU"],
)
def test_each_process_has_a_device(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ClusterSection(**asked)


def test_a_worker_scores_as_many_candidates_as_it_has_processes() -> None:
    gpus = ClusterSection(workers=3, cpus_per_worker=8, gpus_per_worker=2)
    assert (gpus.processes, ClusterSection(gpus_per_worker=0.5).processes) == (2, 1)
    one = gpus.of_one_process
    assert (one.workers, one.cpus_per_worker, one.gpus_per_worker, one.processes) == (6, 4, 1, 1)
    with pytest.raises(
        PrunefrontError, match=r"batch_size = 3 is less than two samples for each of the 2 processes"
    ):
        check_settings(TrainingSection(batch_size=3), QuantisationSection(), ScoringSection(), gpus)


@pytest.mark.long
@pytest.mark.parametrize("without_ray", [True, False], ids=["in one process", "on Ray"])
def test_a_study_whose_trainings_are_shared_runs_to_its_front(without_ray: bool, tmp_path: Path) -> None:
    """With rungs."""
    config = parse(
        {
            "name": "pair",
            "folder": str(tmp_path),
            "model": {"factory": "digits_cnn", "options": {"width": 4}},
            "dense": {"epochs": 1},
            "space": {"criteria": ["l1"], "calibration_images": 64},
            "goal": {"objectives": ["accuracy", "macs"]},
            "search": {"searcher": "random", "candidates": 3},
            "training": {"candidates": 2, "epochs": 2, "early_stopping": True, "precision": "float32"},
            "measure": {"pairs": 10},
            "cluster": {"cpus_per_worker": 2, "processes_per_worker": 2},
        },
        source="test",
        base=Path(),
    )
    out = StringIO()
    rows = run(config, display=Display(Console(file=out, width=200)), without_ray=without_ray)
    assert "each training is shared by 2 processes, each with CPUs of its own" in out.getvalue()
    assert any(not row.is_dense for row in rows)
