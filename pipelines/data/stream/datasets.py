"""Parts that a person's own torch data sets and loaders give, checked as they are read."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from prunefront.pipelines.data.batches import bounds
from prunefront.pipelines.data.samples import Batch, Inputs
from prunefront.pipelines.data.splits import DataError
from prunefront.text import one_line

Collate = Callable[[list[Any]], Any]
"""Makes a batch of a list of samples, as torch's loaders do."""

LOOKED_AT = 16
"""Samples that are read twice before a study begins: they must be the same both times."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnData:
    """A part that is a person's torch data set, of map style or iterable (`samples.Samples`).

    Samples are (inputs, targets) where `labelled`, else inputs. name: of the part, for errors. limit: most samples.
    torch's, numpy's and Python's generators are seeded for each sample of a map-style set, from the pass and its index,
    and for a whole pass of an iterable one, which is why that is read by one process and not shuffled.
    """

    data: Any
    name: str
    collate: Collate = default_collate
    loaders: int = 0
    labelled: bool = True
    limit: int | None = None

    @property
    def count(self) -> int | None:
        """Number of samples; None where the data set does not know."""
        if not isinstance(self.data, Sized):
            return None
        known = len(self.data)
        return known if self.limit is None else min(known, self.limit)

    def batches(
        self,
        size: int,
        *,
        rng: np.random.Generator | None = None,
        device: str | torch.device = "cpu",
        smallest: int = 1,
    ) -> Iterator[Batch]:
        """Yields every sample once. Raises DataError for a data set that fails, ends early, or yields nothing."""
        seed = None if rng is None else int(rng.integers(1 << 62))
        read = self._iterable if isinstance(self.data, IterableDataset) else self._map_style
        seen = 0
        for made in read(size, seed, smallest):
            batch = as_batch(made, self.labelled, self.name).to(device)
            seen += batch.count
            yield batch
        if not seen:
            raise DataError(f"{self.name} yields no sample")
        if self.count is not None and seen < self.count:
            raise DataError(f"{self.name} ended after {seen} samples and says that it has {self.count}")

    def first(self, count: int) -> "OwnData":
        """Returns the first samples."""
        return replace(self, limit=count if self.limit is None else min(count, self.limit))

    def fingerprint(self) -> str:
        """Returns a digest of the number of samples and of the first ones: to read all could take hours."""
        digest = blake2b(repr((self.name, self.count)).encode(), digest_size=16)
        for batch in islice(self.first(LOOKED_AT).batches(LOOKED_AT), 1):
            for tensor in (*batch.inputs.tensors(), *Inputs((batch.targets,)).tensors()):
                digest.update(repr((tensor.shape, tensor.dtype)).encode())
                digest.update(tensor.contiguous().view(torch.uint8).numpy().data if tensor.numel() else b"")
        return digest.hexdigest()

    def _map_style(self, size: int, seed: int | None, smallest: int) -> Iterator[Any]:
        count = self.count or 0
        order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
        asked = [(order[start:end].tolist(), seed) for start, end in bounds(count, size, smallest)]
        return _items(_Seeded(self), asked, min(self.loaders, len(asked)), self.name)

    def _iterable(self, size: int, seed: int | None, smallest: int) -> Iterator[Any]:
        return _items(_InTurn(self, size, seed, smallest), None, min(self.loaders, 1), self.name)


class _Failed(str):
    """An error of a data set, as a line."""


def seed_all(seed: int, index: int) -> None:
    """Seeds the generators that people draw from: torch's, numpy's and Python's."""
    drawn = np.random.SeedSequence([seed, index]).generate_state(3)
    # torch.manual_seed also keeps a note, with the whole call stack, for each accelerator that is not begun: a leak
    torch.default_generator.manual_seed(int(drawn[0]))
    np.random.seed(drawn[1])  # noqa: NPY002  # what a person's own data set may draw from
    random.seed(int(drawn[2]))


def _failed(error: Exception, name: str, where: str) -> _Failed:
    return _Failed(f"{name} failed at {where}: {type(error).__name__}: {one_line(error, 300)}")


class _Seeded(Dataset[Any]):
    """Batches of a map-style data set; each sample is drawn with generators seeded for it."""

    def __init__(self, part: OwnData) -> None:
        self.part = part

    def __getitem__(self, asked: tuple[list[int], int | None]) -> Any:
        rows, seed = asked
        samples = []
        for row in rows:
            seed_all(0 if seed is None else seed, row)
            try:
                samples.append(self.part.data[row])
            except Exception as error:  # noqa: BLE001  # whatever a person's own code raises
                return _failed(error, self.part.name, f"sample {row}")
        return _collated(samples, self.part)


