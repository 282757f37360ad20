"""Costs of many candidates at once are those of a plan for each."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.pipelines.config.sections import QuantisationSection, SpaceSection
from prunefront.pipelines.prepare.problem import cost_model, search_space
from prunefront.pruners.graph.channel_graph import ChannelGraph
from prunefront.pruners.graph.pruning_plan import Scores
from prunefront.pruners.plan.cost import cost, size_bytes
from prunefront.pruners.plan.decide import plan
from prunefront.search.space.encoding import Encoding
from prunefront.search.space.search_space import SearchSpace
from tests.nets import NETS
from tests.pruners.plans import traced

CHANNELS = sorted(name for name in NETS if traced(name).groups)


def space_of(
    name: str, section: SpaceSection, bits: tuple[int, ...] = (32,)
) -> tuple[ChannelGraph, Scores, SearchSpace]:
    graph, rng = traced(name), np.random.default_rng(0)
    scores = {c: {g.name: rng.exponential(size=g.units) for g in graph.groups} for c in section.criteria}
    return graph, scores, search_space(graph, scores, section, quantisation=QuantisationSection(bits=bits))


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_priced_exactly(name: str) -> None:
    graph, scores, space = space_of(name, SpaceSection(criteria=("l1", "l2")))
    encoding, rng = Encoding(space), np.random.default_rng(0)
    candidates = [space.dense(), *(space.sample(rng) for _ in range(6))]
    rows = np.array([encoding.encode(c) for c in candidates])
    found = cost_model(graph, space)(encoding, rows)
    for i, candidate in enumerate(candidates):
        exact = cost(graph, plan(graph, candidate.choices, scores))
        assert found["macs"][i] == pytest.approx(exact.macs, rel=1e-9)
        assert found["params"][i] == pytest.approx(exact.params, rel=1e-9)
        # a file has a header, which is large beside these tiny networks
        bare = found["size_bytes"][i] / found["size_bytes"][0]
        assert bare == pytest.approx(exact.size_bytes / size_bytes(graph), abs=0.35)


def test_layers_and_words_shrink_what_they_are_about() -> None:
    section = SpaceSection(criteria=("l2",), granularities=("channel", "element"))
    graph, _, space = space_of("ResNetOptionA", section, (32, 8))
    encoding = Encoding(space)
    layer = next(i for i, g in enumerate(space.groups) if g.kind == "layer")
    weights = int(np.prod(graph.shapes[space.groups[layer].name]))
    rows = np.tile(encoding.dense, (len(encoding.options[layer]), 1))
    rows[:, layer] = np.arange(len(rows))
    found = cost_model(graph, space)(encoding, rows)
    dense = cost_model(graph, space)(encoding, encoding.dense[None])
    for i, choice in enumerate(encoding.options[layer]):
        kept = 1.0 - choice.ratio
        saved = dense["size_bytes"][0] - found["size_bytes"][i]
        assert saved == pytest.approx(4 * weights * (1 - kept * choice.bits / 32))
        assert dense["params"][0] - found["params"][i] == pytest.approx(weights * (1 - kept))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_a_row_is_a_candidate(seed: int) -> None:
    section = SpaceSection(criteria=("l1", "l2"), granularities=("channel", "element"))
    _, _, space = space_of("ResNetOptionA", section, (32, 4))
    encoding, rng = Encoding(space), np.random.default_rng(seed)
    candidate = space.sample(rng)
    assert encoding.decode(encoding.encode(candidate), candidate.origin) == candidate
    row = np.array([rng.integers(n) for n in encoding.sizes])
    made = encoding.decode(row, "x")
    assert space.contains(made)
    assert (encoding.encode(made) == row).all()
    for g, lanes in enumerate(encoding.lanes):
        kept = [[1 - encoding.options[g][o].ratio for o in lane] for lane in lanes]
        assert all(k == sorted(k) and k[-1] == 1.0 for k in kept)
        assert {o for lane in lanes for o in lane} == set(range(len(encoding.options[g])))
