"""Mean average precision against COCO's own program, and what a decode function or targets may get wrong."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import TaskSection
from prunefront.pipelines.tasks import Estimate, TaskError, make_task
from prunefront.pipelines.tasks.detection import Detection, mean_precision
from prunefront.search.outcomes.measurement import NotFinite

One = dict[str, Tensor]


def as_they_are(outputs: Any) -> Any:
    return outputs


def no_loss(outputs: Any, targets: Any) -> Tensor:
    return torch.zeros(())


def task(classes: int = 3) -> Detection:
    names = {"decode": f"{__name__}:as_they_are", "loss": f"{__name__}:no_loss"}
    made = make_task(TaskSection(name="detection", options={**names, "classes": classes}))
    assert isinstance(made, Detection)
    return made


def boxes(
    rows: Sequence[Sequence[float]], labels: Sequence[int], scores: Sequence[float] | None = None
) -> One:
    """Returns the boxes of one image: true ones without scores."""
    given = {} if scores is None else {"scores": torch.tensor(scores)}
    return {"boxes": torch.tensor(rows).reshape(-1, 4).float(), "labels": torch.tensor(labels).long()} | given


def estimates(outputs: Any, targets: Any) -> Mapping[str, Estimate]:
    return task().score(task().judge(outputs, targets))


def drawn(images: int, seed: int) -> tuple[list[One], list[One]]:
    """Returns boxes near the true ones, doubled, missed and made up, and the true ones; some images have none."""
    rng = np.random.default_rng(seed)
    said, true = [], []
    for _ in range(images):
        count = int(rng.integers(0, 6))
        corners = rng.uniform(0, 60, (count, 2))
        rows = np.hstack([corners, corners + rng.uniform(5, 30, (count, 2))])
        labels = rng.integers(0, 3, count)
        again = rng.integers(0, count, int(rng.integers(0, 12))) if count else np.zeros(0, int)
        near = np.vstack([rows[again] + rng.normal(0, 1.5, (len(again), 4)), rng.uniform(0, 90, (3, 4))])
        near[-3:, 2:] = near[-3:, :2] + 20
        named = np.concatenate([labels[again], rng.integers(0, 3, 3)])
        true.append(boxes(rows.tolist(), labels.tolist()))
        said.append(boxes(near.tolist(), named.tolist(), rng.random(len(named)).tolist()))
    return said, true


def of_coco(said: list[One], true: list[One]) -> tuple[float, float]:
    """Returns (mAP, mAP at 0.5) as pycocotools has them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(of: list[One], more: Any) -> list[dict[str, Any]]:
        return [
            {
                "image_id": i,
                "category_id": int(one["labels"][j]),
                "bbox": [x, y, x2 - x, y2 - y],
                **more(one, j),
            }
            for i, one in enumerate(of)
            for j, (x, y, x2, y2) in enumerate(one["boxes"].double().tolist())
        ]

    whole = COCO()
    annotations = rows(true, lambda one, j: {"iscrowd": 0, "area": 1.0})
    for number, row in enumerate(annotations, 1):
        row["id"] = number
    whole.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(true))],
        "categories": [{"id": k} for k in range(3)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        whole.createIndex()
        run = COCOeval(
            whole, whole.loadRes(rows(said, lambda one, j: {"score": float(one["scores"][j])})), "bbox"
        )
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0]), float(run.stats[1])


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_pycocotools_says(seed: int) -> None:
    said, true = drawn(40, seed)
    found = estimates(said, true)
    whole, half = of_coco(said, true)
    assert (found["map"].value, found["map50"].value) == pytest.approx((whole, half), abs=1e-12)
    assert 0.1 < whole < half < 0.95


def test_an_image_that_counts_twice_is_an_image_that_is_there_twice() -> None:
    said, true = drawn(12, 9)
    weights = np.random.default_rng(0).integers(0, 4, (6, 12))
    noted = {name: v.numpy() for name, v in task().judge(said, true).items()}
    found = mean_precision(noted, weights.astype(float), range(10))
    for row, value in zip(weights, found, strict=True):
        places = [i for i, times in enumerate(row) for _ in range(times)]
        again = estimates([said[i] for i in places], [true[i] for i in places])
        assert value == pytest.approx(again["map"].value, abs=1e-12)


def test_by_hand() -> None:
    true = [boxes([[0, 0, 10, 10]], [0]), boxes([[0, 0, 10, 10]], [0])]
    # an overlap of 8/10 is enough at 0.5 to 0.8: seven of ten
    near = boxes([[0, 0, 10, 8]], [0], [0.9])
    assert estimates([near, near], true)["map"].value == pytest.approx(0.7)
    # the best score is wrong, so precision is 2/3 at each recall
    wrong = boxes([[50, 50, 60, 60], [0, 0, 10, 10]], [0, 0], [0.9, 0.5])
    right = boxes([[0, 0, 10, 10]], [0], [0.4])
    assert estimates([wrong, right], true)["map50"].value == pytest.approx(2 / 3)
    # boxes of one score come together, whichever is first in the list
    even = boxes([[0, 0, 10, 10], [50, 50, 60, 60]], [0, 0], [1.0, 1.0])
    assert estimates([even, even], true)["map50"].value == pytest.approx(0.5)
    # a box of another class finds nothing, and its class has no true box
    other = boxes([[0, 0, 10, 10]], [1], [0.9])
    assert estimates([other, right], true)["map50"].value == pytest.approx(51 / 101)


