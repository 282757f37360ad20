"""Other tools for the same search, each behind ask and tell."""

import copy
import datetime
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import optuna
import torch
from torch import nn

from benchmarks.reference import Reference
from prunefront.choice import GroupChoice, pattern
from prunefront.search.outcomes.measurement import Measurement
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.search_space import SearchSpace

MAX_RATIO = 0.93


class Peer(Protocol):
    """A proposer; None = it has nothing more to try."""

    def ask(self) -> Candidate | None: ...

    def tell(self, candidate: Candidate, measured: Measurement) -> None: ...


class Listed:
    """Candidates that do not depend on measurements."""

    def __init__(self, candidates: Iterator[Candidate]) -> None:
        self._left = candidates

    def ask(self) -> Candidate | None:
        return next(self._left, None)

    def tell(self, candidate: Candidate, measured: Measurement) -> None:
        """Ignores the measurement."""


class Optuna:
    """Optuna over one ratio per group, maximising accuracy and minimising MACs."""

    def __init__(self, reference: Reference, sampler: optuna.samplers.BaseSampler) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = reference.problem().space
        self._study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        self._trials: dict[str, optuna.Trial] = {}
        self._macs = reference.dense_macs

    def ask(self) -> Candidate:
        trial = self._study.ask()
        ratios = [trial.suggest_float(g.name, 0.0, MAX_RATIO) for g in self._space.groups]
        self._trials["now"] = trial
        return at_ratios(self._space, ratios)

    def tell(self, candidate: Candidate, measured: Measurement) -> None:
        self._study.tell(self._trials.pop("now"), [measured["accuracy"], measured["macs"] / self._macs])


class Moasha:
    """Syne Tune's MOASHA: ratios drawn at random, trials stopped at rungs by their non-dominated rank there.

    max_epochs: the end of a trial; rungs are at 1, 2, 4 … epochs below it. A trial that is one score without training
    (`ask`, `tell`) cannot be stopped, so its proposals are random search.
    """

    def __init__(self, reference: Reference, seed: int, max_epochs: int = 1) -> None:
        from syne_tune.config_space import uniform as ratio
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        self._space = reference.problem().space
        self._macs = reference.dense_macs
        self._scheduler = MOASHA(
            {g.name: ratio(0.0, MAX_RATIO) for g in self._space.groups},
            ["error", "macs"],
            time_attr="epoch",
            max_t=max_epochs,
            grace_period=1,
            reduction_factor=2,
            random_seed=seed,
        )
        self._drawn = np.random.RandomState(seed).get_state()
        self._trials: list[Any] = []

    def ask(self) -> Candidate:
        return self.start()[1]

    def tell(self, candidate: Candidate, measured: Measurement) -> None:
        self.goes_on(len(self._trials) - 1, 1, measured)

    def start(self) -> tuple[int, Candidate]:
        """Returns a new trial's number, and its candidate."""
        from syne_tune.backend.trial_status import Trial

        others = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._drawn)  # noqa: NPY002
        try:
            suggestion = self._scheduler.suggest()
            assert suggestion is not None
            trial = Trial(len(self._trials), suggestion.config, datetime.datetime.now())
            self._scheduler.on_trial_add(trial)
        finally:
            self._drawn = np.random.get_state()  # noqa: NPY002
            np.random.set_state(others)  # noqa: NPY002
        self._trials.append(trial)
        return trial.trial_id, at_ratios(self._space, [trial.config[g.name] for g in self._space.groups])

    def goes_on(self, number: int, epoch: int, measured: Measurement) -> bool:
        """Returns True if a trial is trained further after `epoch` epochs."""
        result = {
            "error": 1.0 - measured["accuracy"],
            "macs": measured["macs"] / self._macs,
            "epoch": epoch,
        }
        return bool(self._scheduler.on_trial_result(self._trials[number], result) == "CONTINUE")


def at_ratios(space: SearchSpace, ratios: "list[float] | np.ndarray") -> Candidate:
    """Returns the candidate that drops these shares of the groups."""
    return Candidate(
        {
            g.name: g.choose(g.nearest(g.units * (1.0 - float(r))))
            for g, r in zip(space.groups, ratios, strict=True)
        }
    )


def uniform(reference: Reference, seed: int, evaluations: int) -> Peer:
    """Returns a sweep of one ratio for all groups, as many as there are evaluations."""
    space = reference.problem().space
    return Listed(at_ratios(space, [r] * len(space.groups)) for r in np.linspace(0.0, MAX_RATIO, evaluations))


def random(reference: Reference, seed: int, evaluations: int) -> Peer:
    """Returns candidates with an independent ratio for every group."""
    space, rng = reference.problem().space, np.random.default_rng(seed)
    return Listed(
        at_ratios(space, rng.uniform(0.0, MAX_RATIO, len(space.groups))) for _ in range(evaluations)
    )


