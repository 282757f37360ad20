"""Detection: boxes with classes and scores, any number an image, which a function of one's own decodes from outputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunefront.pipelines.config.imported import import_callable
from prunefront.pipelines.tasks.estimate import CELLS, Estimate, Floats, bootstrap
from prunefront.pipelines.tasks.task import Task, TaskError, TaskOptions, task
from prunefront.search.outcomes.measurement import Metric, NotFinite

OVERLAPS = np.linspace(0.5, 0.95, 10)
"""Least intersection over union at which a box is found, one average precision for each (COCO)."""

RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which precision is read (COCO)."""

MOST = 100
"""Most boxes of an image that count: those of the highest scores (COCO)."""

PADDING = -1
"""Class of a box that is none."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of one image. corners (k, 4): x1, y1, x2, y2. classes (k,). scores (k,): highest first."""

    corners: Floats
    classes: NDArray[np.int64]
    scores: Floats


@task("detection")
class Detection(Task, TaskOptions):
    """Boxes, decoded from the outputs by your own function and trained by your own loss; COCO's mean average precision.

    decode: `module:callable` from the network's outputs to a list with one dict an image: `boxes` (k, 4) as x1, y1, x2,
    y2, `scores` (k,), `labels` (k,), integers below `classes`. loss: `module:callable` from outputs and targets to a
    scalar. Targets are a padded tensor (b, n, 5) of x1, y1, x2, y2, label, with label -1 where there is no box, or a
    list with one dict of `boxes` and `labels` an image. Only the 100 boxes of an image with the highest scores count.
    """

    KNOWN = (
        Metric("map", "max", scale="share"),
        Metric("map50", "max", scale="share"),
    )

    def __init__(
        self, decode: str, loss: str, classes: int, metrics: Sequence[str] = ("map", "map50")
    ) -> None:
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
            raise TaskError(f"task.options.classes = {classes!r} should be the number of classes, 1 or more")
        self.metrics = self.chosen(tuple(metrics))
        self.classes, self._named = classes, decode
        self._decode: Callable[[Any], Any] = import_callable(decode, key="task.options.decode")
        self._loss: Callable[[Any, Any], Tensor] = import_callable(loss, key="task.options.loss")

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return self._loss(outputs, targets)

    def judge(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        """Returns, of each image: classes and scores of what was found, at which overlaps each is right, and `truths`.

        These are the numbers of true boxes of each class. Raises TaskError for targets or decoded boxes of another
        form, NotFinite where a box or score is no number.
        """
        wanted = [*self._wanted(targets)]
        found = [*self._found(outputs, len(wanted))]
        classes = np.full((len(wanted), MOST), PADDING, np.int64)
        scores = np.zeros((len(wanted), MOST))
        right = np.zeros((len(wanted), MOST, len(OVERLAPS)), bool)
        for i, (said, true) in enumerate(zip(found, wanted, strict=True)):
            count = len(said.classes)
            classes[i, :count], scores[i, :count] = said.classes, said.scores
            right[i, :count] = matched(said, true)
        truths = [np.bincount(true.classes, minlength=self.classes) for true in wanted]
        noted = {"found": classes, "scores": scores, "right": right, "truths": np.stack(truths)}
        return {name: torch.from_numpy(values) for name, values in noted.items()}

    def score(self, judged: Mapping[str, Tensor]) -> Mapping[str, Estimate]:
        noted = {name: values.numpy() for name, values in judged.items()}
        if not noted["truths"].any():
            raise TaskError(
                f"the targets of all {len(noted['truths'])} images hold no box, so that nothing can be found"
            )
        # draws must not depend on the order of the data
        rows = [b"".join(v[i].tobytes() for v in noted.values()) for i in range(len(noted["truths"]))]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        noted = {name: values[order] for name, values in noted.items()}
        overlaps = {"map": range(len(OVERLAPS)), "map50": range(1)}
        return {m.name: self._estimate(noted, overlaps[m.name]) for m in self.metrics}

    def _estimate(self, noted: Mapping[str, NDArray[Any]], overlaps: Sequence[int]) -> Estimate:
        # the best precision at or beyond a recall is too high where images are few, and of resamples still higher
        found = bootstrap(
            len(noted["truths"]), lambda weights: mean_precision(noted, weights, overlaps), "basic"
        )
        return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))

    def _found(self, outputs: Any, images: int) -> Iterator[Boxes]:
        with torch.no_grad():
            decoded = self._decode(outputs)
        who = f"task.options.decode = {self._named!r}"
        if not isinstance(decoded, list | tuple) or len(decoded) != images:
            got = f"{len(decoded)}" if isinstance(decoded, list | tuple) else f"a {type(decoded).__name__}"
            raise TaskError(
                f"{who} returned {got} for {images} images; it must return a list of one dict an image"
            )
        for one in decoded:
            boxes = self._boxes(one, who, ("boxes", "scores", "labels"))
            best = np.argsort(-boxes.scores, kind="stable")[:MOST]
            yield Boxes(boxes.corners[best], boxes.classes[best], boxes.scores[best])

    def _wanted(self, targets: Any) -> Iterator[Boxes]:
        if isinstance(targets, Tensor):
            if targets.ndim != 3 or targets.shape[2] != 5:
                raise TaskError(
                    f"detection takes targets (b, n, 5) of x1, y1, x2, y2, label, got {tuple(targets.shape)}"
                )
            real = [rows[rows[:, 4] != PADDING] for rows in targets.cpu()]
            targets = [{"boxes": rows[:, :4], "labels": rows[:, 4].long()} for rows in real]
        if not isinstance(targets, list | tuple):
            raise TaskError(
                f"detection takes targets (b, n, 5), or a list with one dict of boxes and labels an image, got a "
                f"{type(targets).__name__}"
            )
        for one in targets:
            boxes = self._boxes(one, "a target of detection", ("boxes", "labels"))
            if bool((boxes.corners[:, 2:] < boxes.corners[:, :2]).any()):
                raise TaskError(
                    "a target of detection has a box with x2 < x1 or y2 < y1; give x1, y1, x2, y2"
                )
            yield boxes

    def _boxes(self, one: Any, who: str, keys: tuple[str, ...]) -> Boxes:
        """Returns the boxes of one image. who: where they come from, for errors. Raises TaskError, NotFinite."""
        if not isinstance(one, Mapping) or not all(isinstance(one.get(key), Tensor) for key in keys):
            got = ", ".join(map(str, one)) if isinstance(one, Mapping) else f"a {type(one).__name__}"
            raise TaskError(
                f"{who} holds {got or 'nothing'} of an image; it must be a dict of tensors {', '.join(keys)}"
            )
        shapes = {key: tuple(one[key].shape) for key in keys}
        count = shapes["labels"][0] if shapes["labels"] else 0
        if shapes != {key: (count, 4) if key == "boxes" else (count,) for key in keys}:
            raise TaskError(
                f"{who} has {', '.join(f'{key} {shape}' for key, shape in shapes.items())} of an image; they must be "
                f"{', '.join('boxes (k, 4)' if key == 'boxes' else f'{key} (k,)' for key in keys)}"
            )
        corners, labels = one["boxes"], one["labels"]
        scores = one["scores"] if "scores" in keys else torch.ones(count)
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TaskError(f"{who} has labels of type {labels.dtype}; they must be integers")
        if count and (int(labels.min()) < 0 or int(labels.max()) >= self.classes):
            raise TaskError(
                f"{who} has labels from {int(labels.min())} to {int(labels.max())}; with task.options.classes = "
                f"{self.classes} they must be 0 to {self.classes - 1}"
            )
        if not (bool(corners.isfinite().all()) and bool(scores.isfinite().all())):
            raise NotFinite(f"{who} has a box or score that is not finite")
        numbers = [t.detach().cpu().double().numpy() for t in (corners, scores)]
        return Boxes(numbers[0], labels.cpu().numpy().astype(np.int64), numbers[1])


