"""Error curves: the networks that they propose, and what a searcher makes of them."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.search.outcomes.measurement import ACCURACY, OBJECTIVES, Constraint, Measurement
from prunefront.search.prediction.quality_model import QualityModel
from prunefront.search.prediction.sensitivity import Sensitivity, allocations, least_loss
from prunefront.search.searchers import searchers
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.costs import CostModel
from prunefront.search.space.encoding import Encoding, error_table
from prunefront.search.space.problem import Problem
from prunefront.search.space.search_space import GroupSpace, SearchSpace

CHANCE = 0.1


class Layered:
    """Groups of equal MACs, whose readers lose a share of their outputs as units go: slowly first, then steeply.

    Quality falls with the sum of errors, each times a weight that the curves do not tell, and faster once it is large,
    as of the reference network in benchmarks/searchers.py. Read-out without noise.
    """

    def __init__(self, groups: int, seed: int, units: int = 24) -> None:
        rng = np.random.default_rng([seed, groups])
        spaces = tuple(
            GroupSpace(f"g{i}", units, tuple(range(2, units + 1)), ("l1", "obs"), unit_macs=1.0 / units)
            for i in range(groups)
        )
        self.space = SearchSpace(spaces)
        cut = 1.0 - np.arange(2, units + 1) / units
        self.errors = (
            rng.lognormal(-1.2, 0.7, groups)[:, None] * cut ** rng.uniform(1.8, 3.0, groups)[:, None]
        )
        self.weights = rng.lognormal(0.0, 0.4, groups) * 9.0 / groups
        shares = np.hstack([np.zeros((groups, 1)), np.eye(groups)])
        rest = np.zeros_like(shares)
        rest[:, 0] = 1.0
        self.costs = CostModel(
            shares, rest, np.zeros((groups, groups)), {"macs": np.ones(groups)}, frozenset()
        )

    def problem(self, *, curves: bool = True, evaluations: int = 0, most: float = 1e9) -> Problem:
        known = {g.name: row for g, row in zip(self.space.groups, self.errors, strict=True)}
        return Problem(
            self.space,
            (ACCURACY, OBJECTIVES["macs"]),
            (Constraint("macs", high=most),),
            (self.space.dense(),),
            curves={"obs": known} if curves else {},
            costs=self.costs,
            chance=CHANCE,
            evaluations=evaluations,
        )

    def measure(self, candidate: Candidate) -> Measurement:
        keeps = [self.space.keeps(candidate)[g.name] for g in self.space.groups]
        total = sum(w * e[k - 2] for w, e, k in zip(self.weights, self.errors, keeps, strict=True))
        quality = max(CHANCE, 0.9 * float(np.exp(-0.17 * total - 0.12 * total**2)))
        return Measurement(
            {"accuracy": quality, "macs": sum(keeps) / self.space.groups[0].units}, {"accuracy": 0.01}
        )

    def volume(self, measured: list[Measurement]) -> float:
        area, top = 0.0, CHANCE
        for macs, quality in sorted((m["macs"] / len(self.errors), m["accuracy"]) for m in measured):
            if macs < 1.0 and quality > top:
                area, top = area + (quality - top) * (1.0 - macs), quality
        return area

    def uniform(self, count: int) -> list[Measurement]:
        shares = np.linspace(1.0, 2.5 / 24, count)
        return [
            self.measure(Candidate({g.name: g.choose(g.nearest(g.units * s)) for g in self.space.groups}))
            for s in shares
        ]


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), share=st.floats(0.05, 0.95))
def test_a_knapsack_is_as_good_as_any_candidate(seed: int, share: float) -> None:
    net = Layered(3, seed, units=6)
    encoding, rng = Encoding(net.space), np.random.default_rng(seed)
    losses, saved = rng.random((3, len(encoding.options[0]))), rng.random((3, len(encoding.options[0])))
    goal = share * saved.max(axis=1).sum()
    every = np.array(list(product(*(range(int(n)) for n in encoding.sizes))))
    enough = encoding.look_up(saved, every).sum(axis=1) >= goal - 1e-9
    least = encoding.look_up(losses, every).sum(axis=1)[enough].min()
    row = least_loss(encoding, losses, saved, goal)
    assert encoding.look_up(saved, row[None]).sum() >= goal - 1e-6
    assert encoding.look_up(losses, row[None]).sum() == pytest.approx(least, rel=2e-3, abs=1e-9)


def test_a_goal_out_of_reach_is_an_error() -> None:
    encoding = Encoding(Layered(2, 0, units=6).space)
    saved = np.ones((2, len(encoding.options[0])))
    with pytest.raises(ValueError, match="no candidate saves 3"):
        least_loss(encoding, saved, saved, 3.0)


@pytest.mark.parametrize("groups", [2, 9, 120])
def test_networks_along_the_curves_are_spread_and_better_than_uniform_ones(groups: int) -> None:
    net = Layered(groups, 1)
    task, encoding = net.problem(), Encoding(net.space)
    found = allocations(task, 8)
    error, known = error_table(encoding, task.curves)
    assert known.all()
    assert 5 <= len(found) == len({c.key() for c in found})
    assert all(choice.criterion == "obs" for c in found for choice in c.choices.values() if choice.ratio > 0)
    rows = np.array([encoding.encode(c) for c in found])
    macs, total = net.costs(encoding, rows)["macs"] / groups, encoding.look_up(error, rows).sum(axis=1)
    assert np.ptp(macs) > 0.4
    assert np.ptp(macs[:2]) > 0.2  # already the first two
    for share, own in zip(macs, total, strict=True):
        uniform = encoding.encode(
            Candidate({g.name: g.choose(g.nearest(g.units * share), "obs") for g in net.space.groups})
        )
        assert own <= encoding.look_up(error, uniform[None]).sum() + 0.05


def test_networks_along_the_curves_keep_bounds_and_leave_groups_without_a_curve_alone() -> None:
    net = Layered(6, 2)
    task = net.problem(most=3.0)
    short = {name: row for name, row in task.curves["obs"].items() if name != "g3"}
    found = allocations(replace(task, curves={"obs": short}), 8)
    assert found
    for candidate in found:
        assert net.measure(candidate)["macs"] <= 3.0
        assert candidate.choices["g3"].ratio == 0.0
    assert allocations(replace(task, constraints=(Constraint("macs", high=0.01),)), 8) == ()
    assert allocations(replace(task, curves={}), 8) == allocations(replace(task, costs=None), 8) == ()


def test_only_groups_without_a_curve_are_cut_by_themselves() -> None:
    net = Layered(6, 3)
    task = net.problem()
    short = {name: row for name, row in task.curves["obs"].items() if name != "g3"}

    def alone(problem: Problem, most: int) -> list[str]:
        origins = [c.origin.split() for c in Sensitivity(problem, most).candidates]
        return [words[1] for words in origins if words[0] == "probe" and words[1].startswith("g")]

    assert alone(replace(task, curves={"obs": short}), 100) == ["g3", "g3"]
    assert alone(task, 100) == []
    assert len(Sensitivity(task, 3).candidates) <= 1 + 3 + 3
    assert Sensitivity(task, 0).candidates == ()


def test_a_handful_of_networks_gives_the_curves_their_scale() -> None:
    net = Layered(9, 4)
    task = net.problem()
    encoding = Encoding(net.space)
    told = {c.key(): net.measure(c) for c in Sensitivity(task, 100).candidates}
    table = Sensitivity(task, 100).losses(told)
    assert table is not None
    rng = np.random.default_rng(0)
    rows = np.array([encoding.encode(net.space.sample(rng)) for _ in range(200)])
    truth = np.array([net.measure(encoding.decode(row, ""))["accuracy"] for row in rows])
    guess = -encoding.look_up(table, rows).sum(axis=1)
    assert np.corrcoef(np.argsort(np.argsort(guess)), np.argsort(np.argsort(truth)))[0, 1] > 0.85
    blind = QualityModel(encoding).fit(  # the same networks by the depths of their cuts alone
        np.array([encoding.encode(c) for c in Sensitivity(task, 100).candidates]),
        np.array([np.log(0.9 / told[c.key()]["accuracy"]) for c in Sensitivity(task, 100).candidates]),
        np.full(len(Sensitivity(task, 100).candidates), 1e-4),
    )
    other = -encoding.look_up(blind.losses, rows).sum(axis=1)
    assert np.corrcoef(guess, truth)[0, 1] > np.corrcoef(other, truth)[0, 1]


@pytest.mark.parametrize("name", ["auto", "surrogate", "evolution", "particle_filter"])
@pytest.mark.parametrize("groups", [9, 27])
def test_with_curves_a_searcher_covers_after_25_networks_what_a_sweep_does(name: str, groups: int) -> None:
    net = Layered(groups, 5)
    task = replace(
        net.problem(),
        scores={"l1": {g.name: np.arange(float(g.units)) for g in net.space.groups}},
    )
    searcher = searchers[name](task, seed=0)
    told = []
    for _ in range(25):
        candidate = searcher.ask()
        assert candidate is not None
        told.append(net.measure(candidate))
        searcher.tell(candidate, told[-1])
    least = 1.0 if name in ("auto", "surrogate") else 0.93
    assert net.volume(told) >= least * net.volume(net.uniform(25))
    # a spread of real networks comes before anything else has taken a tenth of 100
    assert net.volume(told[:10]) >= 0.8 * net.volume(net.uniform(10))
