"""Hypervolume of our searchers on problems with known fronts, in 500 evaluations, beside pymoo's NSGA-II.

ZDT1 to ZDT4 (Zitzler et al. 2000, 30 and 10 variables), DTLZ2 with two and three objectives (Deb et al. 2005, 11 and 12
variables), and with constraints BNH, SRN, TNK, OSY (as in Deb et al. 2002) and C2-DTLZ2 (Jain & Deb 2014). A variable
is a group of 1,001 kept counts for our searchers and a real number for pymoo. Every second group counts downwards: our
random candidates cut all groups alike, and the optimum of ZDT lies where all variables are alike.

Hypervolume of all feasible points that were evaluated, as a share of the box between the problem's `best` and
`reference`. Ours have four candidates in flight; pymoo evaluates a generation at a time, with the better of two
population sizes.

    python -m benchmarks.multiobjective [--quick] [--json] [--only evolution,random] [--problems ZDT1,BNH]
                                        [--evaluations 500] [--repeats 11] [--first-seed 0]

pymoo is no dependency: without it (`pip install 'prunefront[peers]'`) only ours are run.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import arguments, choose, report, say, table
from prunefront.search.outcomes.measurement import Constraint, Measurement, Objective
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import GroupSpace, SearchSpace
from tests.problems import drive

Floats = NDArray[np.float64]

STEPS = 1000
"""Number of steps of a variable's range; a group has one kept count more."""

IN_FLIGHT = 4
POPULATIONS = (20, 50)
OURS = ("evolution", "auto", "random")
PEER = "pymoo NSGA-II"


@dataclass(frozen=True, slots=True)
class Formula:
    """Objectives and constraints of a point, all minimised and feasible at 0 or less.

    low, high: of the variables [n]. evaluate: x [n] -> objectives [m] and constraints [c]. best, reference: corners of
    the box in objective space whose covered share is the hypervolume [m].
    """

    name: str
    low: Floats
    high: Floats
    evaluate: Callable[[Floats], tuple[Floats, Floats]]
    best: tuple[float, ...]
    reference: tuple[float, ...]

    @property
    def constraints(self) -> int:
        return len(self.evaluate(self.low)[1])


NONE = np.zeros(0)


def _zdt(front: Callable[[float, float], float], g: Callable[[Floats], float]) -> Any:
    def evaluate(x: Floats) -> tuple[Floats, Floats]:
        first, rest = float(x[0]), g(x[1:])
        return np.array([first, rest * front(first, rest)]), NONE

    return evaluate


def _mean(x: Floats) -> float:
    return 1.0 + 9.0 * float(x.mean())


def _rastrigin(x: Floats) -> float:
    return 1.0 + 10.0 * len(x) + float((x**2 - 10.0 * np.cos(4.0 * np.pi * x)).sum())


def _zdt3(f: float, g: float) -> float:
    return 1.0 - (f / g) ** 0.5 - f / g * float(np.sin(10.0 * np.pi * f))


def _sphere(objectives: int, x: Floats) -> Floats:
    """Returns the objectives of DTLZ2."""
    angles, rest = x[: objectives - 1] * np.pi / 2.0, x[objectives - 1 :]
    radius = 1.0 + float(((rest - 0.5) ** 2).sum())
    return np.array(
        [
            radius * np.prod(np.cos(angles[: objectives - 1 - i])) * (np.sin(angles[-i]) if i else 1.0)
            for i in range(objectives)
        ]
    )


def _c2(x: Floats) -> tuple[Floats, Floats]:
    f, r = _sphere(2, x), 0.2
    near = min((f[i] - 1.0) ** 2 + (f**2).sum() - f[i] ** 2 - r**2 for i in range(2))
    middle = ((f - 2.0**-0.5) ** 2).sum() - r**2
    return f, np.array([min(near, middle)])


def _bnh(x: Floats) -> tuple[Floats, Floats]:
    a, b = x
    f = [4 * a**2 + 4 * b**2, (a - 5) ** 2 + (b - 5) ** 2]
    return np.array(f), np.array([(a - 5) ** 2 + b**2 - 25, 7.7 - (a - 8) ** 2 - (b + 3) ** 2]) / 25.0


def _srn(x: Floats) -> tuple[Floats, Floats]:
    a, b = x
    f = [2 + (a - 2) ** 2 + (b - 1) ** 2, 9 * a - (b - 1) ** 2]
    return np.array(f), np.array([(a**2 + b**2 - 225) / 225.0, (a - 3 * b + 10) / 10.0])


