"""Packs a study for a job: the study file, the small files that it names and its own modules. Never data."""

import ast
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.imported import module_of
from prunefront.pipelines.config.read import ConfigError
from prunefront.pipelines.config.sections import (
    ArtifactSection,
    DataSection,
    MeasureSection,
    ModelSection,
    StartSection,
    TaskSection,
    TrackingSection,
    TrainingSection,
)
from prunefront.reading import read_bytes

LIMIT_BYTES = 100 << 20
"""Most bytes of all files together. Ray takes five times as much, and every node that works on the job fetches them."""

OURS = frozenset({"prunefront"})
"""Packages that the cluster has and that never go along, also where the current folder is a checkout."""

NEVER = frozenset({"__pycache__", "venv", "studies", "node_modules"})
"""Names of folders that never go along, beside those that begin with a dot."""

RESULTS = "~/prunefront/studies"
"""Folder for studies whose `folder` is relative, on the head: Ray may delete the job's own folder."""


class PackageError(PrunefrontError):
    """A study cannot be sent to a cluster as it is."""


@dataclass(frozen=True, slots=True)
class Package:
    """The files of a job. files: path in the job's folder -> file here. study: the path that is the study file.

    folder: for the results, on the cluster's head. there: key of the study -> path or URI that the cluster must have
    already.
    """

    name: str
    study: str
    folder: str
    files: Mapping[str, Path]
    there: Mapping[str, str]

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files.values())

    def write(self, to: Path) -> None:
        """Copies the files into a folder, which becomes the job's working directory."""
        for place, file in self.files.items():
            (to / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to / place)


@dataclass(frozen=True, slots=True)
class PackedSections:
    """The settings that name files, modules and addresses. Paths are as they are written in the study file."""

    name: str
    folder: Path
    model: ModelSection
    task: TaskSection
    data: DataSection
    training: TrainingSection
    start: StartSection
    measure: MeasureSection
    tracking: TrackingSection
    artifacts: ArtifactSection


def pack(
    file: Path, study: PackedSections, *, include: Iterable[Path] = (), here: Path | None = None
) -> Package:
    """Returns the package of a study file. Nothing is copied yet.

    Relative paths in the study mean the same in the job; absolute ones and URIs are the cluster's own. include: more
    files and folders, in `here`. here: folder that modules are imported from; None = the current one. Raises
    PackageError for data that lies beside the study, for results that would be lost with the job, and for too many
    bytes.
    """
    here = (here or Path.cwd()).resolve()
    _check_data(study.data)
    _check_results(study)
    named = {
        key: path
        for key, path in {
            "model.weights": study.model.weights,
            "model.initial": study.model.initial,
            "measure.latency_table": study.measure.latency_table,
        }.items()
        if path is not None
    }
    own = {key: file.parent / path for key, path in named.items() if not path.is_absolute()}
    for key, source in own.items():
        if not (source.is_file() or (key == "model.weights" and _folder_of_weights(source))):
            raise PackageError(
                f"{key}: there is no file {source}; a relative path means a file that is sent with the job"
            )
    files = dict(_beside(file, chain.from_iterable(_folder_of_weights(s) or [s] for s in own.values())))
    place = next(iter(files))
    for target, source in (
        *_modules((*_specs(study), *_rules(study.model)), here),
        *_of_library(study.model.factory, here),
        *_included(include, here),
    ):
        if not files.setdefault(target, source).samefile(source):
            raise PackageError(
                f"{files[target]} and {source} would both be {target} in the job's folder; rename one of them"
            )
    _check_size(files)
    data = {f"data.{key}": ", ".join(map(str, study.data.places(key))) for key in ("train", "test")}
    there = {k: str(v) for k, v in (named | data).items() if v and k not in own}
    return Package(study.name, place, _folder(study.folder), files, there)


def _specs(study: PackedSections) -> tuple[str, ...]:
    """Returns the settings that may be a `module:callable`."""
    return (study.model.factory, study.data.source, *study.task.code, study.training.loop or "")


def is_absolute(path: Path | str) -> bool:
    """Tells whether a path means the same in every folder: it is absolute, below a home folder, or a URI."""
    return "://" in str(path) or str(path).startswith(("/", "~"))


def _folder(asked: Path) -> str:
    return str(asked) if is_absolute(asked) else RESULTS


def _check_data(section: DataSection) -> None:
    for key in ("train", "test"):
        for path in section.places(key):
            if "://" in str(path) or Path(path).is_absolute():
                continue
            raise PackageError(
                f"data.{key} = {str(path)!r} lies beside the study, and data is never sent with a job: put it on "
                f"storage that the cluster's head sees and give its absolute path, or give s3://bucket/{Path(path).name}"
            )


def _check_results(study: PackedSections) -> None:
    """Raises PackageError for results that would go to the job's folder, and for earlier studies sought there."""
    uri = study.artifacts.uri
    if uri is not None and not is_absolute(uri):
        raise PackageError(
            f"artifacts.uri = {uri!r} would lie in the job's folder, which Ray deletes; give s3://bucket/prefix or an "
            "absolute path, or leave it out: artifacts are then kept beside the study's results"
        )
    kind, _, database = (study.tracking.uri or "").partition(":///")
    if kind.startswith("sqlite") and database and not database.startswith("/"):
        raise PackageError(
            f"tracking.uri = {study.tracking.uri!r} would lie in the job's folder, which Ray deletes; give a server's "
            "address or sqlite:////absolute/path.db, or leave it out: it is then kept beside the study's results"
        )
    for earlier in study.start.warm_start:
        if not is_absolute(earlier):
            raise PackageError(
                f"start.warm_start = {earlier!r} is a folder beside the study and is not sent with the job; give "
                "s3://bucket/prefix, or its absolute path on the cluster's head"
            )


