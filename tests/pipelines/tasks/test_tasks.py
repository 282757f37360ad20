"""The contract of a task, over the whole registry, on outputs whose truth is known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunefront.errors import PrunefrontError, UnknownName
from prunefront.pipelines.config.sections import TaskSection
from prunefront.pipelines.data import Inputs, Tensors
from prunefront.pipelines.measure.dense_outputs import DenseOutputs
from prunefront.pipelines.measure.quality import quality
from prunefront.pipelines.tasks import Estimate, Metric, Task, TaskError, make_task, tasks
from prunefront.pipelines.tasks.classification import MACRO

Draw = Callable[[int, int], tuple[Any, Any]]
"""Samples and seed -> outputs and targets of a network that is right about 70 % of the time."""


@dataclass(frozen=True)
class Case:
    """A task with samples drawn at random. options: with all its metrics. many: samples that say what is true."""

    draw: Draw
    options: dict[str, Any]
    many: int = 20_000


def _classes(shape: tuple[int, ...], seed: int, axis: int, classes: int = 6) -> tuple[Tensor, Tensor]:
    """Returns logits with classes along an axis, and labels of that shape without it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, shape, generator=generator)
    wrong = torch.rand(shape, generator=generator) < 0.3
    said = torch.where(wrong, torch.randint(classes, shape, generator=generator), labels)
    logits = torch.nn.functional.one_hot(said, classes).float() * 4.0
    return logits.movedim(-1, axis), labels


