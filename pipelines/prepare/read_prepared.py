"""Reads back the files of `prepared/`, which may have come from a store or another machine."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from prunefront.atomic import write_whole
from prunefront.pipelines.journal.journal import altered_file_error, read_record
from prunefront.pruners.graph.channel_graph import ChannelGraph, check_consistent
from prunefront.pruners.graph.single_cuts import RATIOS
from prunefront.pruners.statistics.moments import axes
from prunefront.pruners.units.readers import Reader
from prunefront.reading import check_regular

Nested = dict[str, dict[str, NDArray[np.float64]]]
"""name -> group -> array."""

MOMENTS = "moments.safetensors"
"""Name of the file of moments. It stays on its machine: others gather them anew, which costs less than to send them."""

FACTS: Mapping[str, Callable[[int], tuple[int, ...]]] = {
    "gradient_gram": lambda units: (units, units),
    "selection_loss": lambda units: (units + 1,),
    "sensitivity": lambda units: (len(RATIOS),),
    "error_curve": lambda units: (units,),
}
"""The shape of what allocators and searchers read of a group."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Number format and memory format in which training was fastest."""

    precision: Literal["float32", "bfloat16"]
    channels_last: bool


@dataclass(frozen=True, slots=True)
class Digests:
    """Digest of the images of each part."""

    training: str
    validation: str
    test: str


def read_graph(folder: Path) -> ChannelGraph:
    """Reads the channel graph that was traced. Raises PrunefrontError for one that no network has."""
    path = folder / "graph.json"
    graph = read_record(path, ChannelGraph)
    try:
        check_consistent(graph)
    except (TypeError, ValueError, KeyError) as error:
        raise altered_file_error(path, str(error)) from None
    return graph


def read_scores(folder: Path, graph: ChannelGraph) -> Nested:
    """Reads criterion -> group or stack -> score per unit. Raises PrunefrontError where it does not fit the graph."""
    return _fitting(folder / "scores.safetensors", graph, lambda name: lambda units: (units,))


def read_facts(folder: Path, graph: ChannelGraph) -> Nested:
    """Reads field -> group -> array, for allocators. Raises as `read_scores`."""
    path = folder / "facts.safetensors"
    found = _fitting(path, graph, FACTS.get)
    for group, curve in found.get("error_curve", {}).items():
        if not (np.isfinite(curve).all() and (np.diff(curve, prepend=0.0) >= 0).all()):
            raise altered_file_error(path, f"the error of group {group!r:.60} does not grow with what is cut")
    return found


def read_moments(folder: Path, graph: ChannelGraph) -> dict[str, NDArray[np.float64]]:
    """Reads weight -> moments of its inputs, as the statistic gathers them. Raises as `read_scores`."""
    path = folder / MOMENTS
    try:
        check_regular(path)
        arrays = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise altered_file_error(path, str(error)) from None
    known = axes(graph)
    for name, values in arrays.items():
        fits = name in known and values.ndim == 3 and values.dtype == np.float64
        if fits:
            reader = Reader(graph.shapes[name], known[name], len(values))
            fits = values.shape[1:] in {(n, n) for n in (reader.columns, reader.inputs)}
        if not fits or not np.isfinite(values).all():
            raise altered_file_error(path, f"{name!r:.60} holds no moments of a weight of this network")
    return arrays


def read_digests(folder: Path) -> Mapping[str, str]:
    """Reads part -> the digest of its images. Raises PrunefrontError."""
    return asdict(read_record(folder / "data.json", Digests))


def read_precision(folder: Path) -> Precision:
    """Reads what `Precision` holds. Raises PrunefrontError."""
    return read_record(folder / "precision.json", Precision)


def save_nested(arrays: Mapping[str, Mapping[str, NDArray[np.float64]]], path: Path) -> None:
    """Writes name -> group -> array in one go: a file that is there is whole."""
    flat = {f"{n}/{g}": np.ascontiguousarray(v) for n, groups in arrays.items() for g, v in groups.items()}
    write_whole(path, lambda file: file.write(save(flat)))


def _fitting(
    path: Path, graph: ChannelGraph, shape_of: Callable[[str], Callable[[int], tuple[int, ...]] | None]
) -> Nested:
    units = {g.name: g.units for g in graph.groups} | {s.name: len(s.blocks) for s in graph.stacks}
    try:
        check_regular(path)
        arrays = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise altered_file_error(path, str(error)) from None
    nested: Nested = {}
    for key, values in arrays.items():
        name, _, group = key.partition("/")
        shape = shape_of(name)
        if shape is None or group not in units:
            raise altered_file_error(path, f"nothing is known of {key!r:.60} in this network")
        if values.dtype.kind != "f" or values.shape != shape(units[group]) or np.isnan(values).any():
            raise altered_file_error(
                path, f"{key!r:.60} does not hold a number for each of {units[group]} units"
            )
        nested.setdefault(name, {})[group] = values
    return nested