class _InTurn(IterableDataset[Any]):
    """Batches of an iterable data set, in its order."""

    def __init__(self, part: OwnData, size: int, seed: int | None, smallest: int) -> None:
        self.part, self.size, self.seed, self.smallest = part, size, seed, smallest

    def __iter__(self) -> Iterator[Any]:
        seed_all(self.seed or 0, 0)
        samples: list[Any] = []
        taken = 0
        try:
            # one more batch than is needed, so that a rest that is too small joins the one before
            for sample in islice(iter(self.part.data), self.part.limit):
                taken += 1
                samples.append(sample)
                if len(samples) == self.size + self.smallest:
                    yield _collated(samples[: self.size], self.part)
                    samples = samples[self.size :]
        except Exception as error:  # noqa: BLE001  # whatever a person's own code raises
            yield _failed(error, self.part.name, f"sample {taken}")
            return
        if len(samples) > self.size and len(samples) - self.size >= self.smallest:
            yield _collated(samples[: self.size], self.part)
            samples = samples[self.size :]
        if samples:
            yield _collated(samples, self.part)


def _collated(samples: list[Any], part: OwnData) -> Any:
    try:
        return part.collate(samples)
    except Exception as error:  # noqa: BLE001  # whatever a person's own code raises
        return _failed(error, part.name, "collating a batch")


def _items(data: Dataset[Any], asked: Sequence[Any] | None, loaders: int, name: str) -> Iterator[Any]:
    """Yields what a loader makes of a data set whose items are whole batches. Raises DataError for an item that failed.

    The generators of this process are as before after each item: a person's data set may run in it.
    """
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=asked,
        num_workers=loaders,
        collate_fn=as_it_is,
        generator=torch.Generator(),
    )
    items = iter(loader)
    while True:
        with _own_generators():
            try:
                item = next(items)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise DataError(f"a loader process of {name} ended: {one_line(error, 200)}") from error
        if isinstance(item, _Failed):
            raise DataError(str(item))
        yield item


@contextmanager
def _own_generators() -> Iterator[None]:
    """Puts back the states of the global generators at its end."""
    plain, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # put back below
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(of_numpy)  # noqa: NPY002  # see above


def as_it_is(item: Any) -> Any:
    """Returns a batch as the data set made it. A function with a name, since lambdas cannot go to another process."""
    return item


def as_batch(made: Any, labelled: bool, name: str) -> Batch:
    """Returns a collated batch in our form: a tensor, tuple or mapping of inputs, with targets beside where `labelled`.

    Raises DataError where that is not what it is.
    """
    targets = None
    if labelled:
        if not isinstance(made, tuple | list) or len(made) != 2:
            raise DataError(
                f"{name} gives a batch that is a {type(made).__name__}, not a pair (inputs, targets); for data without "
                "targets return OwnData(…, labelled=False)"
            )
        made, targets = made
    inputs = (
        Inputs(kwargs=dict(made))
        if isinstance(made, Mapping)
        else Inputs(tuple(made) if isinstance(made, tuple | list) else (made,))
    )
    tensors = inputs.tensors()
    if not tensors or not tensors[0].ndim:
        raise DataError(f"{name} gives a batch without a tensor whose first axis counts samples")
    return Batch(inputs, targets, len(tensors[0]))


def own_part(value: object, name: str, labelled: bool = True) -> OwnData:
    """Returns a part of a torch data set or a loader. name: of the part and its source, for errors.

    A loader gives its data set, collate function and number of processes; batch size and order are the study's. Raises
    DataError for anything else, and for samples that differ when they are read twice.
    """
    if isinstance(value, DataLoader):
        if value.dataset is None or value.batch_size is None:
            raise DataError(
                f"{name} is a loader that does not batch its data set itself; return the data set"
            )
        part = OwnData(value.dataset, name, value.collate_fn, value.num_workers, labelled)
    elif isinstance(value, IterableDataset) or (hasattr(value, "__getitem__") and isinstance(value, Sized)):
        part = OwnData(value, name, labelled=labelled)
    else:
        raise DataError(f"{name} is a {type(value).__name__}, neither a torch data set nor a loader")
    _check_repeats(part)
    return part


def _check_repeats(part: OwnData) -> None:
    """Raises DataError where the first samples differ at the same seed: a study could not be repeated."""
    few = replace(part.first(LOOKED_AT), loaders=0)  # forked processes would begin with the same state
    passes = [
        [
            tensor
            for batch in few.batches(LOOKED_AT, rng=np.random.default_rng(0))
            for tensor in batch.inputs.tensors()
        ]
        for _ in range(2)
    ]
    same = len(passes[0]) == len(passes[1]) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(*passes, strict=True)
    )
    if not same:
        raise DataError(
            f"{part.name} draws differently at the same seed, so that a study could not be repeated; draw from "
            "torch's, numpy's or Python's global generators, which are seeded for each sample"
        )
