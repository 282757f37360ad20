"""A candidate's life on a worker: surgery, recalibration, fine-tuning, measuring, publishing."""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils import _pytree

from prunefront.errors import PrunefrontError
from prunefront.pipelines.artifacts.card import card
from prunefront.pipelines.artifacts.publish import Artifact
from prunefront.pipelines.data.samples import Samples, example_of, positional
from prunefront.pipelines.formats.example import forward, mapped
from prunefront.pipelines.formats.weights import unpack_weights
from prunefront.pipelines.loops import Budget, make_loop
from prunefront.pipelines.loops.checkpoint import LoopSnapshot
from prunefront.pipelines.loops.running import epochs_of
from prunefront.pipelines.measure.environment import environment
from prunefront.pipelines.measure.latency import LatencyRecord, compare, runtimes
from prunefront.pipelines.measure.quality import quality
from prunefront.pipelines.measure.timing_lock import exclusive, shared
from prunefront.pipelines.models import build
from prunefront.pipelines.stores.open import open_store
from prunefront.pipelines.tasks import Estimate, make_task
from prunefront.pipelines.workers.calibration import calibration_batches
from prunefront.pipelines.workers.inheritance import Parent
from prunefront.pipelines.workers.parallel import Processes
from prunefront.pipelines.workers.publish import published
from prunefront.pipelines.workers.train import (
    Keep,
    Recipe,
    begin,
    carry_out,
    laid_out,
    needs_teacher,
    sample_count,
)
from prunefront.pipelines.workers.workbench import Job, Workbench
from prunefront.pruners.bits.bit_width import with_float_inputs
from prunefront.pruners.cut.inherit import inherit
from prunefront.pruners.cut.prune import calibrate, prune
from prunefront.pruners.cut.recalibrate import recalibrate
from prunefront.pruners.cut.refit import Refit
from prunefront.pruners.cut.scratch import scratch_network
from prunefront.pruners.cut.surgery import apply
from prunefront.pruners.graph.pruning_plan import DENSE, PruningPlan, inside, removed_blocks, without_channels
from prunefront.pruners.plan.cost import cost
from prunefront.pruners.procedures import Phase, procedures
from prunefront.pruners.procedures.loop import EpochReport
from prunefront.pruners.procedures.run import Run
from prunefront.pruners.procedures.snapshot import Snapshot
from prunefront.pruners.saved import PLAN, WEIGHTS, attributes_of, pack_network, plan_document, rebuild
from prunefront.reading import read_bytes
from prunefront.search.outcomes.measurement import Measurement
from prunefront.text import one_line

if TYPE_CHECKING:
    from prunefront.pipelines.formats.onnx_refill import Refill

log = logging.getLogger(__name__)

CALIBRATION_BATCH = 128


@dataclass(frozen=True, slots=True)
class Progress:
    """A network between two epochs of its training. epochs: done. whole: all has been cut that shall be."""

    epochs: int
    measurement: Measurement
    whole: bool


class Made(NamedTuple):
    """A trained network, the plan that it follows, and the epochs that it was trained."""

    model: nn.Module
    plan: PruningPlan
    epochs: int


