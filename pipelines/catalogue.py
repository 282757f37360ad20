"""What `prunefront list` prints: everything a study file can name."""

import inspect

from pruners.errors import UnknownName


def catalogue(what: str) -> dict[str, str]:
    """Name -> one line of summary, for one of: criteria, granularities, searchers, models, runtimes, settings.

    Raises UnknownName.
    """
    kinds = {
        "criteria": _criteria,
        "granularities": _granularities,
        "searchers": _searchers,
        "models": _models,
        "runtimes": _runtimes,
        "settings": _all_settings,
    }
    if what not in kinds:
        raise UnknownName(f"there is no list of {what!r}; there are: {', '.join(kinds)}")
    return kinds[what]()


# each list imports only what it lists


def _all_settings() -> dict[str, str]:
    from pipelines.config import settings

    return settings()


def _criteria() -> dict[str, str]:
    from pruners.criteria import criteria

    return {name: criteria[name].summary for name in criteria}


def _granularities() -> dict[str, str]:
    from pruners.granularities import granularities

    return {name: _first_line(granularities[name]) for name in granularities}


def _searchers() -> dict[str, str]:
    from search.searchers import searchers

    return {name: _first_line(searchers[name]) for name in searchers}


def _models() -> dict[str, str]:
    from pipelines.models import models

    return {name: _first_line(models[name]) for name in models}


def _runtimes() -> dict[str, str]:
    from pipelines.runtimes import runtimes

    lines = {}
    for name in runtimes:
        missing = runtimes[name].missing()
        lines[name] = runtimes[name].summary + (f" [not on this machine: {missing}]" if missing else "")
    return lines


def _first_line(entry: object) -> str:
    text = inspect.getdoc(entry) or ""
    return text.splitlines()[0] if text else ""
