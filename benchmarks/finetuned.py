"""Test accuracy after long fine-tuning at two bounds on MACs, beside the dense network trained on as many images.

ResNet-20 on CIFAR-10, nine channel groups, L1. Each method scores 200 networks without training, by accuracy on rows
45,000 to 46,999, and names the best within the bound. Ours know the bound and score 200 for each. Methods with one
ratio take the network nearest below the bound. Then each spends the same number of epochs of the 45,000 training images
for each bound. With --rivals 3 ours spend some of them on three networks, of which the best on the 5,000 validation
images after two epochs goes on. The test images are used once, in the end.

    python -m benchmarks.finetuned [--quick] [--json] [--only auto] [--epochs 32] [--jobs 2] [--device cuda]
                                   [--bounds 0.5,0.3] [--cache FILE] [--networks FILE] [--rivals 1]
                                   [--learning-rate 0.05] [--distill 0.5] [--temperature 2] [--batch-size 128]
                                   [--precision float32]

--cache is the file of benchmarks/searchers.py; --networks keeps the proposed networks from run to run.
"""

import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.accuracy import accuracy
from benchmarks.cifar import train_plan
from benchmarks.harness import arguments, choose, report, say, table
from benchmarks.peers import OURS, PEERS
from benchmarks.reference import CHANCE, Reference
from prunefront.pipelines.prepare.problem import problem
from prunefront.pipelines.workers.evaluate import Evaluator
from prunefront.pipelines.workers.train import train
from prunefront.pruners.plan.cost import macs
from prunefront.pruners.plan.decide import plan
from prunefront.search.outcomes.constraints import parse as parse_bound
from prunefront.search.outcomes.measurement import Measurement
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem

BOUNDS = (0.5, 0.3)
"""MACs, as shares of the dense network's."""

SLACK = 0.06
"""Largest distance of a network below its bound."""

SCORED = 200
SHORT = 2
"""Epochs of training of each rival."""

SWEEPS = ("uniform sweep", "torch-pruning")
"""Methods with one ratio: they use no accuracy, so the ratio is as fine as the channels allow."""

DENSE = "dense"
"""The network as it was brought, trained on as many images: what the others are compared with."""

SHOWN = (DENSE, "auto", "torch-pruning fpgm", "uniform sweep")


@dataclass(frozen=True, slots=True)
class Work:
    """One network to train. rivals: candidates that compete for it, empty = the dense one. epochs: in all."""

    method: str
    bound: float
    rivals: tuple[Candidate, ...]
    epochs: int


@dataclass(frozen=True, slots=True)
class Result:
    """A trained network.

    macs: share of the dense network's. validation, test: accuracy in the end. before: on validation, untrained.
    """

    method: str
    bound: float
    macs: float
    before: float
    validation: float
    test: float
    epochs: int
    seconds: float


class Trainer:
    """The reference problem's network and its training, in one process.

    images: number of images for training, validation and test each, None = all.
    """

    def __init__(self, device: str, images: int | None, recipe: dict[str, Any]) -> None:
        self.tested = images
        self.reference = Reference(device=device)
        bench = self.reference.cifar.bench
        data = replace(bench.data, train=bench.data.train[:images], validation=bench.data.validation[:images])
        self.worker = Evaluator(replace(bench, data=data, recipe=replace(bench.recipe, **recipe)))

    def short(self, candidate: Candidate, epochs: int) -> nn.Module:
        """Returns the candidate's network after a schedule of `epochs`."""
        aim = plan(self.reference.graph, candidate.choices, self.reference.cifar.scores)
        return train_plan(self.worker, aim, epochs)

    def further(self, model: nn.Module, epochs: int) -> nn.Module:
        """Trains by another schedule, in place, on other batches."""
        recipe = self.worker.bench.recipe
        recipe = replace(recipe, epochs=epochs, seed=recipe.seed + 1)
        for _ in train(model, self.worker.bench.data, recipe, teacher=self.worker.dense):
            pass
        return model

    def validation(self, model: nn.Module) -> float:
        data = self.worker.bench.data
        return accuracy(model, data.validation, data.transform).value

    def do(self, work: Work) -> Result:
        """Trains the rivals, and the best of them for the epochs that are left."""
        started = time.perf_counter()
        whole = Candidate({})
        chosen, before = whole, self.validation(self.worker.dense)
        if not work.rivals:
            model = self.short(whole, work.epochs)
        elif len(work.rivals) == 1:
            model = self.short(work.rivals[0], work.epochs)
            chosen = work.rivals[0]
        else:
            tried = [(c, self.short(c, SHORT)) for c in work.rivals]
            values = [self.validation(model) for _, model in tried]
            chosen, model = tried[values.index(max(values))]
            model = self.further(model, work.epochs - SHORT * len(tried))
        graph = self.reference.graph
        if work.rivals:
            before = self.reference.measure(chosen)[1]["accuracy"]
        price = (
            macs(graph, plan(graph, chosen.choices, self.reference.cifar.scores))
            if work.rivals
            else macs(graph)
        )
        return Result(
            work.method,
            work.bound,
            round(price / macs(graph), 4),
            before,
            self.validation(model),
            self.reference.cifar.on_test(model, self.tested),
            work.epochs,
            time.perf_counter() - started,
        )