def _tnk(x: Floats) -> tuple[Floats, Floats]:
    a, b = x
    wave = 0.1 * np.cos(16 * np.arctan2(a, b))
    return x.copy(), np.array([1 + wave - a**2 - b**2, (a - 0.5) ** 2 + (b - 0.5) ** 2 - 0.5])


def _osy(x: Floats) -> tuple[Floats, Floats]:
    a, b, c, d, e, f = x
    first = -(25 * (a - 2) ** 2 + (b - 2) ** 2 + (c - 1) ** 2 + (d - 4) ** 2 + (e - 1) ** 2)
    limits = [
        (2 - a - b) / 2,
        (a + b - 6) / 6,
        (b - a - 2) / 2,
        (a - 3 * b - 2) / 2,
        ((c - 3) ** 2 + d - 4) / 4,
        (4 - (e - 3) ** 2 - f) / 4,
    ]
    return np.array([first, float((x**2).sum())]), np.array(limits)


def _box(name: str, n: int, evaluate: Any, best: Any, reference: Any) -> Formula:
    return Formula(name, np.zeros(n), np.ones(n), evaluate, best, reference)


FORMULAS = {
    f.name: f
    for f in (
        _box("ZDT1", 30, _zdt(lambda f, g: 1 - (f / g) ** 0.5, _mean), (0, 0), (1.1, 6)),
        _box("ZDT2", 30, _zdt(lambda f, g: 1 - (f / g) ** 2, _mean), (0, 0), (1.1, 6)),
        _box("ZDT3", 30, _zdt(_zdt3, _mean), (0, -0.8), (1.1, 6)),
        Formula(
            "ZDT4",
            np.array([0.0] + 9 * [-5.0]),
            np.array([1.0] + 9 * [5.0]),
            _zdt(lambda f, g: 1 - (f / g) ** 0.5, _rastrigin),
            (0, 0),
            (1.1, 150),
        ),
        _box("DTLZ2, 2 objectives", 11, lambda x: (_sphere(2, x), NONE), (0, 0), (2, 2)),
        _box("DTLZ2, 3 objectives", 12, lambda x: (_sphere(3, x), NONE), (0, 0, 0), (2, 2, 2)),
        Formula("BNH", np.zeros(2), np.array([5.0, 3.0]), _bnh, (0, 0), (140, 50)),
        Formula("SRN", np.full(2, -20.0), np.full(2, 20.0), _srn, (0, -220), (250, 50)),
        Formula("TNK", np.zeros(2), np.full(2, np.pi), _tnk, (0, 0), (1.2, 1.2)),
        Formula(
            "OSY",
            np.array([0.0, 0, 1, 0, 1, 0]),
            np.array([10.0, 10, 5, 6, 5, 10]),
            _osy,
            (-274, 4),
            (0, 100),
        ),
        _box("C2-DTLZ2", 11, _c2, (0, 0), (2, 2)),
    )
}


def problem(formula: Formula) -> Problem:
    """Returns the formula as a problem: groups, objectives f0, f1 …, constraints c0, c1 …; no known costs."""
    keeps = tuple(range(1, STEPS + 2))
    space = SearchSpace(
        tuple(GroupSpace(f"x{i}", STEPS + 1, keeps, ("l1",)) for i in range(len(formula.low)))
    )
    return Problem(
        space,
        tuple(Objective(f"f{i}", "min") for i in range(len(formula.reference))),
        tuple(Constraint(f"c{i}", high=0.0) for i in range(formula.constraints)),
    )


def point(formula: Formula, space: SearchSpace, candidate: Candidate) -> Floats:
    """Returns the variables [n] of a candidate."""
    share = np.array([keep - 1 for keep in space.keeps(candidate).values()]) / STEPS
    share[1::2] = 1.0 - share[1::2]
    return formula.low + share * (formula.high - formula.low)


def volume(formula: Formula, found: list[tuple[Floats, Floats]]) -> float:
    """Returns the share of the box that the feasible ones among (objectives, constraints) dominate."""
    feasible = [f for f, c in found if not (c > 0).any()]
    if not feasible:
        return 0.0
    best, reference = np.array(formula.best, float), np.array(formula.reference, float)
    inside = np.maximum(np.array(feasible), best)
    return float(moocore.hypervolume(inside, ref=reference) / np.prod(reference - best))


