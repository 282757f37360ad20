"""The front door for people who write Python: a study read, searched, and its front returned."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunefront.errors import PrunefrontError

if TYPE_CHECKING:
    from prunefront.pipelines.config.sections import StudyConfig
    from prunefront.pipelines.fronts.front import Front

# what a function here needs is imported when it is called: `import prunefront` loads neither torch nor Ray


def load_study(study: "str | Path | Mapping[str, Any] | StudyConfig") -> "StudyConfig":
    """Returns a study's settings, checked, with every default filled in.

    study: a study file, a study's folder or name, or what a study file holds as nested dicts, whose relative paths
    start in the current folder. Warns of a key that has another name now. Raises ConfigError for what a study cannot
    ask, NoStudy where there is none.

    >>> study = pf.load_study({"name": "mine", "model": {"factory": "resnet20"}})
    >>> study.search.candidates
    64
    """
    from prunefront.pipelines.config.read import parse, warn_of_moved_keys
    from prunefront.pipelines.config.sections import StudyConfig
    from prunefront.pipelines.study.find import find

    if isinstance(study, StudyConfig):
        return study
    if isinstance(study, Mapping):
        config = parse(study, source="the study", base=Path())
        warn_of_moved_keys(study, "the study", stacklevel=3)
        return config
    return find(str(study)).config


def search(
    study: "str | Path | Mapping[str, Any] | StudyConfig",
    *,
    address: str | None = None,
    without_ray: bool = False,
    resume: bool = False,
    fresh: bool = False,
    quiet: bool = False,
) -> "Front":
    """Runs a study to its end and returns its front, fastest network first.

    The dense network and the controls are among the rows. Shares such as accuracy are fractions of 1 on test images,
    latencies milliseconds on the study's runtime, sizes bytes.

    study: as in `load_study`. address: of a Ray cluster; None = Ray starts on this machine. without_ray: everything
    runs in this process, one candidate after another: for notebooks and debuggers. resume: go on where the study
    stopped. fresh: delete what an earlier run left. quiet: print nothing while it runs.

    Raises PrunefrontError for everything that a person can mend, in one line that says how; finished work is kept.
    """
    from prunefront.pipelines.events.display import Display
    from prunefront.pipelines.events.printing import people
    from prunefront.pipelines.fronts.front import Front
    from prunefront.pipelines.study.run import run

    rows = run(
        load_study(study),
        display=Display(people(quiet=quiet)),
        address=address,
        without_ray=without_ray,
        resume=resume,
        fresh=fresh,
    )
    return Front(tuple(rows))


def load_front(study: "str | Path") -> "Front":
    """Returns the front of a study that was searched before.

    study: its file, its folder or its name. Raises NoStudy where there is none, or its search has not ended.

    >>> pf.load_front("digits").best(by="size_bytes").key
    'c41'
    """
    from prunefront.pipelines.fronts.front import Front
    from prunefront.pipelines.study.find import find, read_front

    return Front(tuple(read_front(find(str(study)).searched_folder())))


__all__ = ["PrunefrontError", "load_front", "load_study", "search"]
