import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pruners.allocators.redundancy import energy_rank, max_ratio
from prunefront.pruners.criteria.gradients.oracle import oracle
from prunefront.pruners.cut.surgery import mask
from prunefront.pruners.statistics import collect, merge, run, tasks
from prunefront.pruners.statistics.redundancy import mini_batches
from prunefront.pruners.units.view import UnitView
from tests.nets import NETS
from tests.pruners.fixtures import CLASSES, MODELS, Plain, Residual, batches, graph_of, group, made, part
from tests.pruners.plans import keeping, traced


def without(graph, name, unit):
    kept = [[u for u in range(g.units) if (g.name, u) != (name, unit)] for g in graph.groups]
    return keeping(graph, kept)


# the oracle


def check_brute_force(model, graph, data, loss):
    found = collect(model, graph, data, {"loss_change"}, loss).values["loss_change"]
    assert found.keys() == {g.name for g in graph.groups}

    @torch.no_grad()
    def total(network):
        return sum(len(y) * float(loss(network(x), y)) for x, y in data) / sum(len(y) for _, y in data)

    dense = total(model)
    for g in graph.groups:
        expected = [total(mask(model, graph, without(graph, g.name, u))) - dense for u in range(g.units)]
        torch.testing.assert_close(found[g.name], torch.tensor(expected, dtype=torch.float64))
        scores = oracle(UnitView(torch.zeros(g.units, 0), loss_change=found[g.name]))
        torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64).abs())


@pytest.mark.parametrize("kind", MODELS)
def test_loss_change_is_that_of_masking_each_unit(kind):
    data = [*batches(2, images=4), *batches(1, images=2, seed=1)]  # the mean is over images, not batches
    check_brute_force(made(kind), made(kind).graph(), data, F.cross_entropy)


@pytest.mark.parametrize(
    "name", ["ResNetOptionA", "DenseNet", "ChannelShuffle", "Shared", "VisionTransformer"]
)
def test_loss_change_of_traced_networks(name):
    model, inputs = NETS[name]()
    x = inputs[0].double()
    check_brute_force(model.double(), traced(name), [(x, x)], lambda output, _: output.square().mean())


def test_a_weight_that_a_group_crosses_twice_is_put_back():
    """A recurrent map: units are rows and columns of one tensor."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.make, self.again = nn.Linear(48, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.read = nn.Linear(4, CLASSES)

        def forward(self, x):
            x = self.make(x.flatten(1))
            return self.read(x + self.again(x))

        def graph(self):
            return graph_of(
                self,
                group(
                    "all",
                    part("make.weight", 0, "out", 4),
                    part("again.weight", 0, "out", 4),
                    part("again.weight", 1, "in", 4),
                    part("read.weight", 1, "in", 4),
                ),
            )

    check_brute_force(made(Twice), made(Twice).graph(), batches(), F.cross_entropy)


def test_a_dead_unit_changes_nothing_and_twins_the_same():
    model, data = made(Plain), batches()
    with torch.no_grad():
        model.conv2.weight[:, 1] = 0.0
        for tensor in model.bn1.state_dict().values():
            if tensor.ndim:
                tensor[3] = tensor[0]
        model.conv1.weight[3] = model.conv1.weight[0]
        model.conv2.weight[:, 3] = model.conv2.weight[:, 0]
    change = collect(model, model.graph(), data, {"loss_change"}).values["loss_change"]["one"]
    assert change[1] == 0.0
    assert change[0] == pytest.approx(float(change[3]))
    assert change[0] != 0.0


def test_groups_may_be_divided():
    model, data = made(Residual), batches()
    graph = model.graph()
    work = tasks(graph, {"loss_change"}, data, parts=2)
    assert [t.groups for t in work] == [("stream",), ("inner",)]
    divided = merge((t, run(t, model, graph, data)) for t in work).values["loss_change"]
    whole = collect(model, graph, data, {"loss_change"}).values["loss_change"]
    assert all(torch.equal(divided[name], whole[name]) for name in whole)


# redundancy


def gram_of(model, data, name, loss=F.cross_entropy):
    return collect(model, model.graph(), data, {"gradient_gram"}, loss).values["gradient_gram"][name]


def test_the_gram_matrix_is_that_of_gradients_over_single_mini_batches():
    model, data = made(Residual), batches(8, images=8)  # 64 images: 32 pairs
    pieces = list(mini_batches(data))
    assert [len(y) for _, y in pieces] == [2] * 32
    columns = []
    for (x,), y in pieces:
        weights = (model.stem.weight, model.conv2.weight)
        slopes = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
        columns += [s.flatten(1) for s in slopes]
    stacked = torch.cat(columns, dim=1)
    torch.testing.assert_close(gram_of(model, data, "stream"), stacked @ stacked.T / 32)


def test_mini_batches_are_as_large_as_leaves_thirty_two_of_them():
    assert [len(y) for _, y in mini_batches(batches(8, images=128))] == [32] * 32
    assert [len(y) for _, y in mini_batches(batches(32, images=32 * 2))] == [32] * 64
    assert [len(y) for _, y in mini_batches(batches(3, images=4))] == [1] * 12
    x, y = batches(1, images=64)[0]
    cut = [t for _, t in mini_batches([(x, {"a": (y, None), "b": [y, 3]})])]
    assert torch.equal(torch.cat([t["a"][0] for t in cut]), y)
    assert cut[0]["a"][1] is None
    assert cut[0]["b"][1] == 3
    boxes = [
        {"boxes": torch.randn(i % 3, 4)} for i in range(64)
    ]  # one target an image, of any number of boxes
    assert [one for _, t in mini_batches([(x, boxes)]) for one in t] == boxes
    with pytest.raises(PrunefrontError, match="target of type str cannot be divided"):
        list(mini_batches([(x, "all")]))


class Wide(nn.Module):
    """Eight filters that see a small image through a smooth activation."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Conv2d(3, 8, 3), nn.Linear(8 * 4, CLASSES)

    def forward(self, x):
        return self.read(torch.tanh(self.make(x)).flatten(1))

    def graph(self):
        columns = [range(4 * u, 4 * u + 4) for u in range(8)]
        return graph_of(
            self,
            group(
                "filters",
                part("make.weight", 0, "out", 8),
                part("make.bias", 0, "out", 8),
                part("read.weight", 1, "in", columns),
            ),
        )


def twins(model, *units):
    with torch.no_grad():
        for unit in units:
            model.make.weight[unit], model.make.bias[unit] = model.make.weight[0], model.make.bias[0]
            model.read.weight[:, 4 * unit : 4 * unit + 4] = model.read.weight[:, :4]
    return model


def test_filters_that_differ_have_full_rank_and_twins_take_one_each_from_it():
    data = batches(32, images=4)
    full = gram_of(made(Wide), data, "filters").numpy()
    assert energy_rank(full) == 8
    assert max_ratio(full, least=1) == 0.0
    for units in ((5,), (5, 7), (1, 2, 3)):
        gram = gram_of(twins(made(Wide), *units), data, "filters").numpy()
        assert energy_rank(gram, 1e-9) == 8 - len(units)
        assert max_ratio(gram, 1, 1e-9) == pytest.approx(len(units) / 8)


def test_a_filter_that_nothing_reads_has_a_row_of_zeros():
    model = made(Wide)
    with torch.no_grad():
        model.read.weight[:, 8:12] = 0.0
    gram = gram_of(model, batches(32), "filters")
    assert torch.equal(gram[2], torch.zeros(8, dtype=torch.float64))
    assert energy_rank(gram.numpy(), 1e-9) == 7
