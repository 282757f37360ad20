"""What a study asks for and its network cannot have is said, and what is done instead."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import parse
from prunefront.pipelines.config.sections import QuantisationSection, SpaceSection
from prunefront.pipelines.events.display import Display
from prunefront.pipelines.prepare.inspection import InspectedSections, Inspection, inspect, print_inspection
from prunefront.pipelines.prepare.misfits import misfits
from prunefront.pipelines.prepare.problem import widest_space
from prunefront.pipelines.study.run import run
from tests.pruners.plans import traced

PLAIN, RESIDUAL = traced("Plain"), traced("ResNetOptionA")
"""The first has neither batch norms nor blocks; the blocks of the second are single."""

STUDY: dict[str, Any] = {
    "name": "s",
    "model": {"factory": "digits_cnn", "options": {"width": 4}},
    "space": {"criteria": ["taylor"], "granularities": ["kernel"]},
}
SAID = "ranked by 'l2' (the default) and not by 'taylor'"


def lines(network: Any = RESIDUAL, **asked: Any) -> list[str]:
    section = SpaceSection(**asked)
    return misfits(network, widest_space(network, section), section)


@pytest.mark.parametrize(
    "asked",
    [
        {"criteria": ("l1", "taylor")},
        {"criteria": ("l1",), "granularities": ("channel", "kernel")},
        {"criteria": ("l1",), "bound": "redundancy"},
    ],
)
def test_nothing_is_said_where_all_is_had(asked: dict[str, Any]) -> None:
    assert lines(**asked) == []


def test_criteria_that_cannot_rank_within_layers_are_named_with_what_ranks_there() -> None:
    assert lines(criteria=("taylor",), granularities=("kernel",)) == [
        "units of granularity 'kernel' are ranked by 'l2' (the default) and not by 'taylor': a criterion can only "
        "use weights there"
    ]
    (line,) = lines(criteria=("taylor", "l1"), granularities=("channel", "kernel", "gather"))
    assert "granularity 'kernel', 'gather' are ranked by 'l1' and not by 'taylor'" in line


def test_granularities_and_densities_that_fit_nothing_are_named() -> None:
    (line,) = lines(PLAIN, criteria=("l1",), granularities=("channel", "block"))
    assert line == "granularity 'block' fits nothing in this network; `prunefront inspect` says why"
    (line,) = lines(criteria=("l1",), granularities=("channel", "n_of_m"), densities=(0.5, 0.9))
    assert line == "no layer can have density 0.9 with granularity 'n_of_m'"


def test_groups_that_no_criterion_fits_are_named() -> None:
    gate = traced("SqueezeExcite").groups[1].name
    (line,) = lines(traced("SqueezeExcite"), criteria=("bn_scale",))
    assert line == f"channel group {gate!r} is not pruned, because no criterion of the study fits it"
    assert lines(traced("SqueezeExcite"), criteria=("bn_scale",), per_group={gate: ("l1",)}) == []


def test_groups_that_a_bound_does_not_hold_are_named() -> None:
    section = SpaceSection(criteria=("l1",), bound="redundancy", max_ratio=0.5)
    first, *others = (g.name for g in RESIDUAL.groups)
    facts = {"gradient_gram": dict.fromkeys(others, np.eye(4))}
    (line,) = misfits(RESIDUAL, widest_space(RESIDUAL, section), section, facts)
    assert f"'redundancy' does not bound channel group {first!r}, which no gradient reaches" in line
    assert "max_ratio = 0.5 does" in line


def test_inspect_says_it(tmp_path: Path) -> None:
    found = inspect(parse(STUDY, source="s", base=tmp_path).part(InspectedSections))
    (line,) = found.to_json()["misfits"]
    assert SAID in line
    console = Console(record=True, width=80)
    print_inspection(found, console)
    assert line in console.export_text()


def test_inspect_says_that_nothing_can_go(tmp_path: Path) -> None:
    space = {"criteria": ["taylor"], "granularities": ["block"]}
    (line,) = inspect(
        parse(STUDY | {"space": space}, source="s", base=tmp_path).part(InspectedSections)
    ).to_json()["misfits"]
    assert line.startswith("nothing can be pruned")


def test_inspect_shows_what_each_group_is_rounded_to(tmp_path: Path) -> None:
    def inspected(round_to: object) -> Inspection:
        asked = {**STUDY, "space": {"criteria": ["l1"], "round_to": round_to}}
        return inspect(parse(asked, source="s", base=tmp_path).part(InspectedSections))

    names = [group["name"] for group in inspected(1).to_json()["groups"]]
    found = inspected({"*": 4, names[0]: 1})
    groups = found.to_json()["groups"]
    assert [group["multiple"] for group in groups] == [1, *[4] * (len(names) - 1)]
    assert all(keep % group["multiple"] == 0 for group in groups for keep in group["keeps"][:-1])
    assert any(keep % 4 for keep in groups[0]["keeps"])
    console = Console(record=True, width=200)
    print_inspection(found, console)
    assert "multiple of" in console.export_text()
    with pytest.raises(PrunefrontError, match=f"'nowhere\\*', which fits no channel group.*{names[0]}"):
        inspected({"nowhere*": 4})


@pytest.mark.slow
def test_a_search_says_it(tmp_path: Path) -> None:
    short = {
        "folder": str(tmp_path),
        "data": {"train_limit": 200},
        "dense": {"epochs": 1},
        "search": {"candidates": 2, "searcher": "random"},
        "training": {"candidates": 0, "epochs": 0, "precision": "float32"},
        "measure": {"pairs": 10},
    }
    console = Console(record=True, width=80)
    run(parse(STUDY | short, source="s", base=tmp_path), display=Display(console), without_ray=True)
    assert SAID in console.export_text()


def test_a_searcher_that_varies_less_than_the_space_holds_is_named() -> None:
    section = SpaceSection(criteria=("l1",))
    for bits, searcher, said in (
        ((32, 8), "particle_filter", True),
        ((32, 8), "auto", False),
        ((32,), "particle_filter", False),
    ):
        space = widest_space(RESIDUAL, section, QuantisationSection(bits=bits))
        found = misfits(RESIDUAL, space, section, searcher=searcher)
        assert any("'particle_filter' varies only ratios and criteria" in line for line in found) == said
