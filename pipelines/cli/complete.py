"""Values that a shell completes. Nothing heavy is imported, as a person waits for each of them."""

from collections.abc import Iterable
from pathlib import Path

from prunefront.pipelines.cli.catalogue import LISTS
from prunefront.pipelines.journal.layout import STUDIES, STUDY

FORMATS = ("onnx", "pt2", "openvino", "int8")
"""Formats that `prunefront export` writes; a test holds them to those of `artifacts.convert`."""

OBJECTIVES = ("accuracy", "latency_ms", "latency_ratio", "size_bytes", "macs", "params")
"""Quantities that `fetch --best` can ask for; a test holds them to those of `search.outcomes.measurement`."""

BOUNDED = (*OBJECTIVES, "accuracy_low", "accuracy_high", "latency_ratio_high", "epochs")
"""Quantities that `fetch --under` can bound; a test holds them to those of `fronts.page`."""


def _begin(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def studies(incomplete: str) -> list[str]:
    """Names of the studies in `studies/`, and the study files that the word begins to name."""
    folder, _, start = incomplete.rpartition("/")
    try:
        names = sorted(path.parent.name for path in STUDIES.glob(f"*/{STUDY}"))
        files = sorted(p.name for p in Path(folder or ("/" if incomplete[:1] == "/" else ".")).glob("*.toml"))
    except OSError:  # a folder that cannot be read has nothing to offer
        return []
    beside = [incomplete.removesuffix(start) + name for name in files]
    return _begin([*names, *beside], incomplete)


def topics(incomplete: str) -> list[str]:
    """Lists of `prunefront list`."""
    return _begin(LISTS, incomplete)


def formats(incomplete: str) -> list[str]:
    """Formats of `prunefront export`."""
    return _begin(FORMATS, incomplete)


def objectives(incomplete: str) -> list[str]:
    """Quantities of `fetch --best`."""
    return _begin(OBJECTIVES, incomplete)


def bounds(incomplete: str) -> list[str]:
    """Quantities of `fetch --under`, each with the sign that comes next."""
    return _begin([f"{name}=" for name in BOUNDED], incomplete)


def searchers(incomplete: str) -> list[str]:
    """Searchers of `prunefront rehearse`."""
    from prunefront.search.searchers import searchers as known

    return _begin(known, incomplete)
