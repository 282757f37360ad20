"""Commands that only look: what can be named, what can be pruned, how far a study is, its front."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli.app import (
    JOBS_SERVER,
    JOBS_SERVER_HELP,
    AsJson,
    Study,
    command,
    console,
    print_json,
    say,
)
from prunefront.pipelines.cli.catalogue import LISTS, catalogue
from prunefront.pipelines.cli.complete import topics
from prunefront.pipelines.journal.layout import LOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from prunefront.pipelines.fronts.row import FrontRow
    from prunefront.pipelines.fronts.unfinished import PartialFront
    from prunefront.pipelines.study.find import FoundStudy
    from prunefront.pipelines.study.status import Status


@command("list", "list criteria", "list settings", "list models --json")
def list_(
    topic: Annotated[
        str,
        typer.Argument(
            metavar="TOPIC", help=f"One of {', '.join(LISTS)}.", show_default=False, autocompletion=topics
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """List what a study file can name.

    The topic `settings` lists the keys of a study file with their defaults.
    """
    entries = catalogue(topic)
    if as_json:
        print_json(entries)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for entry in entries:
        table.add_row(Text(entry["name"], style="bold"), Text(entry["summary"]))
    console().print(table)


@command("inspect", "inspect study.toml")
def inspect(study: Study, as_json: AsJson = False) -> None:
    """Show what can be pruned, what cannot, and why.

    The network is built and traced; nothing is trained or written. Bounds that no network of the study can meet are an
    error.
    """
    from prunefront.pipelines.cli.resolve import study_config
    from prunefront.pipelines.prepare.inspection import InspectedSections, print_inspection
    from prunefront.pipelines.prepare.inspection import inspect as look

    found = look(study_config(study).part(InspectedSections))
    if as_json:
        print_json(found.to_json())
    else:
        print_inspection(found, console())
    if found.infeasible is not None:
        raise PrunefrontError(found.infeasible)


@command(
    "status", "status study.toml", "status digits --json", "status digits --jobs-server http://localhost:8265"
)
def status(
    study: Study,
    as_json: AsJson = False,
    jobs_server: Annotated[
        str | None,
        typer.Option(
            JOBS_SERVER,
            metavar="URL",
            help=f"Ask about a submitted study here. {JOBS_SERVER_HELP}",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show how far a study is.

    Shows candidates done, failures by reason, rate, workers' time and expected end. It reads the study's journal only,
    so it works during and after a search.
    """
    if jobs_server is not None:
        from prunefront.pipelines.cli.jobs import submitted_status

        submitted_status(study, jobs_server, as_json=as_json)
        return
    from prunefront.pipelines.study.find import find
    from prunefront.pipelines.study.status import status as state_of

    found = state_of(find(study).searched_folder())
    if as_json:
        print_json(found.to_json())
        return
    for name, value in status_rows(found):
        say(f"{name:<12}{value}")


@command("front", "front digits", "front study.toml --json")
def front(study: Study, as_json: AsJson = False) -> None:
    """Show the Pareto front of a study.

    Also writes report.html into the study's folder. Before the end of a search this is a partial front of what is
    finished, by validation figures, and says so; its JSON is an object then, and a list of rows afterwards.
    """
    from prunefront.pipelines.study.find import find, read_front, read_partial_front

    found = find(study)
    folder = found.searched_folder()
    if (partial := read_partial_front(folder)) is not None:
        print_partial(partial, found, as_json=as_json)
        return
    rows = read_front(folder)
    page = write_page_of(found)
    people = console()
    if as_json:
        print_json([row.to_json() for row in rows])
    else:
        print_front(rows, people)
    print_bounds(folder, people)
    say(page)