def _numbers(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randn(count, 2, generator=generator) * 3.0 + 10.0
    return wanted + torch.randn(count, 2, generator=generator), wanted


def _boxes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns three boxes (n, 3, 4 corners + 2 classes) an image, and true ones (n, 3, 5), the last perhaps none."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 3, 2, generator=generator) * 50
    size = torch.rand(count, 3, 2, generator=generator) * 10 + 8
    labels = torch.randint(2, (count, 3, 1), generator=generator)
    labels[:, 2] = torch.where(torch.rand(count, 1, generator=generator) < 0.5, labels[:, 2], -1)
    wanted = torch.cat([corner, corner + size, labels], 2)
    wrong = torch.rand(count, 3, 1, generator=generator) < 0.3
    said = torch.where(wrong, torch.randint(2, (count, 3, 1), generator=generator), labels.clamp(min=0))
    corners = wanted[..., :4] + torch.randn(count, 3, 4, generator=generator) * 0.7
    logits = torch.nn.functional.one_hot(said[..., 0], 2) * 2 + torch.randn(count, 3, 2, generator=generator)
    return torch.cat([corners, logits], 2), wanted


def decode(outputs: Tensor) -> list[dict[str, Tensor]]:
    scores, labels = outputs[..., 4:].softmax(-1).max(-1)
    return [
        {"boxes": b[:, :4], "scores": s, "labels": k} for b, s, k in zip(outputs, scores, labels, strict=True)
    ]


def boxes_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    there = targets[..., 4] >= 0
    off = (outputs[..., :4] - targets[..., :4])[there].abs().sum(-1).mean()
    return off + torch.nn.functional.cross_entropy(outputs[there][:, 4:], targets[there][:, 4].long())


CASES: Mapping[str, Case] = {
    "classification": Case(
        lambda n, seed: _classes((n,), seed, 1),
        {"metrics": ["accuracy", "top5", "balanced_accuracy", "macro_f1"]},
    ),
    "segmentation": Case(
        lambda n, seed: _classes((n, 4, 4), seed, 1), {"metrics": ["miou", "pixel_accuracy"]}
    ),
    "token_classification": Case(lambda n, seed: _classes((n, 5), seed, 2), {}),
    "language_modelling": Case(lambda n, seed: _classes((n, 5), seed, 2), {}),
    "regression": Case(_numbers, {}),
    "embedding": Case(_numbers, {}),
    "detection": Case(
        _boxes, {"decode": f"{__name__}:decode", "loss": f"{__name__}:boxes_loss", "classes": 2}, 5_000
    ),
}

NAMES = sorted(tasks)


class Returns(nn.Module):
    """A network whose outputs are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.one


def judged(task: Task, outputs: Any, targets: Any, size: int = 50) -> Mapping[str, Estimate]:
    """Returns the scores as a study gets them: judged a batch at a time."""
    notes = [task.judge(outputs[i : i + size], targets[i : i + size]) for i in range(0, len(targets), size)]
    return task.score({name: torch.cat([n[name] for n in notes]) for name in notes[0]})


def made(name: str) -> Task:
    return make_task(TaskSection(name=name, options=CASES[name].options))


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_shapes_names_and_directions(self, name: str) -> None:
        task = made(name)
        outputs, targets = CASES[name].draw(120, 0)
        outputs.requires_grad_()
        loss = task.loss(outputs, targets)
        assert loss.shape == ()
        loss.backward()  # type: ignore[no-untyped-call]
        assert bool(outputs.grad.isfinite().all())
        assert float(outputs.grad.abs().sum()) > 0
        assert all(len(v) == 50 for v in task.judge(outputs[:50].detach(), targets[:50]).values())
        found = judged(task, outputs.detach(), targets)
        assert [*found] == [m.name for m in task.metrics]
        for metric in task.metrics:
            estimate = found[metric.name]
            assert estimate.low <= estimate.value <= estimate.high
            assert estimate.samples == 120
            assert metric.scale != "share" or -1 <= estimate.value <= 1
        # the step that lowers the loss improves the quality, or a metric has the wrong sign
        down = (outputs.grad / outputs.grad.abs().max()).detach()
        gains = [
            judged(task, outputs.detach() - step * down, targets)[task.quality.name].value
            - found[task.quality.name].value
            for step in (0.2, 5.0)
        ]
        assert max(task.quality.sign * gain for gain in gains) > 0

    def test_order_and_batches_do_not_matter(self, name: str) -> None:
        task = made(name)
        outputs, targets = CASES[name].draw(120, 1)
        order = torch.randperm(120, generator=torch.Generator().manual_seed(5))
        assert judged(task, outputs, targets) == judged(task, outputs[order], targets[order], 17)

    def test_intervals_hold_the_truth_at_their_rate(self, name: str) -> None:
        """The truth is what very many samples say. Fewer than 50 of 60 intervals of 95 % is a chance of 0.1 %."""
        names = [
            m.name for m in made(name).metrics if m.name not in MACRO
        ]  # 400 times the library's functions
        options = CASES[name].options | ({"metrics": names} if "metrics" in CASES[name].options else {})
        task = make_task(TaskSection(name=name, options=options))
        many = CASES[name].many
        truth = judged(task, *CASES[name].draw(many, 99), size=many)
        hits = dict.fromkeys(names, 0)
        for seed in range(60):
            for metric, found in judged(task, *CASES[name].draw(80, seed)).items():
                hits[metric] += found.low <= truth[metric].value <= found.high
        assert min(hits.values()) >= 50, hits

    def test_the_dense_network_scores_itself(self, name: str) -> None:
        """The same twice, as its own outputs are judged; what it is compared with without labels is met wholly."""
        task, dense = made(name), Returns()
        outputs, targets = CASES[name].draw(90, 6)
        data = Tensors(Inputs((outputs,)), targets if task.labels else None)
        scores = [quality(dense, data, task, teacher=dense, batch_size=size) for size in (90, 40)]
        assert scores[0] == scores[1] == judged(task, outputs, targets if task.labels else outputs)
        if not task.labels:
            best = scores[0][task.quality.name]
            assert best.low == pytest.approx(1.0, abs=1e-6)
            assert best.high == pytest.approx(1.0, abs=1e-6)
            known = DenseOutputs.of([data], lambda inputs: inputs.call(dense), size=40)
            assert quality(dense, data, task, known=known, batch_size=40) == scores[1]

    def test_soft_targets_of_itself_cost_nothing(self, name: str) -> None:
        task = made(name)
        outputs, _ = CASES[name].draw(20, 2)
        soft = task.distil(outputs, outputs, 2.0)
        assert soft is None or (soft.shape == () and abs(float(soft)) < 1e-6)

    def test_wrong_shapes_and_options_are_said(self, name: str) -> None:
        task = made(name)
        outputs, targets = CASES[name].draw(20, 3)
        with pytest.raises(TaskError):
            task.judge(outputs, targets[:, None] if targets.ndim == 1 else targets[:7])
        with pytest.raises(PrunefrontError, match=r"task.name = .*colour"):
            make_task(TaskSection(name=name, options={"colour": 3}))


def test_macro_scores_are_the_librarys() -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score, jaccard_score

    logits, labels = CASES["classification"].draw(200, 4)
    found = judged(made("classification"), logits, labels)
    said = logits.argmax(1)
    assert found["balanced_accuracy"].value == pytest.approx(balanced_accuracy_score(labels, said))
    assert found["macro_f1"].value == pytest.approx(f1_score(labels, said, average="macro"))
    logits, labels = CASES["segmentation"].draw(50, 4)
    miou = judged(made("segmentation"), logits, labels)["miou"].value
    assert miou == pytest.approx(jaccard_score(labels.flatten(), logits.argmax(1).flatten(), average="macro"))


def test_regression_and_perplexity_by_hand() -> None:
    from sklearn.metrics import r2_score

    outputs, targets = _numbers(100, 0)
    found = judged(made("regression"), outputs, targets)
    off = (outputs - targets).double().numpy()
    assert found["mae"].value == pytest.approx(np.abs(off).mean())
    assert found["rmse"].value == pytest.approx(np.sqrt((off**2).mean()))
    assert found["r2"].value == pytest.approx(r2_score(targets, outputs), rel=1e-5)
    logits = torch.zeros(10, 6, 7)
    assert judged(made("language_modelling"), logits, torch.ones(10, 6).long())["perplexity"].value == (
        pytest.approx(7.0)
    )


def test_ignored_places_do_not_count() -> None:
    logits, labels = CASES["token_classification"].draw(30, 1)
    padded = torch.cat([labels, torch.full((30, 2), -100)], 1)
    more = torch.cat([logits, torch.randn(30, 2, 6)], 1)
    task = made("token_classification")
    assert judged(task, more, padded) == judged(task, logits, labels)
    assert torch.allclose(task.loss(more, padded), task.loss(logits, labels))


def test_one_output_of_several_is_chosen_by_name() -> None:
    outputs, targets = _numbers(20, 0)
    task = make_task(TaskSection(name="regression", options={"output": "pitch"}))
    assert torch.equal(task.loss({"pitch": outputs, "gain": targets}, targets), task.loss(outputs, targets))
    with pytest.raises(TaskError, match="'pitch' is none of them; possible: 'gain', 'tone'"):
        task.loss({"gain": outputs, "tone": outputs}, targets)


class Own(Task):
    """An own task in the fewest lines, as docs/tasks.md shows it."""

    metrics = (Metric("closeness", "max", scale="share"),)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    def judge(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        return {"closeness": torch.exp(-(outputs - targets).abs()).mean(1)}


def test_an_own_task_needs_a_loss_and_a_score_a_sample() -> None:
    task = make_task(TaskSection(name=f"{__name__}:Own"))
    found = judged(task, *_numbers(60, 0))["closeness"]
    assert found.low < found.value < found.high


def test_what_is_no_task_is_said() -> None:
    with pytest.raises(UnknownName, match="did you mean 'regression'"):
        make_task(TaskSection(name="regresion"))
    with pytest.raises(TaskError, match="returned a dict; it must return a prunefront Task"):
        make_task(TaskSection(name="builtins:dict"))
    with pytest.raises(TaskError, match="did you mean 'rmse'"):
        make_task(TaskSection(name="regression", options={"metrics": ["rmsee"]}))
    for bad in ({"name": "Big Name"}, {"name": "macs"}, {"direction": "up"}, {"chance": float("nan")}):
        with pytest.raises(PrunefrontError):
            Metric(**{"name": "fine", "direction": "max", **bad})
