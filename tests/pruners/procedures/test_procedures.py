"""Contract of every training procedure with the loop."""

import pytest
import torch

from prunefront.choice import GroupChoice, pattern
from prunefront.errors import PrunefrontError, UnknownName
from prunefront.pruners.graph.shapes import shapes
from prunefront.pruners.procedures import Phase, procedure, procedures
from tests.pruners.fixtures import Grouped, Plain, Residual, made
from tests.pruners.training import goal_of, start, tensors, trained

EVERY = sorted(procedures)


@pytest.mark.parametrize("steps", [0, 1, 12, 15])  # 15 = three whole epochs, 12 is two and a part
@pytest.mark.parametrize("name", EVERY)
def test_a_run_ends_at_the_goal_and_spends_exactly_the_steps(name, steps):
    run = start(steps=steps, per_epoch=5)
    graph = run.graph
    reports = list(trained(run, procedures[name](run)))
    assert run.step == steps
    assert [r.epoch for r in reports] == list(range(1, -(-steps // 5) + 1))
    assert sum(r.images for r in reports) == steps * 6
    assert run.counts() == run.goal_counts() == {"stream": 4, "inner": 3}
    held = {n: tuple(t.shape) for n, t in run.model.state_dict().items()}
    assert held == shapes(graph, run.plan())
    assert held == dict(run.graph.shapes)
    assert not run.model.training
    assert all(p.requires_grad for p in run.model.parameters())
    assert all(t.isfinite().all() for t in run.model.state_dict().values())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", [Plain, Grouped])
def test_networks_with_few_or_no_norms_arrive_as_well(name, kind):
    run = start(kind, steps=7, per_epoch=3)
    list(trained(run, procedures[name](run)))
    assert (
        run.counts()
        == run.goal_counts()
        == {"one": run.goal.groups[0].units // 2, "two": run.goal.groups[1].units // 2}
    )
    with torch.no_grad():
        assert run.model(torch.randn(2, 3, 4, 4)).isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_a_seed_and_its_data_decide_everything(name):
    ends = []
    for seed in (0, 1):
        torch.manual_seed(seed)  # the global generator, which nothing may ask
        run = start(steps=6, per_epoch=4)
        torch.manual_seed(seed)
        list(trained(run, procedures[name](run)))
        ends.append((run.kept, tensors(run.model)))
    (kept, first), (again, second) = ends
    assert kept == again
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("steps", [0, 8])
@pytest.mark.parametrize("name", EVERY)
def test_an_explicit_pattern_decides_who_stays(name, steps):
    model = made(Residual).float()
    goal = goal_of(
        model,
        stream=GroupChoice("none", 0.5, keep=pattern([1, 2, 5, 7])),
        inner=GroupChoice("l1", 0.5, keep=pattern([0, 4, 5])),
    )
    run = start(goal=goal, steps=steps, per_epoch=3)
    list(trained(run, procedures[name](run)))
    assert run.kept == {"stream": (1, 2, 5, 7), "inner": (0, 4, 5)}


@pytest.mark.parametrize("name", EVERY)
def test_one_group_may_stay_as_it_is(name):
    model = made(Residual).float()
    run = start(goal=goal_of(model, inner=GroupChoice("l2", 0.5)), steps=6, per_epoch=4)
    list(trained(run, procedures[name](run)))
    assert run.counts() == {"stream": 8, "inner": 3}


@pytest.mark.parametrize("name", EVERY)
def test_a_goal_from_which_nothing_goes_is_trained(name):
    model = made(Residual).float()
    goal = goal_of(model, stream=GroupChoice("l1", 0.0))
    assert goal.key() == "dense"
    run = start(goal=goal, steps=6, per_epoch=4)
    list(trained(run, procedures[name](run)))
    assert run.plan().key() == "dense"
    assert not torch.equal(run.model.fc.weight, model.fc.weight)


@pytest.mark.parametrize("name", EVERY)
def test_an_entry_says_what_a_person_needs_to_choose_it(name):
    entry = procedures[name]
    assert entry.name == name
    assert entry.summary
    assert len(entry.summary) <= 110
    assert entry.summary.endswith(".")
    assert entry.choose
    assert len(entry.choose) <= 110
    assert any(year in entry.paper for year in map(str, range(1989, 2030)))
    entry.check(dict(entry.options))  # each default is what an option may be
    with pytest.raises(PrunefrontError, match=f"procedure '{name}' has no option 'wings'; it has: ") as error:
        entry(None, wings=2)
    for option, default in entry.options.items():
        assert f"{option} = {default!r}" in str(error.value)
        assert isinstance(default, bool | int | float | str)
        with pytest.raises(PrunefrontError, match=f"option '{option}' of procedure '{name}' is"):
            entry.check({option: None})


# the registry


def test_an_option_is_of_its_defaults_kind():
    entry = procedures["cubic_ramp"]
    entry.check({"end": 1, "cuts": 3})  # a whole number is a number
    with pytest.raises(
        PrunefrontError, match=r"'cuts' of procedure 'cubic_ramp' is 2\.5; give a int such as 10"
    ):
        entry.check({"cuts": 2.5})
    with pytest.raises(PrunefrontError, match="'cuts' of procedure 'cubic_ramp' is True"):
        entry.check({"cuts": True})


def test_a_procedure_is_filed_with_its_options(monkeypatch):
    monkeypatch.setattr(procedures, "_entries", dict(procedures._entries))

    @procedure("mine", choose="never", paper="Nobody 2026")
    def mine(run, often: int = 2, gently: bool = False):
        """Trains.

        And more.
        """
        yield Phase(run.steps_left)

    assert dict(mine.options) == {"often": 2, "gently": False}
    assert mine.summary == "Trains."
    mine.check({"gently": True})
    with pytest.raises(PrunefrontError, match="'gently'"):
        mine.check({"gently": 1})
    with pytest.raises(ValueError, match="procedure 'mine' is registered twice"):
        procedure("mine")(mine.phases)
    with pytest.raises(ValueError, match="option 'much' of procedure 'bare' has no default"):

        @procedure("bare")
        def bare(run, much):
            """Trains."""

    with pytest.raises(ValueError, match="procedure 'mute' has no docstring"):

        @procedure("mute")
        def mute(run):
            yield Phase(run.steps_left)


def test_an_unknown_procedure_is_met_with_the_known_ones():
    with pytest.raises(UnknownName, match="did you mean 'iterative'"):
        procedures["iterativ"]
