"""Optuna's samplers behind ask and tell. Optuna is loaded when a searcher is made, not with this module."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunefront.search.outcomes.front import minimised
from prunefront.search.outcomes.measurement import Failure, Outcome
from prunefront.search.searchers.ledger import Ledger
from prunefront.search.searchers.options import option, read_options
from prunefront.search.searchers.searcher import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import GroupSpace

if TYPE_CHECKING:
    import optuna

REPEATS = 3
"""Sampler draws per ask before a repeated candidate gives way to a random one."""


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Options of a model-based sampler. startup: random outcomes before the model takes over (seeds count)."""

    startup: int = option(10, 1, 10_000)


@dataclass(frozen=True, slots=True)
class GeneticOptions:
    """Options of a genetic sampler. population: size of a generation."""

    population: int = option(24, 4, 10_000)


def _tpe(seed: int, options: Any) -> "optuna.samplers.BaseSampler":
    """Optuna's tree-structured Parzen estimator, for several objectives (Ozaki et al. 2022)."""
    import optuna

    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=options.startup)


def _nsga2(seed: int, options: Any) -> "optuna.samplers.BaseSampler":
    """Optuna's NSGA-II: waits for whole generations (Deb et al. 2002)."""
    import optuna

    return optuna.samplers.NSGAIISampler(seed=seed, population_size=options.population)


def _nsga3(seed: int, options: Any) -> "optuna.samplers.BaseSampler":
    """Optuna's NSGA-III: reference directions, for many objectives (Deb and Jain 2014)."""
    import optuna

    return optuna.samplers.NSGAIIISampler(seed=seed, population_size=options.population)


def _gp(seed: int, options: Any) -> "optuna.samplers.BaseSampler":
    """Optuna's Gaussian process: fewest evaluations, seconds per proposal; loads torch."""
    import optuna

    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=options.startup)


SAMPLERS: Mapping[str, tuple[Callable[[int, Any], Any], type[ModelOptions] | type[GeneticOptions]]] = {
    "optuna_tpe": (_tpe, ModelOptions),
    "optuna_nsga2": (_nsga2, GeneticOptions),
    "optuna_nsga3": (_nsga3, GeneticOptions),
    "optuna_gp": (_gp, ModelOptions),
}


