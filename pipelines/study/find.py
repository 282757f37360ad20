"""Finds a study by its file, its name or its folder, and reads what the folder holds for people."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.read import load, parse
from prunefront.pipelines.config.sections import StudyConfig
from prunefront.pipelines.events.redaction import is_redacted
from prunefront.pipelines.fronts.row import FrontRow, read_rows
from prunefront.pipelines.journal.journal import StudyFolderError, read_events, read_json
from prunefront.pipelines.journal.layout import BOUNDS, FRONT, JOURNAL, STUDIES, STUDY
from prunefront.pipelines.study.servers import check_own
from prunefront.text import one_line

if TYPE_CHECKING:
    from prunefront.pipelines.fronts.unfinished import PartialFront


class NoStudy(PrunefrontError):
    """There is no study where one was asked for, or the study has not come so far."""


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """A study that somebody named.

    folder: the study's own; before its first search it need not exist. config: from the study file where one was named,
    else from the folder, which keeps no passwords. file: the study file; None where a folder or a name was given.
    """

    folder: Path
    config: StudyConfig
    file: Path | None = None

    def searched_folder(self) -> Path:
        """Returns the folder of a study that was searched before. Raises NoStudy where it was not."""
        if not exists(self.folder / STUDY):
            raise NoStudy(f"{self.file} has not been searched yet; start with: prunefront search {self.file}")
        return self.folder

    def endpoint_url(self) -> str | None:
        """Returns the address of the S3 server that has the artifacts; None for AWS, and where they are in a folder.

        Raises PrunefrontError where the address needs a password (`check_complete`), and where only a folder names it
        and no search of this person's has used it (`check_own`).
        """
        address = self.config.artifacts.endpoint_url
        if "://" not in self.config.artifact_uri or not address:
            return None
        check_complete(address, "artifacts.endpoint_url")
        if self.file is None:
            check_own(address, "artifacts.endpoint_url", f"give --endpoint-url {address}", self.folder)
        return address


def find(study: str) -> FoundStudy:
    """Finds the study that `study` names: a study file (*.toml), a study's folder, or a name below `studies/`.

    A study file need not have been searched; see `FoundStudy.searched_folder`. Raises ConfigError for a study file that
    is absent or wrong, and NoStudy, which lists the studies that there are.
    """
    path = Path(study)
    if path.suffix == ".toml":
        config = load(path)
        return FoundStudy(config.path, config, path)
    for folder in (path, STUDIES / study):
        if exists(folder / STUDY):
            return FoundStudy(folder, load_config(folder))
    file = Path(f"{study}.toml")
    hint = f"did you mean the study file {file}? " if exists(file) else ""
    known = sorted(p.parent.name for p in STUDIES.glob(f"*/{STUDY}"))
    raise NoStudy(
        f"there is no study {study!r}; {hint}"
        + (
            f"in {STUDIES}/ there are: {', '.join(known)}"
            if known
            else f"give a study file, a study's folder, or a name below {STUDIES}/"
        )
    )


def exists(path: Path) -> bool:
    """Tells whether there is such a file; False also for text that is too long to be a path."""
    try:
        return path.exists()
    except OSError:
        return False


def load_config(folder: Path) -> StudyConfig:
    """Returns the configuration that a study was started with. Raises NoStudy where there is none."""
    path = folder / STUDY
    try:
        data = read_json(path)
    except StudyFolderError as error:
        raise NoStudy(str(error)) from None
    return parse(data, source=str(path), base=Path())


def read_front(folder: Path) -> list[FrontRow]:
    """Returns the front of a study, fastest first. Raises NoStudy before its search has ended."""
    path = folder / FRONT
    if not path.exists():
        raise NoStudy(
            f"study {folder.name!r} has no front yet; if it was stopped: prunefront search STUDY --resume"
        )
    try:
        return read_rows(read_json(path))
    except StudyFolderError as error:
        raise NoStudy(f"{error}; a search with --resume writes it again") from None


def read_partial_front(folder: Path) -> "PartialFront | None":
    """Returns the finished part of a search that has not ended, from its journal.

    None where there is a front already, or where nothing is finished.
    """
    from prunefront.pipelines.fronts.unfinished import FrontSections, partial_front

    if (folder / FRONT).exists():
        return None
    return partial_front(load_config(folder).part(FrontSections), read_events(folder / JOURNAL))


def read_bounds(folder: Path) -> str | None:
    """Returns one line on how a study's networks stand to its bounds; None for a study without bounds.

    Raises NoStudy for a file that no search writes.
    """
    path = folder / BOUNDS
    if not path.exists():
        return None
    try:
        return one_line(str(read_json(path)["said"]))
    except (StudyFolderError, LookupError, TypeError) as error:
        raise NoStudy(f"{path} cannot be read ({error}); a search with --resume writes it again") from None


def tracking_uri(study: str | None) -> str:
    """Returns the address of a study's tracking store; None stands for the study that was searched last.

    Raises NoStudy where there is no study, and PrunefrontError where the address needs a password (`check_complete`).
    """
    if study is not None:
        found = find(study)
        address = check_complete(found.config.tracking_uri, "tracking.uri")
        if found.file is None:
            check_own(address, "tracking.uri", "name a study file of your own that has it", found.folder)
        return address
    searched = sorted(STUDIES.glob(f"*/{STUDY}"), key=lambda p: p.stat().st_mtime)
    if not searched:
        raise NoStudy(f"there is no study in {STUDIES.absolute()}; name one, or search first")
    return check_complete(load_config(searched[-1].parent).tracking_uri, "tracking.uri")


def check_complete(address: str, key: str) -> str:
    """Returns an address from a study's configuration; `key` names it in errors.

    Raises PrunefrontError where the address held a password, which a study's folder does not keep.
    """
    if is_redacted(address):
        raise PrunefrontError(
            f"the address {address} holds a password, and the study's folder does not keep passwords; name the study "
            f"file, which gives {key} in full"
        )
    return address
