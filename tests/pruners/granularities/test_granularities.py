import copy
import dataclasses

import pytest
import torch
from torch import nn

from prunefront.errors import UnknownName
from prunefront.pruners.granularities import granularities
from prunefront.pruners.statistics import Statistics, collect
from prunefront.pruners.units.view import MEASURED
from tests.pruners.fixtures import (
    MODELS,
    Grouped,
    Plain,
    Residual,
    batches,
    graph_of,
    group,
    made,
    norm,
    part,
)


@pytest.mark.parametrize("name", granularities)
@pytest.mark.parametrize("kind", MODELS)
def test_contract(name, kind):
    """One row per unit in every field, in float64 without gradient; writing on them changes nothing else."""
    model = made(kind).to(torch.bfloat16)
    before = copy.deepcopy(model.state_dict())
    statistics = collect(made(kind), model.graph(), batches(), MEASURED)
    for where in model.graph().groups:
        view = granularities[name].view(where, model.state_dict(), statistics)
        rows = {f.name: getattr(view, f.name) for f in dataclasses.fields(view)}
        for tensor in rows.values():
            assert tensor is None or (len(tensor), tensor.dtype) == (len(view.weight), torch.float64)
            assert tensor is None or not tensor.requires_grad
        for tensor in rows.values():
            if tensor is not None:
                tensor.fill_(7.0)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_unknown_granularity_lists_the_known():
    with pytest.raises(UnknownName, match="'chanel'; did you mean 'channel'"):
        granularities["chanel"]


def view(model: nn.Module, name: str):
    return granularities["channel"].view(model.graph().group(name), model.state_dict(), Statistics())


def test_a_row_is_the_filter_that_produces_the_unit_without_bias_and_consumers():
    model = made(Plain)
    assert torch.equal(view(model, "one").weight, model.conv1.weight.detach().flatten(1))
    assert torch.equal(view(model, "two").weight, model.conv2.weight.detach().flatten(1))
    assert torch.equal(view(model, "one").norm_scale, model.bn1.weight.detach().abs())
    assert view(model, "two").norm_scale is None
    read = {"weight", "outgoing", "norm_scale", "norm_shift", "norm_variance"}
    assert view(model, "one").known_fields() == read
    assert view(model, "two").known_fields() == {"weight", "outgoing"}


def test_outgoing_is_every_weight_that_reads_the_unit():
    model = made(Plain)
    readers = model.conv2.weight.detach().transpose(0, 1).flatten(1)
    assert torch.equal(view(model, "one").outgoing, readers)
    columns = model.fc.weight.detach().T.unflatten(0, (4, 4)).flatten(1)  # four columns per channel
    assert torch.equal(view(model, "two").outgoing, columns)
    stream = made(Residual)
    both = [stream.conv1.weight.detach().transpose(0, 1).flatten(1), stream.fc.weight.detach().T]
    assert torch.equal(view(stream, "stream").outgoing, torch.cat(both, dim=1))
    # channels u and u + 4 meet column u, each in its own conv group
    tied = made(Grouped)
    assert torch.equal(view(tied, "one").outgoing, tied.conv2.weight.detach().transpose(0, 1).flatten(1))


def test_moments_of_norms_add_up_as_independent_branches_do():
    model = made(Residual)
    stream = view(model, "stream")
    torch.testing.assert_close(stream.norm_shift, (model.bn0.bias + model.bn2.bias).detach())
    variance = (model.bn0.weight.square() + model.bn2.weight.square()).detach()
    torch.testing.assert_close(stream.norm_variance, variance)
    one = view(model, "inner")
    assert torch.equal(one.norm_shift, model.bn1.bias.detach())  # with its sign
    torch.testing.assert_close(one.norm_variance, one.norm_scale.square())


def test_producers_of_a_stream_lie_side_by_side_and_its_scales_add_up():
    model = made(Residual)
    stream = view(model, "stream")
    both = torch.cat([model.stem.weight.flatten(1), model.conv2.weight.flatten(1)], dim=1)
    assert torch.equal(stream.weight, both)
    torch.testing.assert_close(stream.norm_scale, (model.bn0.weight.abs() + model.bn2.weight.abs()).detach())


def test_tied_channels_share_a_row():
    model = made(Grouped)
    w = model.conv1.weight.detach().flatten(1)
    assert torch.equal(view(model, "one").weight, torch.cat([w[:4], w[4:]], dim=1))


class Unusual(nn.Module):
    """A transposed conv, a depthwise conv behind it, and a linear with units of unequal size."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 3, 2)
        self.depth = nn.Conv2d(3, 3, 3, groups=3)
        self.bn = nn.BatchNorm2d(3, affine=False)
        self.fc = nn.Linear(2, 4)

    def graph(self):
        return graph_of(
            self,
            group(
                "up",
                part("up.weight", 1, "out", 3),
                part("depth.weight", 0, "out", 3),
                *norm("bn", 3)[2:],
            ),
            group("uneven", part("fc.weight", 0, "out", [(0, 3), (1,), (2,)])),
        )


def test_any_axis_and_any_number_of_positions():
    model = made(Unusual)
    up = view(model, "up")
    by_channel = model.up.weight.detach().transpose(0, 1).flatten(1)
    assert torch.equal(up.weight, torch.cat([by_channel, model.depth.weight.detach().flatten(1)], dim=1))
    assert up.norm_scale is None  # this norm has no scale
    assert up.norm_shift is None
    assert up.norm_variance is None
    w = model.fc.weight.detach()
    zeros = torch.zeros(2, dtype=torch.float64)
    expected = torch.stack([torch.cat([w[0], w[3]]), torch.cat([w[1], zeros]), torch.cat([w[2], zeros])])
    assert torch.equal(view(model, "uneven").weight, expected)