class OptunaSearcher:
    """One of Optuna's samplers on an in-memory study of several objectives, constraints included.

    Every ask makes a fresh sampler, seeded from (seed, ask), so all that it knows is the study's trials. The Gaussian
    process sampler loads torch and scipy at its first model-based ask; its time grows with the cube of the number of
    outcomes. Optuna knows no explicit patterns: a seed's pattern is shown to it as its ratio.
    """

    def __init__(self, name: str, problem: Problem, *, seed: int, **options: Any) -> None:
        self._make, kind = SAMPLERS[name]
        self.options: ModelOptions | GeneticOptions = read_options(kind, options, name)
        self.name = name
        self._ledger = Ledger(problem, seed)
        self._groups = {g.name: g for g in problem.space.groups}
        self._numbers: dict[str, int] = {}  # candidate key -> trial number
        self._study = self._new_study()

    def ask(self) -> Candidate:
        seeded = self._ledger.next_seed()
        if seeded is not None:
            self._numbers[seeded.key()] = self._trial(self._ledger.asks, 0, seeded)[0]
            self._ledger.book(seeded)
            return seeded
        for attempt in range(REPEATS):
            number, candidate = self._trial(self._ledger.asks, attempt)
            if self._ledger.is_new(candidate):
                self._numbers[candidate.key()] = number
                self._ledger.book(candidate)
                return candidate
            self._finish(number, Failure("repeated", "was proposed before"))
        candidate = self._ledger.propose(lambda rng: self._ledger.problem.space.sample(rng, self.name))
        if candidate.key() not in self._numbers:
            self._numbers[candidate.key()] = self._trial(self._ledger.asks, REPEATS, candidate)[0]
        return candidate

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        if not self._ledger.record(candidate, outcome):
            return
        key = candidate.key()
        if key not in self._numbers:
            self._numbers[key] = self._trial(self._ledger.asks, REPEATS, candidate)[0]
        self._finish(self._numbers[key], outcome)

    def figures(self) -> dict[str, float]:
        return {}

    def _new_study(self) -> "optuna.Study":
        import optuna

        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it announces a new study on the console
        try:
            return optuna.create_study(directions=["minimize"] * len(self._ledger.problem.objectives))
        finally:
            optuna.logging.set_verbosity(verbosity)

    def _trial(self, ask: int, attempt: int, fixed: Candidate | None = None) -> tuple[int, Candidate]:
        """Opens a trial and returns its number and candidate.

        fixed: a candidate that the sampler is told, not asked for.
        """
        import optuna

        seed = int(self._ledger.rng(1 + attempt).integers(2**31))
        if fixed is not None:
            self._study.enqueue_trial(self._encode(fixed))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", optuna.exceptions.ExperimentalWarning
            )  # NSGA-III is marked experimental
            model = fixed is not None and isinstance(self.options, ModelOptions)
            # a trial with a fixed candidate needs no model, but the genetic samplers must give it its generation
            self._study.sampler = (
                optuna.samplers.RandomSampler(seed=seed) if model else self._make(seed, self.options)
            )
            trial = self._study.ask(self._distributions())
        return trial.number, fixed if fixed is not None else self._decode(trial.params)

    def _finish(self, number: int, outcome: Outcome) -> None:
        import optuna

        if isinstance(outcome, Failure):
            self._study.tell(number, state=optuna.trial.TrialState.FAIL)
            return
        problem = self._ledger.problem
        trial = self._study.get_trials(deepcopy=False)[number]
        for place, constraint in enumerate(problem.constraints):
            optuna.trial.Trial(self._study, trial._trial_id).set_constraint(
                str(place), constraint.violation(outcome[constraint.name])
            )
        values, _ = minimised(outcome, problem.objectives)
        self._study.tell(number, [float(v) for v in values])

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, IntDistribution

        table: dict[str, Any] = {}
        for g in self._groups.values():
            if len(g.keeps) > 1:
                table[f"{g.name}:keep"] = IntDistribution(0, len(g.keeps) - 1)
            for gene, options in _names(g).items():
                if len(options) > 1:
                    table[f"{g.name}:{gene}"] = CategoricalDistribution(options)
        return table

    def _encode(self, candidate: Candidate) -> dict[str, Any]:
        table = self._distributions()
        params: dict[str, Any] = {}
        for name, keep in self._ledger.problem.space.keeps(candidate).items():
            choice = candidate.choices[name]
            params[f"{name}:keep"] = self._groups[name].keeps.index(keep)
            params[f"{name}:criterion"] = choice.criterion
            params[f"{name}:granularity"] = choice.granularity
            params[f"{name}:bits"] = choice.bits
        return {name: value for name, value in params.items() if name in table}

    def _decode(self, params: Mapping[str, Any]) -> Candidate:
        choices = {}
        for name, g in self._groups.items():
            genes = {gene: params.get(f"{name}:{gene}", options[0]) for gene, options in _names(g).items()}
            choices[name] = g.choose(g.keeps[params.get(f"{name}:keep", -1)], **genes)
        return Candidate(choices, self.name)


def _names(group: GroupSpace) -> dict[str, tuple[Any, ...]]:
    return {"criterion": group.criteria, "granularity": group.granularities, "bits": group.bits}


def _register(name: str) -> None:
    def make(problem: Problem, *, seed: int, **options: Any) -> OptunaSearcher:
        return OptunaSearcher(name, problem, seed=seed, **options)

    make.__doc__ = SAMPLERS[name][0].__doc__
    searchers.register(name)(make)


for _name in SAMPLERS:
    _register(_name)
