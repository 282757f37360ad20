"""The `prunefront` command: its options that several commands share, and how a command writes."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli.complete import bounds, objectives, studies
from prunefront.pipelines.events.printing import write_line

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., None])

PROGRAM = "prunefront"

COMMANDS = (
    "list",
    "inspect",
    "search",
    "status",
    "front",
    "report",
    "pick",
    "compare",
    "fetch",
    "verify",
    "export",
    "ui",
    "submit",
    "logs",
    "stop",
    "latency-table",
    "rehearse",
    "gc",
)
"""Commands in the order in which `--help` lists them: as a study goes, then its jobs, then what is seldom needed."""

RENAMED: Mapping[str, Mapping[str, str]] = {
    "submit": {"--address": "--jobs-server"},
    "logs": {"--address": "--jobs-server"},
    "stop": {"--address": "--jobs-server"},
    "status": {"--address": "--jobs-server"},
    "latency-table": {"--fresh": "--replace"},
    "export": {"--overwrite": "--replace"},
}
"""Command -> its options' old spellings -> the new ones. The old ones work for one release, hidden."""


def replace_old_spellings(command: str, arguments: Sequence[str]) -> Iterator[str]:
    """Yields the arguments of a command with old spellings replaced. Each replacement prints a notice."""
    renamed = RENAMED.get(command, {})
    given = iter(arguments)
    for argument in given:
        if argument == "--":
            yield argument
            yield from given
            return
        option, equals, value = argument.partition("=")
        if (new := renamed.get(option)) is not None:
            said = f"`{PROGRAM} {command} {option}` is spelled {new} now; {option} goes with the next release"
            say(f"notice: {said}", err=True)
            option = new
        yield f"{option}{equals}{value}"


def _escape_help(items: list[Any]) -> list[Any]:
    """Returns completions with their help escaped: typer sends it through rich, which takes brackets for markup."""
    for item in items:
        if item.help and "[" in item.help:
            from rich.markup import escape

            item.help = escape(item.help)
    return items


class Command(TyperCommand):
    """A command that takes old spellings too. With `--json`, stdout holds what `print_json` writes and nothing else."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # not while a shell completes
            args = list(replace_old_spellings(self.name or "", args))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        if not ctx.params.get("as_json"):
            return super().invoke(ctx)
        global _document
        _document = sys.stdout
        try:
            with redirect_stdout(sys.stderr):  # also what a library prints
                return super().invoke(ctx)
        finally:
            _document = None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        records = [
            (p, record) for p in self.get_params(ctx) if (record := p.get_help_record(ctx)) is not None
        ]
        arguments = [
            (name.partition(" <")[0], text)  # the metavar says more than <str> does
            for p, (name, text) in records
            if p.param_type_name == "argument"
        ]
        options = [record for p, record in records if p.param_type_name == "option"]
        for title, rows in (("Arguments", arguments), ("Options", options)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        return _escape_help(super().shell_complete(ctx, incomplete))


class Group(TyperGroup):
    """The program, in front of its commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        for param in params:
            if isinstance(param, TyperOption) and param.is_flag and param.default is None:
                # typer loads pydantic to make False of None, which takes half the time of `--help`
                param.default = False
        return params

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        return _escape_help(super().shell_complete(ctx, incomplete))


app = typer.Typer(
    name=PROGRAM,
    cls=Group,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    # plain text: brackets in help texts are brackets, and `--help` does without rich
    rich_markup_mode=None,
)


@app.callback()
def options(
    ctx: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works with every command.")
    ] = False,
) -> None:
    """Search for the Pareto front of smaller, faster versions of a trained PyTorch network.

    Begin with a study file such as examples/digits.toml; `prunefront list settings` lists its keys.
    """
    # `--debug` is read in `main`, where errors end up
    if ctx.invoked_subcommand is None:
        say(ctx.get_help(), err=True)
        raise typer.Exit(2)


def command(name: str, *examples: str) -> Callable[[F], F]:
    """Returns a decorator that makes a function a command of `app`. Its docstring is the help, then come `examples`."""
    shown = "\n".join(f"  {PROGRAM} {example}" for example in examples)
    return app.command(name, cls=Command, epilog=f"\b\nExamples:\n{shown}" if examples else None)


STUDY = typer.Argument(
    metavar="STUDY",
    help="The study: its file (TOML), its name, or its folder.",
    show_default=False,
    autocompletion=studies,
)
Study = Annotated[str, STUDY]
Source = Annotated[
    str,
    typer.Argument(
        metavar="STUDY|URI",
        help="The study: its file (TOML), its name, or its folder; or the address of its artifact store.",
        show_default=False,
        autocompletion=studies,
    ),
]
Under = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=NUMBER",
        help="Upper bound, such as latency_ms=2 or macs=1e7; repeatable.",
        autocompletion=bounds,
    ),
]
Require = Annotated[
    list[str] | None,
    typer.Option(
        metavar="BOUND",
        help="Bound in words, such as 'accuracy >= -1pt' or 'size_bytes <= 250kB'; repeatable.",
        show_default=False,
    ),
]
Best = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Quantity to optimise within the bounds; default: the metric.",
        autocompletion=objectives,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout; text for people on stderr.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue where the study stopped.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete an earlier run of the study and start again.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace the output if it exists.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="RAY",
        help="Ray cluster to use: auto, HOST:PORT or ray://HOST:PORT. Default: RAY_ADDRESS if that is set, otherwise "
        "this machine.",
    ),
]
JOBS_SERVER = "--jobs-server"
JOBS_SERVER_HELP = "The cluster's jobs server, which is the dashboard of its head, such as http://HEAD:8265."
JobsServer = Annotated[
    str,
    typer.Option(
        JOBS_SERVER,
        metavar="URL",
        envvar=["PRUNEFRONT_JOBS_SERVER", "RAY_API_SERVER_ADDRESS"],
        show_envvar=False,
        help=f"{JOBS_SERVER_HELP} Or set PRUNEFRONT_JOBS_SERVER; Ray's RAY_API_SERVER_ADDRESS counts too.",
        show_default=False,
    ),
]
TrustedStudy = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="STUDY",
        help="The study (file, name or folder) that says where network and data come from. Needed if they are not "
        "built in: code that only an artifact names is never imported.",
        autocompletion=studies,
    ),
]
EndpointUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="S3 server to ask. Default: the study's own, else AWS.")
]


def say(line: str, *, err: bool = False) -> None:
    """Prints one line for people; with `--json` it goes to stderr in any case."""
    write_line(line, sys.stderr if err else sys.stdout)


def console() -> "Console":
    """A rich console where people read: stdout, or stderr with `--json`."""
    from prunefront.pipelines.events.printing import people

    return people()


_document: TextIO | None = None
"""The stdout that JSON goes to while a command with `--json` runs."""


def print_json(data: Any) -> None:
    """Writes the one document of a command with `--json`. A number that JSON does not know is null."""
    out = _document or sys.stdout
    out.write(json.dumps(_finite(data), indent=1, allow_nan=False) + "\n")
    out.flush()


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def parse_bounds(texts: Sequence[str]) -> dict[str, float]:
    """`["latency_ms=2"]` -> `{"latency_ms": 2.0}`. Raises PrunefrontError for anything else."""
    parsed = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            parsed[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise PrunefrontError(f"--under takes NAME=NUMBER, such as latency_ms=2; got {text!r}")
    return parsed
