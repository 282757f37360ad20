"""Commands around a study: time its network's variants, rehearse it, clean its store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli.app import (
    AsJson,
    EndpointUrl,
    RayAddress,
    Replace,
    Source,
    Study,
    command,
    console,
    print_json,
    say,
)
from prunefront.pipelines.cli.complete import searchers

if TYPE_CHECKING:
    from rich.console import Console

    from prunefront.pipelines.study.garbage import Garbage


@command("latency-table", "latency-table study.toml", "latency-table study.toml -o epyc.json --address auto")
def latency_table(
    study: Study,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="File to write. Default: latency.json in the study's folder."
        ),
    ] = None,
    replace: Replace = False,
    joint: Annotated[
        int, typer.Option(min=0, metavar="N", help="Number of networks to time with several groups cut.")
    ] = 48,
    address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Time variants of a network, to predict latency in searches.

    Runs on this machine, or on the study's [measure] device in a Ray cluster. After Ctrl-C the same command continues;
    with --replace it starts again.
    """
    from prunefront.pipelines.cli.resolve import study_config
    from prunefront.pipelines.events.display import Display
    from prunefront.pipelines.events.printing import people
    from prunefront.pipelines.journal.layout import LATENCY_TABLE
    from prunefront.pipelines.stages.latency_table import TableSections, measure_for

    config, display = study_config(study), Display(people(stderr=as_json))
    try:
        found = measure_for(
            config.part(TableSections), out, fresh=replace, joint=joint, address=address, display=display
        )
    except KeyboardInterrupt:
        file = out or config.path / LATENCY_TABLE
        say(f"stopped; run the same command to continue; measurements so far are in {file}", err=True)
        raise typer.Exit(130) from None
    if as_json:
        print_json(found.to_json())
    for line in (*found.lines(), f"written to {found.path}"):
        display.say(line)


@command(
    "rehearse",
    "rehearse digits --workers 16 --candidates 500",
    "rehearse study.toml --searcher surrogate --searcher random --json",
)
def rehearse(
    study: Study,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Virtual workers.")] = 8,
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Evaluations of each rehearsal. Default: the study's own number."
        ),
    ] = None,
    searcher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Searcher to rehearse; repeatable. Default: the study's own and random.",
            autocompletion=searchers,
        ),
    ] = None,
    failures: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Share of jobs in which a worker dies."),
    ] = 0.0,
    slow: Annotated[
        float, typer.Option(metavar="FACTOR", help="One worker takes this many times longer.")
    ] = 1.0,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rehearsals of each searcher, with different seeds.")
    ] = 3,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the study's evaluations there, as JSON."),
    ] = None,
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Replay a study with another searcher or budget.

    Its recorded evaluations answer virtual workers in virtual time; nothing is trained.
    """
    from prunefront.pipelines.journal.journal import write_json
    from prunefront.pipelines.study.find import find, load_config
    from prunefront.pipelines.study.rehearsal import print_rehearsal
    from prunefront.pipelines.study.rehearsal import rehearse as run
    from prunefront.search.simulator import Workers

    folder = find(study).searched_folder()
    if table is not None and table.exists() and not replace:
        raise PrunefrontError(f"{table} exists; name another file, or replace it with --replace")
    conditions = Workers(workers, failures=failures, slow={0: slow})
    found, evaluations = run(
        folder,
        load_config(folder),
        workers=conditions,
        candidates=candidates,
        names=searcher or (),
        repeats=repeats,
    )
    if table is not None:
        write_json(table, evaluations.to_json())
    if as_json:
        print_json(found.to_json())
    else:
        print_rehearsal(found, console())


@command("gc", "gc digits", "gc s3://bucket/prefix --older-than 12h --delete")
def gc(
    source: Source,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is listed.")] = False,
    older_than: Annotated[
        str,
        typer.Option(
            metavar="AGE", help="Keep anything younger, which may be in progress: a number and s, m, h or d."
        ),
    ] = "1d",
    dominated: Annotated[
        bool,
        typer.Option(
            "--dominated", help="Include networks that are not on the front, once the study has reported one."
        ),
    ] = False,
    endpoint_url: EndpointUrl = None,
    as_json: AsJson = False,
) -> None:
    """List what a study's store no longer needs, or delete it.

    Networks on the front stay, and so does everything that the study needs to continue.
    """
    from prunefront.pipelines.study.garbage import delete_garbage, find_garbage, open_study_store, parse_age

    seconds, study = parse_age(older_than), open_study_store(source, endpoint_url)
    found = find_garbage(study, older_than=seconds, dominated=dominated)
    if delete:
        delete_garbage(study, found)
    if as_json:
        print_json(found.to_json(deleted=delete))
    else:
        print_garbage(found, console(), deleted=delete)


def print_garbage(found: "Garbage", people: "Console", *, deleted: bool) -> None:
    """Prints what goes, what stays and why, for people."""
    from rich.table import Table
    from rich.text import Text

    from prunefront.pipelines.events.display import format_duration
    from prunefront.pipelines.study.garbage import KINDS

    def tell(line: str) -> None:
        people.print(line, highlight=False, soft_wrap=True, markup=False)

    if found.items:
        table = Table("why", "what", "bytes", "age", box=None, padding=(0, 2, 0, 0))
        table.columns[1].overflow = "fold"
        table.columns[2].justify = table.columns[3].justify = "right"
        for item in found.items:
            table.add_row(
                item.kind,
                Text(printable(item.what)),
                f"{item.size_bytes:,}",
                format_duration(item.age_seconds),
            )
        people.print(table)
        for kind in dict.fromkeys(item.kind for item in found.items):
            tell(f"{kind}: {KINDS[kind]}")
    count = f"{len(found.items)} {'thing' if len(found.items) == 1 else 'things'}, {found.size_bytes:,} bytes"
    if not found.items:
        tell(f"nothing to delete in {found.uri}")
    elif deleted:
        tell(f"deleted from {found.uri}: {count}")
    else:
        tell(f"{count}; nothing was deleted; add --delete to delete")
    tell(f"kept: {found.kept} {'network' if found.kept == 1 else 'networks'}, {found.kept_bytes:,} bytes")
    if found.young:
        tell(f"kept because too recent: {len(found.young)}; --older-than sets the limit")
    if found.foreign:
        shown = ", ".join(printable(key) for key in found.foreign[:3])
        tell(
            f"left alone because prunefront did not write them: {len(found.foreign)} objects, such as {shown}"
        )
    for note in found.notes:
        tell(note)


def printable(text: str) -> str:
    """Text from a store, without what a terminal would obey."""
    return text.encode("unicode_escape").decode()[:120]
