"""Help texts: whole at 80 columns, brackets included, and quick because little is loaded."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from prunefront.pipelines.cli.app import COMMANDS, RENAMED, Command
from prunefront.pipelines.cli.main import app

ROOT = Path(__file__).parents[3]
GROUP: Any = get_command(app)
NARROW = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}


def shown(*arguments: str, what: typer.Typer = app) -> str:
    done = CliRunner().invoke(what, [*arguments, "--help"], env=NARROW, prog_name="prunefront")
    assert done.exit_code == 0, done.output
    return done.stdout


def flat(text: str) -> str:
    """The text with every run of spaces and line ends as one space."""
    return " ".join(text.replace("\b", "").split())


def test_every_command_has_its_place_in_the_list() -> None:
    assert sorted(GROUP.commands) == sorted(COMMANDS)
    assert RENAMED.keys() <= GROUP.commands.keys()
    text = shown()
    places = [text.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert "..." not in text.partition("Commands:")[2], (
        "the first line of a docstring is too long for the list"
    )
    assert flat(GROUP.help) in flat(text)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_whole(name: str) -> None:
    """Every word of its docstring, of its options and of its examples is there, in lines of 80 characters."""
    command, text = GROUP.commands[name], shown(name)
    assert max(map(len, text.splitlines())) <= 80
    assert flat(command.help) in flat(text)
    assert flat(command.epilog) in flat(text)
    assert f"prunefront {name}" in command.epilog, "an example shows the command"
    for param in command.params:
        assert param.help, f"{name} {param.name} says nothing"
        if not param.hidden:
            described = flat(
                text
            )  # in a column of its own, so word for word is found and line by line is not
            assert all(word in described for word in flat(param.help).split()), param.name
            assert param.opts[0] in text or param.metavar in text
    assert "<str>" not in text
    assert "{" not in text.splitlines()[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_reports_as_json(name: str) -> None:
    assert "--json" in {option for param in GROUP.commands[name].params for option in param.opts}


@pytest.mark.parametrize("name", sorted(RENAMED))
def test_old_spellings_are_not_shown(name: str) -> None:
    words = shown(name).split()
    assert set(RENAMED[name].values()) <= set(words)
    assert not set(RENAMED[name]) & set(words)


WRITTEN = re.compile(r"prunefront ([a-z][a-z-]+)((?: [^`#|'\n]*)?)")


def test_what_documents_and_messages_tell_people_to_type_exists() -> None:
    """Every `prunefront COMMAND --option` in a document, an example or the source."""
    known = {
        name: {o for p in c.params for o in (*p.opts, *p.secondary_opts)}
        for name, c in GROUP.commands.items()
    }
    files = [
        *ROOT.glob("*.md"),
        *(
            p
            for folder in ("docs", "examples")
            for p in (ROOT / folder).rglob("*")
            if p.suffix in {".md", ".toml", ".yaml"}
        ),
        *(p for folder in ("pipelines", "pruners") for p in (ROOT / folder).rglob("*.py")),
    ]
    seen = 0
    for file in files:
        for name, rest in WRITTEN.findall(file.read_text()):
            if name in known:
                seen += 1
                wrong = set(re.findall(r"(?<!\S)\[?(--[a-z-]+)", rest)) - known[name] - {"--help", "--debug"}
                assert not wrong, f"{file}: prunefront {name}{rest}"
    assert seen > 100


BRACKETS = "Time it on the [measure] device, [red]not[/red] elsewhere [bold]."


def with_brackets() -> typer.Typer:
    """A program of our make that has brackets in all its help texts."""
    made = typer.Typer(**{k: getattr(app.info, k) for k in ("cls", "invoke_without_command")})
    made.rich_markup_mode = app.rich_markup_mode
    made.callback()(lambda: None)

    @made.command("gc", cls=Command, help=BRACKETS)
    def gc(
        option: str = typer.Option("", help=BRACKETS), other: str = typer.Argument("", help=BRACKETS)
    ) -> None:
        """Does nothing."""

    return made


def test_brackets_are_shown_as_they_are() -> None:
    made = with_brackets()
    assert flat(shown("gc", what=made)).count(BRACKETS) == 3, "of the command, an option and an argument"
    assert "[measure]" in shown(what=made)


@pytest.mark.parametrize("words", ["prunefront ", "prunefront gc --o"])
def test_shells_that_show_help_show_brackets(words: str) -> None:
    env = {"_PRUNEFRONT_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": words}
    done = CliRunner().invoke(with_brackets(), [], env=env, prog_name="prunefront")
    assert "[measure]" in done.stdout, done.output


LOADED = """
import sys, runpy
sys.argv = ["prunefront", *sys.argv[1:]]
try:
    runpy.run_module("prunefront", run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
print(*sys.modules, file=sys.stderr)
"""

LIGHT = {
    "prunefront.errors",
    "prunefront.text",
    "prunefront.reading",
    "prunefront.strict_json",
    "prunefront.pipelines",
    "prunefront.pipelines.cluster.ray_errors",
    "prunefront.pipelines.events.printing",
    "prunefront.pipelines.journal.layout",
}
"""Modules of ours that help needs, beside those of `cli`."""


@pytest.mark.parametrize(
    ("arguments", "complete"),
    [
        (["--help"], None),
        *((["--help", name][::-1], None) for name in COMMANDS),
        ([], "prunefront se"),
        ([], "prunefront front d"),
        ([], "prunefront fetch s --under "),
    ],
)
def test_help_and_completion_load_little(arguments: list[str], complete: str | None, tmp_path: Path) -> None:
    """Time depends on the machine, modules do not: no rich, to say nothing of torch and Ray."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    if complete is not None:
        count = str(len(complete.split(" ")) - 1)
        env |= {"_PRUNEFRONT_COMPLETE": "complete_bash", "COMP_WORDS": complete, "COMP_CWORD": count}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.split()
    ours = {
        name
        for name in loaded
        if name.startswith("prunefront.") and not name.startswith("prunefront.pipelines.cli")
    }
    assert ours <= LIGHT | {name.rpartition(".")[0] for name in LIGHT}
    heavy = {"rich", "numpy", "torch", "ray", "mlflow", "asyncio", "http", "sqlite3"}
    if complete is None:  # typer parses a line that it completes, with pydantic
        heavy |= {"pydantic"}
    assert {name.partition(".")[0] for name in loaded} & heavy == set()
