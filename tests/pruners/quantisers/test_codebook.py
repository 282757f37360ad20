"""Codebooks by k-means: what Lloyd's iterations owe their weights."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunefront.pruners.quantisers.codebook import fit_codebook, nearest_entries


def test_well_separated_weights_get_their_own_centroids() -> None:
    means = torch.tensor([-3.0, -1.0, 1.0, 2.5])
    weight = (means[:, None] + torch.tensor([-0.1, 0.0, 0.1])).flatten()
    found = fit_codebook(weight, 2)
    torch.testing.assert_close(found, means)
    assert nearest_entries(weight, found).tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


@settings(max_examples=40)
@given(seed=st.integers(0, 99), bits=st.integers(1, 5), pruned=st.booleans())
def test_lloyd_never_loses_and_what_is_pruned_stays_pruned(seed: int, bits: int, pruned: bool) -> None:
    weight = torch.randn(40, 5, generator=torch.Generator().manual_seed(seed))
    if pruned:
        weight = weight * (weight.abs() > 0.5)
    errors = []
    for iterations in range(6):
        book = fit_codebook(weight, bits, iterations=iterations)
        decoded = book[nearest_entries(weight, book)]
        assert torch.equal(decoded, book[nearest_entries(decoded, book)])
        assert torch.equal(decoded[weight == 0], weight[weight == 0])
        distance = (weight.flatten()[:, None].double() - book.double()).abs()
        assert torch.equal(
            (decoded - weight).double().abs().flatten(), distance.min(1).values.float().double()
        )
        errors.append(float((decoded - weight).square().sum()))
    assert len(book) == 1 << bits
    assert all(later <= earlier + 1e-4 for earlier, later in pairwise(errors))


def test_codebooks_of_nothing_and_of_one_value() -> None:
    assert fit_codebook(torch.zeros(3), 2).tolist() == [0.0] * 4
    assert fit_codebook(torch.full((3,), 0.7), 2).tolist() == [torch.tensor(0.7).item()] * 4