def test_a_network_that_finds_nothing_has_none() -> None:
    nothing = boxes([], [], [])
    found = estimates([nothing] * 5, [boxes([[0, 0, 10, 10]], [0])] * 5)
    assert (found["map"].value, found["map"].high) == (0.0, 0.0)


def test_only_the_hundred_best_boxes_of_an_image_count() -> None:
    rows = [[0.0, 0, 10, 10], *([[50.0, 50, 60, 60]] * 100)]
    true = [boxes([[0, 0, 10, 10]], [0])] * 2
    last, first = ([s, *([0.5] * 100)] for s in (0.1, 0.9))
    assert estimates([boxes(rows, [0] * 101, last)] * 2, true)["map"].value == 0.0
    assert estimates([boxes(rows, [0] * 101, first)] * 2, true)["map"].value == 1.0


def test_padded_targets_are_lists_of_boxes() -> None:
    said, true = drawn(20, 3)
    padded = torch.full((20, 8, 5), -1.0)
    for i, one in enumerate(true):
        padded[i, : len(one["labels"])] = torch.hstack([one["boxes"], one["labels"][:, None]])
    assert estimates(said, padded) == estimates(said, true)


FINE = boxes([[0, 0, 10, 10]], [0], [0.5])
TRUE = boxes([[0, 0, 10, 10]], [0])
INVERTED = boxes([[10, 0, 0, 10]], [0])


@pytest.mark.parametrize(
    ("decoded", "error", "line"),
    [
        (
            [FINE],
            TaskError,
            r"as_they_are' returned 1 for 2 images; it must return a list of one dict an image",
        ),
        (None, TaskError, r"returned a NoneType for 2 images"),
        (
            [FINE, (1, 2, 3)],
            TaskError,
            r"holds a tuple of an image; it must be a dict of tensors boxes, scores",
        ),
        ([FINE, TRUE], TaskError, r"holds boxes, labels of an image; .* boxes, scores, labels"),
        (
            [FINE, {**FINE, "boxes": torch.zeros(4)}],
            TaskError,
            r"has boxes \(4,\), scores \(1,\), labels \(1,\) of an image; they must be boxes \(k, 4\), scores \(k,\)",
        ),
        ([FINE, {**FINE, "scores": torch.ones(2)}], TaskError, r"scores \(2,\)"),
        ([FINE, {**FINE, "labels": torch.ones(1)}], TaskError, r"labels of type torch.float32"),
        (
            [FINE, boxes([[0, 0, 1, 1]], [3], [0.1])],
            TaskError,
            r"from 3 to 3; .*classes = 3 they must be 0 to 2",
        ),
        ([FINE, boxes([[0, 0, 1, float("nan")]], [1], [0.1])], NotFinite, r"box or score that is not finite"),
        ([FINE, boxes([[0, 0, 1, 1]], [1], [float("nan")])], NotFinite, r"box or score that is not finite"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_decode_gets_wrong_is_one_line(decoded: Any, error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=line) as raised:
        task().judge(decoded, [TRUE, TRUE])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        (torch.zeros(2, 5), r"takes targets \(b, n, 5\) of x1, y1, x2, y2, label, got \(2, 5\)"),
        ({"boxes": torch.zeros(2, 4)}, r"a list with one dict of boxes and labels an image, got a dict"),
        ([TRUE, INVERTED], r"x2 < x1 or y2 < y1"),
        ([TRUE, boxes([[0, 0, 1, 1]], [-1])], r"labels from -1 to -1"),
    ],
    ids=["shape", "dict", "inverted", "label"],
)
def test_what_targets_get_wrong_is_one_line(targets: Any, line: str) -> None:
    with pytest.raises(TaskError, match=line):
        task().judge([FINE, FINE], targets)


def test_boxes_that_are_nowhere_and_options_are_said() -> None:
    nothing = boxes([], [])
    with pytest.raises(TaskError, match="targets of all 2 images hold no box"):
        estimates([FINE, FINE], [nothing, nothing])
    with pytest.raises(TaskError, match="classes = 0 should be the number of classes"):
        task(0)
    for options, line in (
        ({}, "missing 3 required .*'decode', 'loss', and 'classes'"),
        ({"decode": f"{__name__}:dekode", "loss": f"{__name__}:no_loss", "classes": 1}, "has no 'dekode'"),
    ):
        with pytest.raises(PrunefrontError, match=line):
            make_task(TaskSection(name="detection", options=options))
