"""One call from a network to a smaller one, as docs/methods.md shows it."""

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.shrink import shrink
from tests.pruners.fixtures import Plain, batches, made

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def network() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    model = made(Plain).float()
    return model, [(x.float(), y) for x, y in batches(count=4)]


def test_the_budget_is_met_and_the_model_stays_as_it_is() -> None:
    model, data = network()
    before = copy.deepcopy(model.state_dict())
    found = shrink(model, data, kept_macs=0.6, epochs=1)
    assert 0.3 < found.kept_macs <= 0.6
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert found.model(data[0][0]).shape == model(data[0][0]).shape
    assert sum(p.numel() for p in found.model.parameters()) < sum(p.numel() for p in model.parameters())
    again = shrink(model, data, kept_macs=0.6, epochs=1).model.state_dict()
    assert all(torch.equal(again[n], t) for n, t in found.model.state_dict().items())


def test_what_cannot_be_had_is_said() -> None:
    model, data = network()
    with pytest.raises(PrunefrontError, match="too few"):
        shrink(model, data, kept_macs=1e-6)
    with pytest.raises(PrunefrontError, match="at least one batch"):
        shrink(model, [])
    with pytest.raises(PrunefrontError, match="'one_shot' has no option 'rounds'"):
        shrink(model, data, rounds=3)
    with pytest.raises(PrunefrontError, match=r"'bn_scale' fits none of the .* groups; these fit some: "):
        shrink(
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
            [(torch.rand(4, 6), torch.zeros(4).long())],
            criterion="bn_scale",
        )


def test_training_helps_on_real_images() -> None:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for start in range(0, 1280, 64):
        optimizer.zero_grad()
        F.cross_entropy(model(x[start : start + 64]), y[start : start + 64]).backward()
        optimizer.step()
    data = list(zip(x[:1280].split(64), y[:1280].split(64), strict=True))

    def right(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network.eval()(x[1280:]).argmax(1) == y[1280:]).float().mean())

    cut = shrink(model, data, kept_macs=0.3)
    trained = shrink(model, data, kept_macs=0.3, epochs=4, learning_rate=0.05)
    assert right(trained.model) > right(cut.model)
    assert right(trained.model) > 0.8


def test_the_page_runs() -> None:
    """Every Python block of docs/methods.md, one after the other, as in a notebook."""
    scope: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), scope)