def matched(said: Boxes, true: Boxes) -> NDArray[np.bool_]:
    """Returns (k, overlaps): which of the boxes that were said is right, at each of `OVERLAPS`.

    In the order of their scores, each takes the true box of its class that it overlaps most, among those that none
    before took. A box with x2 < x1 or y2 < y1 overlaps nothing.
    """
    right = np.zeros((len(said.classes), len(OVERLAPS)), bool)
    shared = np.where(said.classes[:, None] == true.classes, overlap(said.corners, true.corners), 0.0)
    free = np.ones((len(OVERLAPS), len(true.classes)), bool)
    for i in np.flatnonzero((shared >= OVERLAPS[0]).any(1)):
        fits = np.where(free & (shared[i] >= OVERLAPS[:, None]), shared[i], 0.0)
        best, right[i] = fits.argmax(1), fits.any(1)
        free[right[i], best[right[i]]] = False
    return right


def overlap(a: Floats, b: Floats) -> Floats:
    """Returns the intersection over union (n, m) of boxes (n, 4) and (m, 4)."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = (corner[1] - corner[0]).clip(0).prod(2)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1) for boxes in (a, b))
    union = area_a[:, None] + area_b - inside
    shared: Floats = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    return shared


def mean_precision(noted: Mapping[str, NDArray[Any]], weights: Floats, overlaps: Sequence[int]) -> Floats:
    """Returns the mean over classes and overlaps of average precision, for each row of weights.

    noted: what `judge` notes of n images. weights (r, n): how often each image counts. overlaps: places in `OVERLAPS`.
    A class of which there is no true box says nothing.
    """
    total = np.zeros(len(weights))
    there = np.zeros(len(weights))
    for k in range(noted["truths"].shape[1]):
        image, place = np.nonzero(noted["found"] == k)
        by_score = np.argsort(-noted["scores"][image, place], kind="stable")
        image, place = image[by_score], place[by_score]
        scores, right = noted["scores"][image, place], noted["right"][image, place]
        step = max(1, CELLS // max(1, len(image)))
        for start in range(0, len(weights), step):
            rows = slice(start, start + step)
            truths = weights[rows] @ noted["truths"][:, k]
            precision = [
                average_precision(weights[rows][:, image], scores, right[:, t], truths) for t in overlaps
            ]
            total[rows] += np.where(truths > 0, np.mean(precision, 0), 0.0)
            there[rows] += truths > 0
    found: Floats = total / np.maximum(there, 1)
    return found


def average_precision(counts: Floats, scores: Floats, right: NDArray[np.bool_], truths: Floats) -> Floats:
    """Returns the average precision of one class (r,), the mean of the best precision at or beyond each of `RECALLS`.

    counts (r, d): how often each box that was found counts, those of the highest scores first. right (d,). truths (r,):
    number of true boxes. Boxes of one score are found together, since nothing says which of them comes first.
    """
    hits = np.flatnonzero(
        right
    )  # precision is highest where a right box is found, and recall rises only there
    if not len(hits):
        return np.zeros(len(counts))
    last = np.searchsorted(-scores, -scores[hits], side="right") - 1
    said = counts.cumsum(1)[:, last]
    right_ones = counts[:, hits].cumsum(1)[:, np.searchsorted(hits, last, side="right") - 1]
    precision = right_ones / np.maximum(said, 1)
    best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    reached = np.searchsorted(RECALLS, right_ones / np.maximum(truths, 1)[:, None], side="right")
    found: Floats = (best * np.diff(reached, axis=1, prepend=0)).sum(1) / len(RECALLS)
    return found