_trainer: Trainer | None = None


def _begin(device: str, images: int | None, recipe: dict[str, Any]) -> None:
    global _trainer
    _trainer = Trainer(device, images, recipe)


def _do(work: Work) -> Result:
    assert _trainer is not None
    return _trainer.do(work)


def propose(reference: Reference, method: str, rivals: int) -> dict[float, list[Candidate]]:
    """Returns, by bound, networks within it, the most promising first. Our searchers get the bound, as in a study."""
    if method.startswith(SWEEPS):
        return {bound: [at_most(reference, method, bound)] for bound in BOUNDS}
    if method in OURS:
        return {
            bound: within(reference, searchers[method](bounded(reference, bound), seed=0), bound)[:rivals]
            for bound in BOUNDS
        }
    peer, seen = PEERS[method](reference, 0, SCORED), {}
    return {bound: within(reference, peer, bound, seen)[:1] for bound in BOUNDS}


def bounded(reference: Reference, bound: float) -> Problem:
    """Returns the reference problem between the bound and a little below it."""
    config = reference.cifar.config
    limits = (f"macs <= {100 * bound:g}%", f"macs >= {100 * (bound - SLACK):g}%")
    found = problem(
        reference.graph,
        reference.cifar.scores,
        config.space,
        config.goal.model_copy(update={"constraints": tuple(map(parse_bound, limits))}),
        config.start,
        candidates=config.search.candidates,
        chance=CHANCE,
    )
    return replace(found, seeds=found.seeds[:2], evaluations=0)


def within(
    reference: Reference,
    peer: Any,
    bound: float,
    seen: dict[str, tuple[Candidate, Measurement]] | None = None,
) -> list[Candidate]:
    """Scores networks until SCORED different ones are in `seen`.

    Returns those within the bound and not far below it, the most accurate first.
    """
    seen = {} if seen is None else seen
    for _ in range(10 * SCORED):
        if len(seen) >= SCORED or (candidate := peer.ask()) is None:
            break
        key, measured = reference.measure(candidate)
        peer.tell(candidate, measured)
        seen.setdefault(key, (candidate, measured))
    share = {key: measured["macs"] / reference.dense_macs for key, (_, measured) in seen.items()}
    inside = [key for key in seen if share[key] <= bound]
    near = [key for key in inside if share[key] > bound - SLACK] or inside
    near.sort(key=lambda key: (-seen[key][1]["accuracy"], share[key], key))
    return [seen[key][0] for key in near]


def at_most(reference: Reference, method: str, bound: float) -> Candidate:
    """Returns the network nearest below the bound, in a sweep over one ratio in steps of half a per cent."""
    steps = 201
    peer = {**PEERS}[method](reference, 0, steps)
    best: tuple[float, Candidate] | None = None
    for _ in range(steps):
        candidate = peer.ask()
        if candidate is None:
            break
        aim = plan(reference.graph, candidate.choices, reference.cifar.scores)
        share = macs(reference.graph, aim) / reference.dense_macs
        if share <= bound and (best is None or share > best[0]):
            best = share, candidate
    assert best is not None
    return best[1]


