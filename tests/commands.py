"""Runs the program's commands in this process: one of their own spends seconds on imports before it does anything."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from unittest import mock

from prunefront.pipelines.cli.main import main


@dataclass(frozen=True)
class Done:
    """A command that ended, with what it wrote; named as `subprocess` names them."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str, folder: Path, env: Mapping[str, str] | None = None) -> Done:
    """Runs `prunefront ARGUMENTS…` in a folder. env: its whole environment; None = this process's.

    For commands that read: what a search starts (Ray, threads, signals) needs a process of its own.
    """
    out, err = StringIO(), StringIO()
    with (
        chdir(folder),
        mock.patch.object(sys, "argv", ["prunefront", *arguments]),
        mock.patch.object(sys, "path", [*sys.path]),
        mock.patch.dict("os.environ", env or {}, clear=env is not None),
        _warnings_as_a_program_has_them(),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


@contextmanager
def _warnings_as_a_program_has_them() -> Iterator[None]:
    """Here they are errors; a program of its own shows some and goes on."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("default")
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        yield