@command("report", "report digits --open", "report study.toml")
def report(
    study: Study,
    show: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser of this machine.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the page that a network is chosen with.

    report.html in the study's folder holds the front, bounds to choose within, comparison, and what the search did. It
    needs no network. While a search runs, it is written again now and then, and the open page follows.
    """
    from prunefront.pipelines.fronts.report import write_report
    from prunefront.pipelines.fronts.unfinished import FrontSections
    from prunefront.pipelines.study.find import find
    from prunefront.pipelines.study.status import lock_holder

    found = find(study)
    folder = found.searched_folder()
    running = bool(lock_holder(folder / LOCK)[0])
    page = write_report(found.config.part(FrontSections), folder, running=running).resolve()
    opened = show and typer.launch(page.as_uri()) == 0
    if as_json:
        print_json({"page": str(page), "opened": opened})
    say(f"page: {page}")
    if show and not opened:
        say("no browser could be opened here; open that file in one")


def write_page_of(found: "FoundStudy") -> str:
    """Writes a study's page, and returns a line that says where it is, or why it is not."""
    from prunefront.pipelines.fronts.report import write_report
    from prunefront.pipelines.fronts.unfinished import FrontSections

    try:
        return f"page: {write_report(found.config.part(FrontSections), found.folder)}"
    except OSError as error:  # somebody else's study can be read all the same
        return f"no page was written: {error.filename}: {error.strerror}"


def print_front(rows: "Sequence[FrontRow]", people: "Console") -> None:
    """Prints the front for people, and below it its controls."""
    from prunefront.pipelines.fronts.table import controls_table, table

    people.print(table(rows))
    if (controls := controls_table(rows)) is not None:
        people.print(controls)


def print_partial(partial: "PartialFront", found: "FoundStudy", *, as_json: bool) -> None:
    """Prints a front of what is finished, and writes it and its page."""
    from prunefront.pipelines.fronts.unfinished import FrontSections
    from prunefront.pipelines.fronts.unfinished_report import partial_table, write_partial_front
    from prunefront.pipelines.journal.layout import REPORT

    page = f"page: {found.folder / REPORT}"
    try:
        write_partial_front(partial, found.config.part(FrontSections), found.folder)
    except OSError as error:
        page = f"no page was written: {error.filename}: {error.strerror}"
    if as_json:
        print_json(partial.to_json())
    else:
        console().print(partial_table(partial))
    lines = [partial.summary, page]
    if (network := partial.best_artifact) is not None:
        lines.append(f"the most accurate so far: prunefront fetch {shlex.quote(network)} -o best/")
    for line in lines:
        say(line)


def print_bounds(folder: Path, people: "Console") -> None:
    """Prints in a line how many networks keep the study's bounds, or the nearest one; nothing where there are none."""
    from prunefront.pipelines.study.find import read_bounds

    if (line := read_bounds(folder)) is not None:
        people.print(line, highlight=False, soft_wrap=True, markup=False)


def status_rows(found: "Status") -> list[tuple[str, str]]:
    """Returns label and text of each line that `prunefront status` prints."""
    from prunefront.pipelines.events.display import format_duration

    running = f", process {found.process}" if found.process else ""
    rows = [("study", f"{found.study}: {found.state}{running}")]
    for stage in found.stages:
        failed = f", {stage.failed} failed" if stage.failed else ""
        rows.append((stage.name, f"{stage.done} of {stage.total}{failed}"))
    rows += [
        ("failed", f"{count} {kind}, the last one: {found.reasons[kind]}")
        for kind, count in sorted(found.failures.items())
    ]
    if found.per_minute:
        left = (
            ""
            if found.seconds_left is None
            else f", about {format_duration(found.seconds_left)} left of this stage"
        )
        rows.append(("rate", f"{found.per_minute:.3g} a minute{left}"))
        rows.append(("busy", f"{found.busy:.1f} workers on average"))
    rows.append(("spent", f"{format_duration(found.worker_seconds)} of workers' time on candidates"))
    if found.idle_seconds is not None:
        rows.append(("last", f"event {format_duration(found.idle_seconds)} ago"))
    return rows