def _beside(study: Path, files: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Yields path and file of the study and of the files that it names; their relative paths stay the same."""
    given = [Path(os.path.normpath(path.absolute())) for path in (study, *files)]
    root = os.path.commonpath([path.parent for path in given])
    for path in given:
        yield path.relative_to(root).as_posix(), path


def _modules(specs: Iterable[str], here: Path) -> Iterator[tuple[str, Path]]:
    """Yields the modules in `here` that `module:callable`s name, and those in `here` that these import."""
    todo = [spec.partition(":")[0].partition(".")[0] for spec in specs if ":" in spec]
    seen = {*OURS, *sys.stdlib_module_names}
    while todo:
        name = todo.pop()
        if name in seen or not name.isidentifier():
            continue
        seen.add(name)
        for source in _sources(name, here):
            yield source.relative_to(here).as_posix(), source
            todo += _imports(source)


def _folder_of_weights(folder: Path) -> list[Path]:
    """Returns the files that are read of a folder of weights; none for what is no such folder."""
    weights = sorted(folder.glob("*.safetensors"))
    return [*weights, *sorted(folder.glob("*.json"))] if weights else []


def _of_library(factory: str, here: Path) -> Iterator[tuple[str, Path]]:
    """Yields the files in `here` that the name of a library's network stands for, such as a folder with its config."""
    if ":" not in factory:
        return
    from prunefront.pipelines.models.libraries import (
        library_of,
    )  # with torch, which a study of the zoo does not need

    found = library_of(factory)
    for path in () if found is None else found[0].files(found[1]):
        if is_absolute(path):
            continue
        whole = (here / path).resolve()
        if not whole.is_relative_to(here) or not whole.is_file():
            raise PackageError(
                f"model.factory = {factory!r} names what is no file or folder in {here}; put it there, or on storage "
                "that the cluster's machines see, and give its absolute path"
            )
        yield whole.relative_to(here).as_posix(), whole


def _rules(model: ModelSection) -> tuple[str, ...]:
    """Returns the module of the study's own channel rules in the form `module:`; none where it has none."""
    return () if model.rules is None else (f"{module_of(model.rules, key='model.rules')}:",)


def _sources(name: str, here: Path) -> list[Path]:
    """Returns the Python files of a top-level module or package of `here`; none for one that is not there."""
    package, module = here / name, here / f"{name}.py"
    if module.is_file() and not (package / "__init__.py").is_file():
        return [module]
    return [file for file in _walk(package) if file.suffix == ".py"]


def _walk(folder: Path) -> list[Path]:
    """Returns every file below a folder, but for those that never go along."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if _goes_along(name)]
        found += [Path(parent) / name for name in names if _goes_along(name)]
    return sorted(found)


def _goes_along(name: str) -> bool:
    return not name.startswith(".") and name not in NEVER


def _imports(source: Path) -> list[str]:
    """Returns the top-level names of the absolute imports in a Python file."""
    try:
        tree = ast.parse(read_bytes(source), filename=str(source))
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes
        raise PackageError(f"{source} is no valid Python: {error}") from None
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append(node.module)
    return [name.partition(".")[0] for name in found]


def _included(paths: Iterable[Path], here: Path) -> Iterator[tuple[str, Path]]:
    for path in paths:
        whole = (here / path).resolve()
        if whole == here or not whole.is_relative_to(here):
            raise PackageError(
                f"--include {path}: name what lies in the folder {here}, not what is around it"
            )
        if not whole.exists():
            raise PackageError(f"--include {path}: there is no such file or folder in {here}")
        inner = whole.relative_to(here)
        if not all(map(_goes_along, inner.parts)):
            raise PackageError(
                f"--include {path}: hidden files, virtual environments and studies are never sent"
            )
        if inner.parts[0] in OURS:
            raise PackageError(
                f"--include {path}: the cluster has a {inner.parts[0]} of its own, which this one would hide"
            )
        for file in _walk(whole) if whole.is_dir() else [whole]:
            yield file.relative_to(here).as_posix(), file


def _check_size(files: Mapping[str, Path]) -> None:
    sizes = {place: file.stat().st_size for place, file in files.items()}
    if (total := sum(sizes.values())) <= LIMIT_BYTES:
        return
    largest = sorted(sizes, key=lambda place: -sizes[place])[:3]
    raise PackageError(
        f"the job would take {megabytes(total)} along, and {megabytes(LIMIT_BYTES)} are the most; the largest: "
        f"{', '.join(f'{place} ({megabytes(sizes[place])})' for place in largest)}; put large files on storage that "
        "the cluster's machines see and give their absolute paths"
    )


def megabytes(count: int) -> str:
    """Returns a number of bytes as text: `1.5 MiB`."""
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{count / 1024:.1f} kiB"


def results_folder(asked: str | None, package: Package) -> str:
    """Returns the folder for results on the cluster's head: `asked`, else the package's.

    Raises ConfigError for a relative one.
    """
    if asked is None:
        return package.folder
    if not is_absolute(asked):
        raise ConfigError(
            f"--folder {asked} is relative, and Ray may delete the job's own folder; give an absolute path "
            f"on the cluster's head, such as {RESULTS}"
        )
    return asked