def nsga2(reference: Reference, seed: int, evaluations: int) -> Peer:
    return Optuna(reference, optuna.samplers.NSGAIISampler(population_size=20, seed=seed))


def tpe(reference: Reference, seed: int, evaluations: int) -> Peer:
    return Optuna(reference, optuna.samplers.TPESampler(seed=seed))


def gp(reference: Reference, seed: int, evaluations: int) -> Peer:
    return Optuna(reference, optuna.samplers.GPSampler(seed=seed))


def moasha(reference: Reference, seed: int, evaluations: int) -> Peer:
    return Moasha(reference, seed)


class Ours:
    """A searcher of ours."""

    def __init__(self, name: str, reference: Reference, seed: int) -> None:
        self._searcher = searchers[name](reference.problem(), seed=seed)

    def ask(self) -> Candidate | None:
        return self._searcher.ask()

    def tell(self, candidate: Candidate, measured: Measurement) -> None:
        self._searcher.tell(candidate, measured)


def ours(name: str) -> Callable[[Reference, int, int], Peer]:
    return lambda reference, seed, evaluations: Ours(name, reference, seed)


IMPORTANCES = ("l1", "l2", "bn_scale", "lamp", "fpgm", "taylor", "random")
"""Importances of torch-pruning, by their name there or here."""


def torch_pruning(importance: str) -> Callable[[Reference, int, int], Peer]:
    """Returns a sweep of torch-pruning's global pruning over its one ratio, as many as there are evaluations."""
    return lambda reference, seed, evaluations: Listed(
        _global(reference, importance, float(r), seed) for r in np.linspace(0.0, 0.95, evaluations)
    )


def _global(reference: Reference, importance: str, ratio: float, seed: int) -> Candidate:
    import torch_pruning as tp

    torch.manual_seed(seed)
    space = reference.problem().space
    names = [g.name for g in space.groups]
    model = copy.deepcopy(reference.cifar.network.model).eval()
    modules = dict(model.named_modules())
    example = torch.zeros(1, 3, 32, 32)
    if importance == "taylor":
        _gradients(reference, model)
    whole = {name: modules[name].out_channels for name in names}
    kept = {name: list(range(int(n))) for name, n in whole.items()}  # type: ignore[call-overload]
    pruner = tp.pruner.MetaPruner(
        model,
        example,
        importance=_importance(tp, importance),
        global_pruning=True,
        pruning_ratio=ratio,
        max_pruning_ratio=MAX_RATIO,
        ignored_layers=[
            m for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.Linear) and n not in names
        ],
    )
    paths = {module: name for name, module in modules.items()}
    for group in pruner.step(interactive=True):
        target, channels = paths[group[0].dep.target.module], group[0].idxs
        if target in kept:
            kept[target] = [u for i, u in enumerate(kept[target]) if i not in set(channels)]
        group.prune()
    choices: dict[str, GroupChoice] = {}
    for g in space.groups:
        units = kept[g.name]
        keep = max(len(units), g.keeps[0])
        choices[g.name] = g.choose(keep, pattern=pattern(units)) if keep == len(units) else g.choose(keep)
    return Candidate(choices)


def _importance(tp: Any, name: str) -> Any:
    made = {
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "bn_scale": tp.importance.BNScaleImportance,
        "lamp": tp.importance.LAMPImportance,
        "fpgm": tp.importance.FPGMImportance,
        "taylor": tp.importance.GroupTaylorImportance,
        "random": tp.importance.RandomImportance,
    }
    return made[name]()


def _gradients(reference: Reference, model: nn.Module) -> None:
    """Computes gradients of the loss on the training images that our criteria read."""
    from prunefront.pipelines.prepare.knowledge import calibration

    study, data = reference.cifar.config, reference.cifar.network.splits.for_search()
    for inputs, labels in calibration(study.space.calibration_images, data, study.seed):
        nn.functional.cross_entropy(model(inputs), labels, reduction="sum").backward()


PEERS: dict[str, Callable[[Reference, int, int], Peer]] = {
    "uniform sweep": uniform,
    "random": random,
    "Optuna TPE": tpe,
    "Optuna NSGA-II": nsga2,
    "Optuna GP": gp,
}
if importlib.util.find_spec("torch_pruning"):
    PEERS |= {f"torch-pruning {name}": torch_pruning(name) for name in IMPORTANCES}
if importlib.util.find_spec("syne_tune"):
    PEERS["Syne Tune MOASHA"] = moasha

OURS = {name: ours(name) for name in ("auto", "surrogate", "evolution", "particle_filter")}