def ours(name: str, formula: Formula, seed: int, evaluations: int) -> float:
    """Returns the hypervolume of one of our searchers."""
    task = problem(formula)
    found: list[tuple[Floats, Floats]] = []

    def measure(candidate: Candidate) -> Measurement:
        f, c = formula.evaluate(point(formula, task.space, candidate))
        found.append((f, c))
        values = {f"f{i}": float(v) for i, v in enumerate(f)} | {f"c{i}": float(v) for i, v in enumerate(c)}
        return Measurement(values)

    order = np.random.default_rng([seed, 1])
    drive(searchers[name](task, seed=seed), measure, evaluations, parallel=IN_FLIGHT, rng=order)
    return volume(formula, found)


def nsga2(population: int, formula: Formula, seed: int, evaluations: int) -> float:
    """Returns the hypervolume of pymoo's NSGA-II, with its own operators and settings."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.optimize import minimize

    found: list[tuple[Floats, Floats]] = []

    class Wrapped(ElementwiseProblem):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(
                n_var=len(formula.low),
                n_obj=len(formula.reference),
                n_ieq_constr=formula.constraints,
                xl=formula.low,
                xu=formula.high,
            )

        def _evaluate(self, x: Floats, out: dict[str, Floats], *args: Any, **kwargs: Any) -> None:
            out["F"], out["G"] = formula.evaluate(x)
            found.append((out["F"], out["G"]))

    minimize(Wrapped(), NSGA2(pop_size=population), ("n_eval", evaluations), seed=seed)
    return volume(formula, found[:evaluations])


def compare(name: str, formula: Formula, evaluations: int, seeds: range) -> dict[str, Any]:
    """Returns one row: the method's hypervolumes over seeds; for pymoo, of its better population size."""
    started = time.perf_counter()
    ways: list[tuple[str, Callable[[int], float]]] = (
        [
            (f"population {p}", lambda s, p=p: nsga2(p, formula, s, evaluations))  # type: ignore[misc]
            for p in POPULATIONS
        ]
        if name == PEER
        else [("", lambda s: ours(name, formula, s, evaluations))]
    )
    runs = {how: [run(seed) for seed in seeds] for how, run in ways}
    how = max(runs, key=lambda h: statistics.median(runs[h]))
    return {
        "problem": formula.name,
        "method": name,
        "how": how,
        "median": round(statistics.median(runs[how]), 4),
        "worst": round(min(runs[how]), 4),
        "best": round(max(runs[how]), 4),
        "seconds": round((time.perf_counter() - started) / len(ways) / len(seeds), 2),
    }


def main() -> None:
    parser = arguments(__doc__, quick="ZDT1 and BNH, 2 seeds, 100 evaluations")
    parser.add_argument("--only", help=f"comma-separated of our searchers and {PEER!r}")
    parser.add_argument("--problems", help="semicolon-separated; default: all")
    parser.add_argument("--evaluations", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=11, help="seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    given = parser.parse_args()
    there = importlib.util.find_spec("pymoo") is not None
    names = choose(parser, given.only, [*searchers, PEER], [*OURS, *([PEER] if there else [])])
    if PEER in names and not there:
        parser.error(f"{PEER} needs pymoo, which is not installed: pip install 'prunefront[peers]'")
    titles = choose(parser, given.problems, FORMULAS, FORMULAS, separator=";")
    evaluations, repeats = given.evaluations, given.repeats
    if given.quick:
        titles, evaluations, repeats = ["ZDT1", "BNH"], 100, 2
    seeds = range(given.first_seed, given.first_seed + repeats)
    if not there:
        say("pymoo is not installed, so only ours are run: pip install 'prunefront[peers]'")
    rows: list[dict[str, Any]] = []
    for title in titles:
        for name in names:
            rows.append(compare(name, FORMULAS[title], evaluations, seeds))
            say(f"{title}, {name}: {rows[-1]['median']:.4f}")
    cells = [
        (
            f"{r['problem']}, {r['method']}",
            f"{r['median']:.4f}",
            f"{r['worst']:.4f} to {r['best']:.4f}",
            f"{r['seconds']:.2f}",
            r["how"],
        )
        for r in rows
    ]
    text = table(("problem, method", "median", "range", "seconds a run", ""), cells)
    text += f"\n\n{evaluations} evaluations, seeds {seeds[0]} to {seeds[-1]}; ours: {IN_FLIGHT} in flight"
    settings = {"evaluations": evaluations, "seeds": list(seeds), "in_flight": IN_FLIGHT}
    report(given, {**settings, "rows": rows}, text, ("numpy", "moocore", *(["pymoo"] if there else [])))


if __name__ == "__main__":
    main()
