"""Finds a network's state dict in a checkpoint as people save them: under keys, behind prefixes, beside other ones."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ROOT = "."
"""Place of a state dict that is the checkpoint itself."""

DEEPEST = 4
"""Most keys that lead to a state dict, and most parts of a prefix before a tensor's name."""

COUNTER = "num_batches_tracked"
"""Last part of the name of batch norm's batch counters, which older files lack and which weigh nothing."""

COMPILED = re.compile(r"(^|\.)_orig_mod\.")
"""Part of a name that torch.compile adds, before all names or within them."""


@dataclass(frozen=True, slots=True)
class StateDict:
    """Tensors by name, and the keys that lead to them, joined by "/"; ROOT for the checkpoint itself."""

    place: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Reading:
    """A state dict read as a network's, behind one prefix.

    tensors: by the network's names. prefix: what was removed from each name. aside: names that do not begin with it.
    absent: names that the network needs and the file lacks; extra: those that the network does not have; unlike: one
    clause for each tensor of another shape or kind of number.
    """

    place: str
    prefix: str
    tensors: Mapping[str, Tensor]
    aside: tuple[str, ...]
    absent: tuple[str, ...]
    extra: tuple[str, ...]
    unlike: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """True where every tensor of the network is there, and no other one behind the prefix."""
        return not (self.absent or self.extra or self.unlike)

    @property
    def label(self) -> str:
        """Name by which a person chooses it: its place, and the prefix where others stand beside it."""
        return f"{self.place}/{self.prefix.rstrip('.')}" if self.aside and self.prefix else self.place


def state_dicts(content: object) -> list[StateDict]:
    """Returns every mapping in a checkpoint that holds tensors by name, in the file's order."""
    return list(_within(content, ()))


def _within(content: object, keys: tuple[str, ...]) -> Iterator[StateDict]:
    if not isinstance(content, Mapping):
        return
    # what optimizers keep has numbers for keys
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield StateDict("/".join(keys) or ROOT, tensors)
    if len(keys) < DEEPEST:
        for name, value in named.items():
            yield from _within(value, (*keys, name))


def readings(found: StateDict, wanted: Mapping[str, Tensor]) -> list[Reading]:
    """Returns the ways to read a state dict as that of a network, the one with most of its names first.

    wanted: the network's state dict. There is at least one reading, which may fit or not.
    """
    tensors = _uncompiled(found.tensors, wanted)
    counts = _prefixes(tensors, wanted)
    needed = sum(not name.endswith(COUNTER) for name in wanted)
    whole = [prefix for prefix, count in counts.items() if count >= needed]
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")
    return [_read(found.place, prefix, tensors, wanted) for prefix in dict.fromkeys((*whole, best))]


def _uncompiled(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns the tensors by their names before torch.compile, unless the network itself is compiled."""
    if any(COMPILED.search(name) for name in wanted):
        return tensors
    plain = {COMPILED.sub(r"\1", name): tensor for name, tensor in tensors.items()}
    return plain if len(plain) == len(tensors) else tensors


def _prefixes(names: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Counter[str]:
    """Returns prefix -> number of the network's names behind it, batch counters aside."""
    counts: Counter[str] = Counter()
    for name in names:
        start = 0
        for _ in range(DEEPEST + 1):
            if name[start:] in wanted and not name.endswith(COUNTER):
                counts[name[:start]] += 1
            start = name.find(".", start) + 1
            if not start:
                break
    return counts


def _read(place: str, prefix: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Reading:
    behind = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return Reading(
        place,
        prefix,
        behind,
        aside=tuple(name for name in tensors if not name.startswith(prefix)),
        absent=tuple(name for name in wanted if name not in behind and not name.endswith(COUNTER)),
        extra=tuple(name for name in behind if name not in wanted),
        unlike=tuple(
            _unlike(n, t, wanted[n]) for n, t in behind.items() if n in wanted and _differ(n, t, wanted[n])
        ),
    )


def _differ(name: str, tensor: Tensor, wanted: Tensor) -> bool:
    return tensor.shape != wanted.shape or not (
        _usable(tensor) and (_same_kind(tensor, wanted) or name.endswith(COUNTER))
    )


def _same_kind(tensor: Tensor, wanted: Tensor) -> bool:
    """Tells whether values pass from one number type to the other: floats of any width do."""
    return tensor.dtype == wanted.dtype or (tensor.is_floating_point() and wanted.is_floating_point())


def _usable(tensor: Tensor) -> bool:
    """Tells whether a tensor holds one number for each element."""
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _unlike(name: str, tensor: Tensor, wanted: Tensor) -> str:
    if tensor.shape != wanted.shape:
        return f"{name} is {tuple(tensor.shape)}, the network expects {tuple(wanted.shape)}"
    if not _usable(tensor):
        return f"{name} is no plain tensor (sparse, quantised or without values)"
    return f"{name} is {_type(tensor)}, the network expects {_type(wanted)}"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def said(reading: Reading, wanted: Mapping[str, Tensor]) -> str:
    """Returns in one clause how a reading differs from the plain state dict of its network; "" where it does not."""
    clauses = [f"the state dict under {reading.place!r}"] * (reading.place != ROOT)
    clauses += [f"prefix {reading.prefix!r} removed"] * bool(reading.prefix)
    types = {
        (_type(t), _type(wanted[name]))
        for name, t in reading.tensors.items()
        if t.dtype != wanted[name].dtype and not name.endswith(COUNTER)
    }
    clauses += [f"{theirs} read as {ours}" for theirs, ours in sorted(types)]
    clauses += [f"{len(reading.aside)} other tensors left aside ({few(reading.aside)})"] * bool(reading.aside)
    return ", ".join(clauses)


def few(names: tuple[str, ...] | list[str]) -> str:
    """Returns the first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