class Evaluator:
    """Holds the dense network and the calibration batches; every candidate starts from copies of them."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench = bench.on_this_machine()
        self.dense = bench.dense_model()
        self.task = make_task(bench.task)
        # drawn and augmented once: every candidate's statistics come from the same images
        self._calibration = calibration_batches(
            self.dense,
            self.task,
            bench.data,
            np.random.default_rng([bench.seed, 1]),
            images=bench.calibration_images,
            size=CALIBRATION_BATCH,
            device=bench.device,
            channels_last=bench.recipe.channels_last,
        )
        validation = bench.data.part("validation")
        self._validation = (
            validation if bench.validation_limit is None else validation.first(bench.validation_limit)
        )
        self._repaired = _repaired(bench)
        self._crew = Processes(bench.task, bench.processes, bench.device) if bench.processes > 1 else None
        self.timing_seconds = 0.0
        """Seconds that the last latency measurement took, without the wait for its slot."""
        self.exported = ""
        """Why the last network was exported to ONNX, which takes seconds; "" = the dense network's file was filled."""
        self._refill: Refill | PrunefrontError | None = None

    def prune(self, plan: PruningPlan) -> nn.Module:
        """Returns the pruned network before any training: cut, repaired, its batch norm statistics estimated anew."""
        with shared():
            return self._prune(plan)

    def score(self, plan: PruningPlan) -> Measurement:
        """Returns the first score of a candidate, without training: quality on validation data and exact costs."""
        with shared():
            return self._measure(self._prune(plan), plan, self._validation)

    def score_trained(self, plan: PruningPlan, start: nn.Module | None) -> tuple[Measurement, nn.Module]:
        """Score of a candidate after `train_images`, and the network. Raises Diverged.

        start: of the dense size, changed; None = the dense network. Order and augmentation of the images follow from
        the study's seed and the plan.
        """
        bench = self.bench
        recipe = replace(
            bench.recipe,
            epochs=1,
            batch_size=min(bench.recipe.batch_size, bench.train_images),
            seed=_seed(bench.seed, plan),
        )
        with shared():
            run = begin(
                bench.dense_model() if start is None else start,
                bench.graph,
                plan,
                bench.data,
                recipe,
                self._calibration,
                task=self.task,
                steps=-(-bench.train_images // recipe.batch_size),
                # inherited weights belong to no single network, so there are no outputs to fit to
                repaired=self._repaired if start is None else "none",
            )
            run.cut(statistics=False)
        trained = carry_out(
            run,
            [Phase(run.steps_left)],
            bench.data,
            recipe,
            task=self.task,
            teacher=self._teacher(recipe),
            yield_point=shared,
        )
        for _ in trained:  # epochs that fall within it are not looked at
            pass
        with shared():
            if recipe.channels_last:
                laid_out(run.model, torch.channels_last)
            # a short training leaves running statistics behind its weights
            with torch.autocast(bench.device, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                recalibrate(run.model, self._calibration)
            return self._measure(run.model, plan, self._validation), run.model

    def heir(self, parent: Parent) -> nn.Module:
        """Returns the dense network with its parent's values where the parent kept them.

        Raises PrunefrontError for weights that are not the parent's.
        """
        model = self.bench.dense_model()
        model.load_state_dict(inherit(model, self.bench.graph, parent.plan, unpack_weights(parent.weights)))
        return model

    def snapshot(self, job: Job, content: bytes) -> Snapshot | LoopSnapshot:
        """Reads what a training of the job kept. Raises SnapshotError for anything else."""
        return LoopSnapshot.from_bytes(content) if self._by(job) else Snapshot.from_bytes(content)

    def _by(self, job: Job) -> str | None:
        """Returns the loop that trains a job, None for ours."""
        return self.bench.loop if job.start == "dense" and job.epochs else None

    def train(
        self, job: Job, keep: Keep | None = None, snapshot: Snapshot | LoopSnapshot | None = None
    ) -> Generator[Progress, None, Made]:
        """Makes a job's network, and yields how it stands after each epoch but the last. Raises Diverged.

        keep: of procedures and loops that resume. snapshot: of this job, to go on from; its epoch is the first that is
        told. Raises SnapshotError for one of another.
        Returns the network with the plan that it follows: a procedure may have chosen other units than the job did.
        """
        name = self._by(job)
        if name is None:
            assert not isinstance(snapshot, LoopSnapshot)
            return (yield from self._by_ours(job, keep, snapshot))
        assert not isinstance(snapshot, Snapshot)
        return (yield from self._by_loop(job, name, keep, snapshot))

    def _by_ours(
        self, job: Job, keep: Keep | None, snapshot: Snapshot | None
    ) -> Generator[Progress, None, Made]:
        if job.start != "dense":
            return (yield from self._from_scratch(job, keep, snapshot))
        bench = self.bench
        recipe = replace(bench.recipe, epochs=job.epochs)
        run = self._begun(job, recipe)
        # a network from which nothing goes is the control of further training, and nothing else
        ours = job.plan.key() == DENSE or bench.loop is not None
        procedure, options = ("one_shot", {}) if ours else (bench.procedure, bench.options)
        phases = procedures[procedure](run, **options)
        if not procedures[procedure].resumes:
            keep = snapshot = None
        epochs = self._carried_out(run, phases, recipe, keep, snapshot)
        yield from self._progress(epochs, lambda: (run.model, run.plan(), run.at_goal), recipe)
        return Made(run.model, run.plan(), job.epochs)

    def _begun(self, job: Job, recipe: Recipe) -> Run:
        """Returns the start of a job from the dense network."""
        bench = self.bench
        with shared():
            return begin(
                bench.dense_model(),
                bench.graph,
                job.plan,
                bench.data,
                recipe,
                self._calibration,
                task=self.task,
                repaired=self._repaired,
            )

    def _by_loop(
        self, job: Job, name: str, keep: Keep | None, snapshot: LoopSnapshot | None
    ) -> Generator[Progress, None, Made]:
        """Trains as `train`, by a loop that is not ours."""
        recipe, bench = self.bench.recipe, self.bench
        run = self._begun(job, recipe)
        with shared():
            run.cut()
            run.finish()
        epochs = epochs_of(
            make_loop(name, bench.options),
            name,
            run.model,
            self.task,
            data=bench.data,
            teacher=self.dense,
            budget=Budget(
                epochs=job.epochs,
                samples=sample_count(bench.data),
                batch_size=recipe.batch_size,
                learning_rate=recipe.learning_rate,
                weight_decay=recipe.weight_decay,
                distill=recipe.distill,
                temperature=recipe.temperature,
                seed=recipe.seed,
            ),
            around=shared,
            identity=f"{job.plan.key()} in {job.epochs} epochs by {name}",
            keep=keep,
            snapshot=snapshot,
        )
        done = 0
        with closing(epochs):
            epoch = next(epochs, None)
            while epoch is not None:
                done = epoch
                measured = self.measure(run.model, run.plan())
                if epoch < job.epochs:
                    yield Progress(epoch, measured, whole=True)
                try:
                    epoch = epochs.send({m.name: measured[m.name] for m in self.task.metrics})
                except StopIteration:
                    epoch = None
        return Made(run.model, run.plan(), done)

    def _from_scratch(
        self, job: Job, keep: Keep | None, snapshot: Snapshot | None
    ) -> Generator[Progress, None, Made]:
        bench = self.bench
        recipe = replace(bench.scratch, epochs=job.epochs)
        with shared():
            whole = bench.untrained(job.start, seed=bench.seed + 1)
            cut = scratch_network if job.start == "fresh" else apply
            model = cut(whole, bench.graph, job.plan)
            # its channels are those of the plan; what that does to blocks and within layers comes before training
            rest = replace(bench.graph, groups=())
            run = begin(
                model, rest, without_channels(job.plan), bench.data, recipe, self._calibration, task=self.task
            )
        epochs = self._carried_out(run, [Phase(run.steps)], recipe, keep, snapshot)
        yield from self._progress(epochs, lambda: (run.model, job.plan, True), recipe)
        return Made(run.model, job.plan, job.epochs)

    def _carried_out(
        self, run: Run, phases: Iterable[Phase], recipe: Recipe, keep: Keep | None, snapshot: Snapshot | None
    ) -> Iterator[EpochReport]:
        return carry_out(
            run,
            phases,
            self.bench.data,
            recipe,
            task=self.task,
            teacher=self._teacher(recipe),
            yield_point=shared,
            keep=keep,
            snapshot=snapshot,
            crew=self._crew,
        )

    def close(self) -> None:
        """Ends the processes that share trainings, where there are such."""
        if self._crew is not None:
            self._crew.close()

    def _progress(
        self,
        epochs: Iterator[EpochReport],
        now: Callable[[], tuple[nn.Module, PruningPlan, bool]],
        recipe: Recipe,
    ) -> Iterator[Progress]:
        """Between epochs, of the network as it is then."""
        for report in epochs:
            if report.epoch < recipe.epochs:
                model, plan, whole = now()
                yield Progress(report.epoch, self.measure(model, plan), whole)

    def measure(self, model: nn.Module, plan: PruningPlan) -> Measurement:
        """Returns the task's metrics on all validation data, and exact costs."""
        with shared():
            return self._measure(model, plan, self.bench.data.part("validation"))

    def seen(self, measured: Measurement) -> float:
        """Returns the quality of a measurement, more = better."""
        metric = self.task.quality
        return metric.sign * measured[metric.name]

    def _teacher(self, recipe: Recipe) -> nn.Module | None:
        return self.dense if needs_teacher(self.task, recipe) else None

    def _quality(self, model: nn.Module, samples: Samples) -> Mapping[str, Estimate]:
        recipe = self.bench.recipe
        return quality(
            model,
            samples,
            self.task,
            teacher=self.dense,
            known=self.bench.targets,
            precision=recipe.precision,
            channels_last=recipe.channels_last,
        )

    def publish(
        self, name: str, model: nn.Module, plan: PruningPlan, measured: Measurement
    ) -> tuple[Measurement, Artifact, Mapping[str, Any]]:
        """Exports, checks, times and stores a finished network; returns the measurement with latency and file size, the
        artifact, and where it was timed.

        Raises PrunefrontError where the ONNX network disagrees with torch's, or the store refuses; DeviceLost where the
        study's device does not answer. While the store is away the network waits in the bench's refuge.
        """
        with tempfile.TemporaryDirectory(prefix="prunefront-") as temporary:
            folder = Path(temporary)
            model = laid_out(model.cpu().eval(), torch.contiguous_format)
            with shared():
                self._write_network(model, plan, folder)
            timed = self._time(model, folder / "model.onnx")
            latency = timed.latency
            measured = Measurement(
                {
                    **measured.values,
                    "size_bytes": float((folder / WEIGHTS).stat().st_size),
                    "latency_ms": latency.ms,
                    "latency_ratio": latency.ratio,
                },
                {**measured.noise, "latency_ratio": (latency.ratio_high - latency.ratio_low) / 2},
            )
            description = describe(self.bench, plan, folder / WEIGHTS)
            record = {
                "key": name,
                "validation": measured.to_json(),
                "latency": {n: getattr(latency, n) for n in latency.__slots__},
                "environment": timed.where,
            }
            _write(folder / PLAN, description)
            _write(folder / "measurement.json", record)
            (folder / "card.md").write_text(card(description, record, program=False), encoding="utf-8")
            store = open_store(self.bench.artifact_uri, self.bench.artifacts.endpoint_url)
            return measured, published(store, folder, name, self.bench.refuge), timed.where

    def _write_network(self, model: nn.Module, plan: PruningPlan, folder: Path) -> None:
        """Weights and ONNX, each compared with torch before it counts."""
        onnx = folder / "model.onnx"
        if integers(plan):
            from prunefront.pipelines.formats.int8 import check_int8, quantise_onnx  # see `_write_onnx`

            whole = folder / "float.onnx"
            floats = with_float_inputs(model)
            self._write_onnx(floats, whole)
            short = {p.layer.module for p in plan.layers if p.choice.bits <= 8}
            gone = removed_blocks(self.bench.graph, plan.stacks)
            left = {layer.module for layer in self.bench.graph.layers if not inside(layer.module, gone)}
            images = (mapped(lambda t: t.cpu(), batch) for batch, _ in self._calibration)
            quantise_onnx(whole, images, onnx, exclude=left - short, weights=floats.state_dict())
            check_int8(whole, onnx, [self._images(3)])  # refuses outputs that are not finite
            whole.unlink()
        else:
            self._write_onnx(model, onnx)
        pack_network(model, self.bench.graph, plan, folder / WEIGHTS, entropy=self.bench.artifacts.huffman)
        again = load_network_from(self.bench, plan, folder / WEIGHTS)
        with torch.no_grad():
            example = self._images(2)
            if not _equal(forward(again, example), forward(model, example)):
                raise PrunefrontError("the network read back from its file does not compute what was trained")

    def _write_onnx(self, model: nn.Module, path: Path) -> None:
        """Fills the dense network's file with the model's weights; exports the model where the two then differ."""
        # onnx takes a second to import, which processes that only score or gather are spared
        from prunefront.pipelines.formats.onnx_export import check, export

        examples = self._images(3)
        try:
            path.write_bytes(self._filled(model))
            check(model, path, examples)
            self.exported = ""
        except PrunefrontError as error:
            self.exported = one_line(error, 200)
            log.info(
                "the network is exported, as the dense one's ONNX file cannot be filled: %s", self.exported
            )
            export(model, examples, path)
            check(model, path, examples)

    def _filled(self, model: nn.Module) -> bytes:
        if self._refill is None:
            from prunefront.pipelines.formats.onnx_refill import Refill  # see `_write_onnx`

            try:
                self._refill = Refill(self.bench.dense_onnx, self.bench.dense_model().cpu(), self._images(2))
            except PrunefrontError as error:
                self._refill = error
        if isinstance(self._refill, PrunefrontError):
            raise self._refill
        return self._refill.file(model)

    def _prune(self, plan: PruningPlan) -> nn.Module:
        recipe = self.bench.recipe
        model = prune(
            self.dense, self.bench.graph, plan, self._calibration, statistics=False, repaired=self._repaired
        )
        if recipe.channels_last:
            model = laid_out(model, torch.channels_last)
        with torch.autocast(self.bench.device, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            calibrate(model, plan, self._calibration)
        return model

    def _time(self, model: nn.Module, onnx: Path) -> LatencyRecord:
        """Against the dense network: on the study's device where it has one, else on this machine."""
        section, target = self.bench.measure, self.bench.target
        example = self._images(section.batch_size)
        if target is not None:
            start = time.perf_counter()
            timed = target.time(read_bytes(onnx, limit=2 << 30), mapped(lambda t: t.numpy(), example))
            self.timing_seconds = time.perf_counter() - start
            return timed
        make = runtimes[section.runtime]
        with tempfile.TemporaryDirectory(prefix="prunefront-") as temporary:
            dense_onnx = Path(temporary) / "dense.onnx"
            dense_onnx.write_bytes(self.bench.dense_onnx)
            with shared():  # compiling may keep every core busy for a while
                dense = make(self.dense, dense_onnx, example, section.threads)
                candidate = make(model, onnx, example, section.threads)
            with exclusive():
                start = time.perf_counter()
                latency = compare(dense, candidate, pairs=section.pairs, warmup=section.warmup)
                self.timing_seconds = time.perf_counter() - start
        return LatencyRecord(latency, environment(section))

    def _images(self, count: int) -> Any:
        return positional(self.dense, example_of(self.bench.data.part("validation"), count))

    def _measure(self, model: nn.Module, plan: PruningPlan, samples: Samples) -> Measurement:
        got = self._quality(model, samples)
        price = cost(self.bench.graph, plan)
        return Measurement(
            {
                **{name: estimate.value for name, estimate in got.items()},
                "macs": float(price.macs),
                "params": float(price.params),
                "size_bytes": float(price.size_bytes),
            },
            {name: estimate.noise for name, estimate in got.items()},
        )


def _repaired(bench: Workbench) -> Refit | Literal["criterion", "none"]:
    """Returns what fits the weights after a cut. Raises PrunefrontError where it takes moments and there are none."""
    if bench.repair != "moments":
        return bench.repair
    if bench.moments is None:
        raise PrunefrontError(
            "space.repair = 'moments' fits weights from moments of the calibration images, and none were gathered"
        )
    return Refit(bench.moments)


def _seed(study: int, plan: PruningPlan) -> int:
    """Returns the seed of a candidate's training in the first stage, whoever does it and when."""
    return int.from_bytes(hashlib.sha256(f"{study} {plan.key()}".encode()).digest()[:4]) % 2**31


def integers(plan: PruningPlan) -> bool:
    """Tells whether the plan's ONNX network computes in integers: some layers have 8-bit inputs and weights."""
    method = plan.quantisation
    short = any(bits <= 8 for bits in plan.bit_widths().values())
    return short and method.activations == "fixed_point" and method.activation_bits == 8


def load_network_from(bench: Workbench, plan: PruningPlan, weights: Path) -> nn.Module:
    """Returns the network that a reader of the artifact makes of it."""
    dense = build(bench.model, classes=bench.classes, input_shape=bench.input_shape)
    document = plan_document(bench.graph, plan)
    return rebuild(dense, plan, tuple(document["removed"]), weights, attributes_of(document))


def describe(bench: Workbench, plan: PruningPlan, weights: Path) -> dict[str, Any]:
    """The content of plan.json: what the network is and how it came about. shapes: of the tensors in the file."""
    price, dense = cost(bench.graph, plan), cost(bench.graph)
    return {
        **bench.description,
        "study": bench.study,
        "classes": bench.classes,
        "input_shape": None if bench.input_shape is None else list(bench.input_shape),
        **plan_document(bench.graph, plan),
        "onnx": "int8" if integers(plan) else "float32",
        "shapes": stored_shapes(weights),
        "macs": price.macs,
        "params": price.params,
        "dense": {"macs": dense.macs, "params": dense.params, "size_bytes": dense.size_bytes},
    }


def stored_shapes(weights: Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor in a file that this process wrote."""
    with safe_open(weights, "pt") as stored:
        return {name: list(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118


def _equal(mine: Any, theirs: Any) -> bool:
    a, b = _pytree.tree_leaves(mine), _pytree.tree_leaves(theirs)
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True)
    )


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
