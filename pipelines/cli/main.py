"""The program `prunefront`: its commands, in the order in which `--help` lists them, and how an error ends it."""

import os
import signal
import sys
import tempfile
import traceback
import warnings
from typing import NoReturn, TextIO

import typer

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli.app import PROGRAM, app, say
from prunefront.pipelines.cluster.ray_errors import raised_by_ray
from prunefront.pipelines.events.printing import colours, write_anywhere, write_line
from prunefront.text import one_line

# each module registers its commands when it is imported
from prunefront.pipelines.cli import look, search, choose, artifact, ui, jobs, housekeeping  # noqa: F401  # isort: skip


def main() -> None:
    """Runs the command, and ends the process with its exit code.

    An error is one line on stderr. Its exit code is 2 where a person can mend it: a PrunefrontError, a wrong command
    line, or a refusal by the system. Any other error has exit code 1, and its traceback is kept in a file. `--debug`,
    anywhere on the line, shows the traceback instead.
    """
    write_anywhere()
    warnings.showwarning = _show_warning
    debug = "--debug" in sys.argv
    if debug:
        # accepted anywhere on the line, not only before the command's name
        sys.argv = [sys.argv[0], *(a for a in sys.argv[1:] if a != "--debug")]
    try:
        code = app(prog_name=PROGRAM, standalone_mode=False)
    except typer.TyperException as error:  # a misspelt option, a missing argument
        text, context = one_line(error.format_message()).removesuffix("."), getattr(error, "ctx", None)
        where = context.command_path if context else PROGRAM
        _fail(f"{text[:1].lower()}{text[1:]}; see: {where} --help", 2)
    except BrokenPipeError:
        _end_if_nobody_reads(debug=debug)
    except PrunefrontError as error:
        _fail(_traceback() if debug else str(error), 2)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        line = f"{what}; check path, permissions and free space (continue a stopped search with --resume)"
        _fail(_traceback() if debug else line, 2)
    except Exception as error:  # noqa: BLE001  # it is shown, and its traceback is kept
        if raised_by_ray(error):
            line = f"Ray failed: {one_line(error)}; finished work is kept, continue a search with --resume"
            _fail(_traceback() if debug else line, 2)
        _fail(
            _traceback() if debug else f"{type(error).__name__}: {one_line(str(error))}; {_where_reported()}",
            1,
        )
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _end_if_nobody_reads(debug=debug)
    sys.exit(code or 0)


def _end_if_nobody_reads(*, debug: bool) -> NoReturn:
    """Ends the program as `head` and others expect that close the pipe early: in silence, with the code of SIGPIPE."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            closed = True
            # the interpreter flushes once more at its end, and would complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if closed:
        sys.exit(128 + signal.SIGPIPE)
    _fail(_traceback() if debug else "a connection or a process that was written to has ended; try again", 2)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Shows a key of a study file that has another name now as a notice; every other warning as Python does."""
    from prunefront.pipelines.config.earlier_keys import MovedKey  # here: --help loads no settings

    if issubclass(category, MovedKey):
        say(f"notice: {message}", err=True)
    else:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


def _fail(line: str, code: int) -> NoReturn:
    """Ends the program; a library's message about an address may hold its password."""
    from prunefront.pipelines.events.redaction import without_secrets

    mark = typer.style("error:", fg=typer.colors.RED) if colours(sys.stderr) else "error:"
    write_line(without_secrets(line), sys.stderr, prefix=f"{mark} ")
    sys.exit(code)


def _traceback() -> str:
    return f"\n{traceback.format_exc().rstrip()}"


def _where_reported() -> str:
    """Writes the traceback of an unexpected error to a file, and returns a line that says where."""
    from prunefront.pipelines.events.redaction import without_secrets

    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="prunefront-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(without_secrets(traceback.format_exc()))
    except OSError:
        return "this is a bug in prunefront; --debug shows its traceback"
    return f"this is a bug in prunefront; please report it with its traceback, which is in {file.name}"


if __name__ == "__main__":
    main()
