"""A person's own torch data sets and loaders as parts of a study: alike for any number of loaders, clear in failure."""

import itertools
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from prunefront.pipelines.config.sections import DataSection
from prunefront.pipelines.data import DataError, Parts, Samples, open_data
from prunefront.pipelines.data.stream.datasets import OwnData, own_part, seed_all


class Drawn(Dataset[Any]):
    """Samples that draw from all three generators, as people's augmentation does."""

    def __init__(self, count: int = 20) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = torch.rand(2) + np.random.rand() + random.random()  # noqa: NPY002  # what people write
        return torch.cat([torch.tensor([float(index)]), noise]), index % 3


class Stream(IterableDataset[Any]):
    def __init__(self, count: int = 20) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        return ((torch.tensor([float(i)]), i % 3) for i in range(self.count))


class Promised(Stream):
    """Says that it has more than it gives."""

    def __len__(self) -> int:
        return self.count + 5


class Failing(Drawn):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == 17:
            raise KeyError("no such\nfile")
        return super().__getitem__(index)


class Secret(Drawn):
    """Draws from a generator of its own."""

    generator = np.random.default_rng()

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([self.generator.random()]), 0


def rows(part: Samples, seed: int | None, **options: Any) -> torch.Tensor:
    rng = None if seed is None else np.random.default_rng(seed)
    return torch.cat([b.inputs.args[0] for b in part.batches(options.pop("size", 6), rng=rng, **options)])


def test_a_seed_decides_whatever_the_number_of_loaders_and_the_state_of_generators() -> None:
    part = own_part(Drawn(), "own")
    alone = rows(part, 1)
    state = torch.get_rng_state(), random.getstate()
    torch.manual_seed(99)
    for loaders in (1, 2):
        assert torch.equal(rows(OwnData(Drawn(), "own", loaders=loaders), 1), alone)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    rows(part, 2)
    assert torch.equal(torch.get_rng_state(), before), "the study's own generators are left alone"
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    assert sorted(alone[:, 0].tolist()) == list(range(20))
    assert rows(part, None)[:, 0].tolist() == list(range(20))
    assert not torch.equal(rows(part, 2), alone)


@pytest.mark.parametrize("count", range(1, 15))
@pytest.mark.parametrize("smallest", [1, 2])
def test_an_iterable_set_is_batched_as_any_other(count: int, smallest: int) -> None:
    batches = list(OwnData(Stream(count), "own").batches(4, smallest=smallest))
    assert torch.cat([b.inputs.args[0] for b in batches])[:, 0].tolist() == list(range(count))
    expected = [b.count for b in OwnData(Drawn(count), "own").batches(4, smallest=smallest)]
    assert [b.count for b in batches] == expected
    assert [n for b in batches for n in b.targets.tolist()] == [i % 3 for i in range(count)]


def test_the_first_samples() -> None:
    for data in (Drawn(), Stream()):
        few = own_part(data, "own").first(7)
        assert rows(few, None)[:, 0].tolist() == list(range(7))
        assert len(rows(few.first(30), None)) == 7
    assert own_part(Drawn(), "own").first(7).count == 7
    assert own_part(Stream(), "own").count is None


def test_a_fingerprint_tells_data_apart() -> None:
    prints = {own_part(data, "own").fingerprint() for data in (Drawn(20), Drawn(21), Stream(20))}
    assert len(prints) == 3
    assert own_part(Drawn(20), "own").fingerprint() in prints


def test_a_loader_gives_its_collate_function_and_processes() -> None:
    def pairs(samples: list[Any]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return {"x": torch.stack([s[0] for s in samples])}, torch.tensor([s[1] for s in samples])

    part = own_part(DataLoader(Drawn(), batch_size=3, collate_fn=pairs, shuffle=True), "own")
    (batch, *_) = part.batches(8)
    assert batch.inputs.kwargs["x"].shape == (8, 3)
    assert batch.count == 8


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Failing(), "own failed at sample 17: KeyError: 'no such\\nfile'"),
        (lambda: Stream(0), "own yields no sample"),
        (lambda: Drawn(0), "own yields no sample"),
        (lambda: Promised(8), "own ended after 8 samples and says that it has 13"),
        (lambda: Secret(), "own draws differently at the same seed"),
        (lambda: 3, "own is a int, neither a torch data set nor a loader"),
        (
            lambda: [torch.ones(3), torch.ones(3)],
            "gives a batch that is a Tensor, not a pair (inputs, targets)",
        ),
        (lambda: [("a", 1), ("b", 2)], "gives a batch without a tensor whose first axis counts samples"),
        (lambda: [(torch.ones(3), 0), (torch.ones(2), 0)], "own failed at collating a batch: RuntimeError"),
        (lambda: DataLoader(Drawn(), batch_size=None), "a loader that does not batch its data set itself"),
    ],
)
@pytest.mark.parametrize("loaders", [0, 1])
def test_what_is_wrong_is_one_line(make: Callable[[], Any], says: str, loaders: int) -> None:
    data = make()
    if isinstance(data, Drawn | Promised) and loaders:
        data = DataLoader(data, batch_size=4, num_workers=loaders)
    with pytest.raises(DataError) as caught:
        rows(own_part(data, "own"), 0)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_without_targets() -> None:
    (batch, *_) = OwnData([torch.ones(3)] * 4, "own", labelled=False).batches(4)
    assert batch.targets is None
    assert batch.count == 4


OWN = """
import torch
from torch.utils.data import TensorDataset

def part(count, start):
    return TensorDataset(torch.arange(start, start + count).float().view(-1, 1), torch.arange(count) % 2)

def three():
    return part(20, 0), part(6, 100), part(8, 200)

def two():
    return three()[:2]
"""


def test_a_study_takes_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"own_sets_{next(itertools.count(len(tmp_path.name)))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    found = open_data(DataSection(source=f"{name}:three", train_limit=12, test_limit=5))
    assert isinstance(found, Parts)
    assert rows(found.train, None)[:, 0].tolist() == list(range(12))
    assert rows(found.part("test"), None)[:, 0].tolist() == list(range(200, 205))
    assert found.part("calibration") is found.train
    kept = DataSection(source=f"{name}:three").model_dump(mode="json")  # as `verify --study` reads it
    assert isinstance(open_data(DataSection.model_validate(kept)), Parts)
    with pytest.raises(DataError, match="returned 2 data sets; it must return three"):
        open_data(DataSection(source=f"{name}:two"))
    with pytest.raises(DataError, match=r"data\.mean is for images"):
        open_data(DataSection(source=f"{name}:three", mean=(0.5,)))


def test_seeding_each_sample_keeps_nothing() -> None:
    """torch.manual_seed keeps the call stack each time where there is no accelerator, and takes milliseconds for it."""
    seed_all(1, 1)
    tracemalloc.start()
    for index in range(200):
        seed_all(0, index)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 20_000
