import copy

import pytest
import torch
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.cut.recalibrate import recalibrate
from tests.pruners.fixtures import Functional, Plain, batches, made


def test_statistics_are_those_of_one_pass_over_the_data():
    model, data = made(Plain), batches(count=3, images=8)
    with torch.no_grad():
        seen = [model.conv1(x) for x, _ in data]
    recalibrate(model, iter(data))
    mean = torch.cat(seen).mean((0, 2, 3))  # the batches are of one size
    variance = torch.stack([batch.var((0, 2, 3)) for batch in seen]).mean(0)
    torch.testing.assert_close(model.bn1.running_mean, mean)
    torch.testing.assert_close(model.bn1.running_var, variance)
    once = (model.bn1.running_mean.clone(), model.bn1.running_var.clone())
    recalibrate(model, data)  # from scratch: what was there before does not matter
    assert torch.equal(model.bn1.running_mean, once[0])
    assert torch.equal(model.bn1.running_var, once[1])


def test_a_later_norm_sees_what_the_recalibrated_earlier_one_gives():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.9), nn.Linear(4, 2), nn.BatchNorm1d(2)
    )
    x = torch.randn(64, 3)
    recalibrate(model, [((x,), None)])
    first = model[0](x)
    normed = (first - first.mean(0)) / (first.var(0, correction=0) + 1e-5).sqrt()
    second = model[3](normed).detach()  # the dropout between them is off
    torch.testing.assert_close(model[4].running_mean, second.mean(0))
    torch.testing.assert_close(model[4].running_var, second.var(0))


@pytest.mark.parametrize("training", [True, False])
def test_everything_but_the_running_statistics_is_as_before(training):
    model, data = made(Plain).train(training), batches()
    model.conv2.eval()
    model.bn1.momentum = 0.3
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    before = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    recalibrate(model, data)
    assert [m.training for m in model.modules()] == flags
    assert model.bn1.momentum == 0.3
    assert torch.equal(model.conv1.weight.grad, torch.ones_like(model.conv1.weight))
    assert all(p.grad is None for n, p in model.named_parameters() if n != "conv1.weight")
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"}


@pytest.mark.parametrize("net", [made(Functional), nn.BatchNorm2d(3, track_running_stats=False)])
def test_without_running_statistics_no_batch_is_read(net):
    def never():
        raise AssertionError("a batch was read")
        yield

    recalibrate(net, never())


def test_flags_return_when_a_batch_fails_and_no_batch_is_an_error():
    model = made(Plain).train()
    with pytest.raises(RuntimeError):
        recalibrate(model, [(torch.zeros(2, 9, 4, 4, dtype=torch.float64), None)])
    assert all(m.training for m in model.modules())
    assert model.bn1.momentum == 0.1
    with pytest.raises(PrunefrontError, match="at least one"):
        recalibrate(model, [])