def main() -> None:
    parser = arguments(__doc__, quick="uniform width and dense, 1 epoch, 512 images of each kind")
    parser.add_argument("--only", help="semicolon-separated methods; default: some of each kind")
    parser.add_argument("--bounds", default="0.5,0.3", help="shares of the dense network's MACs")
    parser.add_argument("--epochs", type=int, default=32, help="for each method and bound, in all")
    parser.add_argument("--jobs", type=int, default=1, help="processes that train")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--cache", type=Path, help="keeps scores without training from run to run")
    parser.add_argument("--networks", type=Path, help="keeps the proposed networks from run to run")
    parser.add_argument("--rivals", type=int, default=1, help="networks that compete, for our searchers")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--distill", type=float, default=0.5)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    known = [DENSE, *OURS, *PEERS]
    names = choose(parser, given.only, known, [n for n in SHOWN if n in known], separator=";")
    bounds = [float(b) for b in given.bounds.split(",")]
    if strange := [b for b in bounds if b not in BOUNDS]:
        parser.error(f"no networks are sought at {strange[0]:g} of the MACs; there are: {BOUNDS}")
    epochs, images = given.epochs, None
    if given.quick:
        names, epochs, images, bounds = [DENSE, "uniform sweep"], 1, 512, [0.5]
    if epochs <= SHORT * given.rivals and any(n in OURS for n in names) and given.rivals > 1:
        parser.error(f"--epochs {epochs} leaves nothing after {given.rivals} rivals of {SHORT} epochs each")
    asked = ("learning_rate", "distill", "temperature", "batch_size", "precision")
    recipe = {k: getattr(given, k) for k in asked} | {"channels_last": given.precision == "bfloat16"}

    networks: dict[str, dict[str, list[Any]]] = {}
    if given.networks and given.networks.exists():
        networks = json.loads(given.networks.read_text())
    if missing := [n for n in names if n not in networks and n != DENSE]:
        reference = Reference(cache=given.cache)
        for name in missing:
            found = propose(reference, name, given.rivals)
            networks[name] = {str(b): [c.to_json() for c in cs] for b, cs in found.items()}
            if given.networks:
                given.networks.write_text(json.dumps(networks))
    works = [Work(DENSE, 1.0, (), epochs)] if DENSE in names else []
    for name in (n for n in names if n != DENSE):
        for bound in bounds:
            rivals = tuple(map(Candidate.from_json, networks[name][str(bound)][: given.rivals]))
            if rivals:
                works.append(Work(name, bound, rivals, epochs))
            else:
                say(f"{name} found no network within {bound:.0%} of the MACs")
    results: list[Result] = []
    context = multiprocessing.get_context("spawn")
    begin = (given.device, images, recipe)
    with ProcessPoolExecutor(given.jobs, mp_context=context, initializer=_begin, initargs=begin) as pool:
        for done in as_completed([pool.submit(_do, work) for work in works]):
            r = done.result()
            results.append(r)
            say(f"{r.method} <= {r.bound:.0%}: {r.before:.4f} -> {r.validation:.4f}, test {r.test:.4f}")
    dense = next((r.test for r in results if r.method == DENSE), None)
    cells = [
        (
            r.method,
            f"{r.bound:.0%}",
            f"{r.macs:.3f}",
            *(f"{100 * share:.2f}" for share in (r.before, r.validation, r.test)),
            "" if dense is None else f"{100 * (r.test - dense):+.2f}",
        )
        for r in sorted(results, key=lambda r: (-r.bound, -r.test))
    ]
    head = (
        "method",
        "MACs at most",
        "MACs",
        "untrained, %",
        "validation, %",
        "test, %",
        "over dense, points",
    )
    an_epoch = statistics.median(r.seconds / r.epochs for r in results)
    text = f"{table(head, cells)}\n\n{epochs} epochs for each; {an_epoch:.1f} s an epoch (median)"
    report(
        given,
        {"results": [asdict(r) for r in results], "recipe": recipe},
        text,
        ("torch", "numpy"),
        given.device,
    )


if __name__ == "__main__":
    main()
