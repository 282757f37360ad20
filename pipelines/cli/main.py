"""The `prunefront` command. Heavy imports wait until a command needs them, so that `--help` is quick."""

import json
import shlex
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli.jobs import StudyFile, logs, stop, submit, submitted_status
from prunefront.pipelines.journal.layout import FRONT_PAGE, FRONT_PICTURE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunefront.pipelines.fronts.row import FrontRow
    from prunefront.pipelines.fronts.unfinished import PartialFront
    from prunefront.pipelines.study.garbage import Garbage
    from prunefront.pipelines.study.status import Status

app = typer.Typer(
    name="prunefront",
    help="Bring a trained PyTorch network, get the Pareto front of smaller, faster ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Study = Annotated[
    str, typer.Argument(help="A study file, a study's name, or its folder.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]

LISTS = (
    "criteria",
    "procedures",
    "allocators",
    "controls",
    "granularities",
    "quantisers",
    "searchers",
    "models",
    "runtimes",
    "settings",
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command; `--debug` is read in `main`, where errors end up."""


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help=" | ".join(LISTS), show_default=False)], as_json: AsJson = False
) -> None:
    """What there is to choose from; `settings` are the keys of a study file."""
    from prunefront.pipelines.cli.catalogue import catalogue

    entries = catalogue(what)
    if as_json:
        print_json(entries)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for entry in entries:
        table.add_row(Text(entry["name"], style="bold"), Text(entry["summary"]))
    Console().print(table)


@app.command()
def inspect(study: StudyFile, as_json: AsJson = False) -> None:
    """Before anything is spent: what can be pruned, what cannot, and why."""
    from prunefront.pipelines.config.read import load
    from prunefront.pipelines.prepare.inspection import inspect as look
    from prunefront.pipelines.prepare.inspection import print_inspection

    found = look(load(study))
    if as_json:
        print_json(found.to_json())
    else:
        print_inspection(found, Console())
    if found.infeasible is not None:
        raise PrunefrontError(found.infeasible)


@app.command()
def search(
    study: StudyFile,
    address: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster: auto, HOST:PORT or ray://HOST:PORT. Without it, Ray starts on this machine."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the study stopped.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what an earlier run of this study left.")
    ] = False,
    folder: Annotated[
        str | None, typer.Option(help="Where results go, instead of the study's `folder`; ~ is expanded.")
    ] = None,
    log_json: Annotated[
        str | None,
        typer.Option(
            help="Also write one line of JSON per event, to this file, or to stdout for -, which moves all else to "
            "stderr. PRUNEFRONT_LOG=json does the latter."
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Where Ray on this machine exports metrics for Prometheus."),
    ] = None,
) -> None:
    """Search: score many candidates, fine-tune the promising ones, measure, publish, report the front.

    Ctrl-C or SIGTERM stops it: what is finished is kept, and a partial front is written; a second one ends it at once.
    """
    from prunefront.pipelines.cluster.stopping import exit_code, stop_on_signal
    from prunefront.pipelines.config.read import load
    from prunefront.pipelines.events.display import Display
    from prunefront.pipelines.events.log import STDOUT, json_lines, log_target

    target = log_target(log_json)
    console = Console(stderr=target == STDOUT)
    config = load(study)
    if folder is not None:
        config = config.model_copy(update={"folder": Path(folder).expanduser()})
    try:
        with stop_on_signal(), json_lines(target):
            from prunefront.pipelines.study.run import next_steps, run

            rows = run(
                config,
                display=Display(console),
                address=address,
                resume=resume,
                fresh=fresh,
                metrics_port=metrics_port,
            )
    except (KeyboardInterrupt, SystemExit) as error:
        if (code := exit_code(error)) is None:
            raise
        said = f"stopped; go on with: prunefront search {shlex.quote(str(study))} --resume"
        Console(stderr=True).print(said, highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(code) from None
    print_front(rows, console)
    print_bounds(config.path, console)
    found_by = study if folder is None else config.path
    console.print(next_steps(config, found_by, rows), highlight=False, soft_wrap=True, markup=False)


for command in (submit, logs, stop):
    app.command()(command)


@app.command("latency-table")
def latency_table(
    study: StudyFile,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The file to write. Default: latency.json in the study's folder."),
    ] = None,
    joint: Annotated[
        int, typer.Option(min=0, help="How many networks with several groups cut are timed.")
    ] = 48,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is there.")] = False,
    address: Annotated[
        str | None,
        typer.Option(help="The Ray cluster that the study's [measure] device is in, as for search."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time variants of the network, on this machine or the study's device, so that a search can predict latency.

    Can be cut short.
    """
    from prunefront.pipelines.config.read import load
    from prunefront.pipelines.events.display import Display
    from prunefront.pipelines.journal.layout import LATENCY_TABLE
    from prunefront.pipelines.stages.latency_table import measure_for

    config, console = load(study), Console(stderr=as_json)
    display = Display(console)
    try:
        found = measure_for(config, out, fresh=fresh, joint=joint, address=address, display=display)
    except KeyboardInterrupt:
        said = f"stopped; the same command goes on; what was timed is in {out or config.path / LATENCY_TABLE}"
        Console(stderr=True).print(said, highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(130) from None
    if as_json:
        print_json(found.to_json())
        return
    for line in (*found.lines(), f"written to {found.path}"):
        display.say(line)


@app.command()
def front(study: Study, as_json: AsJson = False) -> None:
    """The Pareto front as a table; also writes front.html and front.png into the study's folder.

    Before the end of a search, what is finished, by its validation figures: a partial front, which says so.
    """
    from prunefront.pipelines.fronts.page import write_html
    from prunefront.pipelines.fronts.picture import write_png
    from prunefront.pipelines.study.find import find, read_bounds, read_front, read_partial_front

    folder = find(study).searched_folder()
    if (partial := read_partial_front(folder)) is not None:
        print_partial(partial, folder, as_json=as_json)
        return
    rows = read_front(folder)
    pages = f"pages: {folder / 'front.html'}  {folder / 'front.png'}"
    try:
        write_html(rows, folder / FRONT_PAGE, folder.name, note=read_bounds(folder))
        write_png(rows, folder / FRONT_PICTURE, folder.name)
    except OSError as error:  # somebody else's study can be read all the same
        pages = f"no pages were written: {error.filename}: {error.strerror}"
    if as_json:
        print_json([row.to_json() for row in rows])
    else:
        print_front(rows, Console())
    print_bounds(folder, Console(stderr=as_json))
    Console(stderr=as_json).print(pages, highlight=False, soft_wrap=True, markup=False)


@app.command()
def status(
    study: Study,
    as_json: AsJson = False,
    address: Annotated[
        str | None,
        typer.Option(
            help="Of a submitted study: the cluster's jobs server, http://HEAD:8265.", show_default=False
        ),
    ] = None,
) -> None:
    """How far a study is: candidates, failures by reason, rate, workers' time, expected end. It may be running."""
    if address is not None:
        submitted_status(study, address, as_json)
        return
    from prunefront.pipelines.study.find import find
    from prunefront.pipelines.study.status import status as state_of

    found = state_of(find(study).searched_folder())
    if as_json:
        print_json(found.to_json())
        return
    console = Console()
    for name, value in status_rows(found):
        console.print(f"{name:<12}{value}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def rehearse(
    study: Study,
    workers: Annotated[int, typer.Option(min=1, help="Virtual workers.")] = 8,
    candidates: Annotated[
        int | None,
        typer.Option(min=1, help="Evaluations of each rehearsal. Default: the study's own number."),
    ] = None,
    searcher: Annotated[
        list[str] | None,
        typer.Option(help="A searcher to rehearse; repeatable. Default: the study's own and random."),
    ] = None,
    failures: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of jobs in which a worker dies.")
    ] = 0.0,
    slow: Annotated[float, typer.Option(help="How many times longer one of the workers takes.")] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, help="Rehearsals of each searcher, with other seeds.")] = 3,
    table: Annotated[
        Path | None, typer.Option(help="Also write the study's evaluations there, as JSON.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay a study's evaluations on virtual workers: what would another searcher or budget bring?"""
    from prunefront.pipelines.journal.journal import write_json
    from prunefront.pipelines.study.find import find, load_config
    from prunefront.pipelines.study.rehearsal import print_rehearsal
    from prunefront.pipelines.study.rehearsal import rehearse as run
    from prunefront.search.simulator import Workers

    folder = find(study).searched_folder()
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
        print_rehearsal(found, Console())


@app.command()
def fetch(
    source: Annotated[
        str,
        typer.Argument(
            help="A study (file, name or folder), or the URI of an artifact or of an artifact store.",
            show_default=False,
        ),
    ],
    under: Annotated[
        list[str] | None,
        typer.Option(help="An upper bound, e.g. latency_ms=2 or macs=1e7. May be given several times."),
    ] = None,
    best: Annotated[str, typer.Option(help="What to be best at within the bounds.")] = "accuracy",
    key: Annotated[
        str | None, typer.Option(help="The key of one row of the front, instead of bounds.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("best"),
    endpoint_url: Annotated[str | None, typer.Option(help="Of an S3 server that is not AWS.")] = None,
) -> None:
    """Fetch the best network of a front within bounds; every file's digest is checked."""
    from prunefront.pipelines.study.fetch import fetch_best

    row, folder = fetch_best(source, bounds(under or []), best, key, out, endpoint_url)
    console = Console()
    if row is not None:
        # timed against itself, the dense network's ratio is nothing but noise
        ratio = "" if row.is_dense else f" ({row.latency_ratio:.2f} of dense)"
        console.print(
            f"{row.key}: accuracy {row.accuracy:.4f}, {row.latency_ms:.3f} ms{ratio}, {row.macs:,} MACs, "
            f"{row.size_bytes:,} bytes",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"written to {folder}; check it with: prunefront verify {shlex.quote(str(out))}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


@app.command()
def gc(
    source: Annotated[
        str,
        typer.Argument(
            help="A study (file, name or folder), or the URI of its artifact store.", show_default=False
        ),
    ],
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is listed.")] = False,
    older_than: Annotated[
        str, typer.Option(help="What is younger stays: it may be under way. E.g. 12h, 1d.")
    ] = "1d",
    dominated: Annotated[
        bool, typer.Option("--dominated", help="Also networks that are not on the front, once there is one.")
    ] = False,
    endpoint_url: Annotated[str | None, typer.Option(help="Of an S3 server that is not AWS.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what a study's store holds that nothing refers to any more; with --delete, delete it."""
    from prunefront.pipelines.study.garbage import delete_garbage, find_garbage, open_study_store, parse_age

    seconds, study = parse_age(older_than), open_study_store(source, endpoint_url)
    found = find_garbage(study, older_than=seconds, dominated=dominated)
    if delete:
        delete_garbage(study, found)
    if as_json:
        print_json(found.to_json(deleted=delete))
    else:
        print_garbage(found, Console(), deleted=delete)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A fetched artifact.", show_default=False)],
    study: Annotated[
        Path | None,
        typer.Option(
            help="The study file, for networks or data that are not built in. An artifact may name a "
            "`module:callable`, but only one that your own study file names is ever imported."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an artifact: digests, then the recorded accuracy and outputs, measured again."""
    from prunefront.pipelines.artifacts.verify import verify as check
    from prunefront.pipelines.config.read import load

    trusted = load(study) if study is not None else None
    found = check(folder, factory=trusted.model if trusted else None, data=trusted.data if trusted else None)
    if as_json:
        print_json(found.to_json())
    else:
        table = Table("check", "recorded", "measured", "", box=None, padding=(0, 2, 0, 0))
        for item in found.checks:
            mark = Text("ok", style="green") if item.ok else Text("differs", style="red")
            # what an artifact says of itself is text, not markup
            table.add_row(item.name, Text(item.recorded), Text(item.measured), mark)
        console = Console()
        console.print(table)
        for reason in found.skipped:
            console.print(f"not checked: {reason}", highlight=False, soft_wrap=True, markup=False)
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A fetched artifact.", show_default=False)],
    to: Annotated[
        str, typer.Option("--format", help="onnx | pt2 | openvino | int8 (ONNX that computes in integers).")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file to write. Default: in this folder.")
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            help="The study file, for networks or data that are not built in. An artifact may name a "
            "`module:callable`, but only one that your own study file names is ever imported."
        ),
    ] = None,
    float_: Annotated[
        list[str] | None, typer.Option("--float", help="int8: a module that stays in float; repeatable.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write the network of an artifact in another format, compared with the one that it holds."""
    from prunefront.pipelines.artifacts.convert import convert
    from prunefront.pipelines.config.read import load

    trusted = load(study) if study is not None else None
    done = convert(
        folder,
        to,
        out,
        factory=trusted.model if trusted else None,
        data=trusted.data if trusted else None,
        exclude=tuple(float_ or ()),
        overwrite=overwrite,
    )
    Console().print(str(done), highlight=False, soft_wrap=True, markup=False)


@app.command()
def ui(
    study: Annotated[str | None, typer.Argument(help="A study; default: the one searched last.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the pages are served.")] = 5000,
    host: Annotated[
        str, typer.Option(help="The address of this machine to listen on: 127.0.0.1 or ::1.")
    ] = "127.0.0.1",
) -> None:
    """The MLflow UI on this study's tracking store."""
    from prunefront.pipelines.cli.ui import serve
    from prunefront.pipelines.study.find import tracking_uri

    def say(line: str) -> None:
        Console().print(line, highlight=False, soft_wrap=True, markup=False)

    serve(tracking_uri(study), port=port, host=host, say=say)


def bounds(texts: list[str]) -> dict[str, float]:
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


def print_front(rows: "Sequence[FrontRow]", console: Console) -> None:
    """The front for people, and below it what it is compared with."""
    from prunefront.pipelines.fronts.table import controls_table, table

    console.print(table(rows))
    if (controls := controls_table(rows)) is not None:
        console.print(controls)


def print_partial(found: "PartialFront", folder: Path, *, as_json: bool) -> None:
    """A front of what is finished; also writes its page."""
    from prunefront.pipelines.fronts.unfinished_report import partial_table, write_partial_front
    from prunefront.pipelines.journal.layout import PARTIAL_PAGE

    page = f"page: {folder / PARTIAL_PAGE}"
    try:
        write_partial_front(found, folder)
    except OSError as error:
        page = f"no page was written: {error.filename}: {error.strerror}"
    if as_json:
        print_json(found.to_json())
    else:
        Console().print(partial_table(found))
    lines = [found.summary, page]
    if (network := found.best_artifact) is not None:
        lines.append(f"the most accurate so far: prunefront fetch {shlex.quote(network)} -o best/")
    for line in lines:
        Console(stderr=as_json).print(line, highlight=False, soft_wrap=True, markup=False)


def status_rows(found: "Status") -> list[tuple[str, str]]:
    """Label and text of each line that `prunefront status` prints."""
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


def print_garbage(found: "Garbage", console: Console, *, deleted: bool) -> None:
    """What goes, what stays and why, for people."""
    from prunefront.pipelines.events.display import format_duration
    from prunefront.pipelines.study.garbage import KINDS

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

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
        console.print(table)
        for kind in dict.fromkeys(item.kind for item in found.items):
            say(f"{kind}: {KINDS[kind]}")
    count = f"{len(found.items)} {'thing' if len(found.items) == 1 else 'things'}, {found.size_bytes:,} bytes"
    if not found.items:
        say(f"nothing to delete in {found.uri}")
    elif deleted:
        say(f"deleted from {found.uri}: {count}")
    else:
        say(f"{count}; nothing was deleted: --delete does that")
    say(f"kept: {found.kept} {'network' if found.kept == 1 else 'networks'}, {found.kept_bytes:,} bytes")
    if found.young:
        say(f"too young to go: {len(found.young)}; --older-than says what is")
    if found.foreign:
        shown = ", ".join(printable(key) for key in found.foreign[:3])
        say(f"left alone, as not prunefront's: {len(found.foreign)} objects, such as {shown}")
    for note in found.notes:
        say(note)


def printable(text: str) -> str:
    """Text from a store, which may hold what a terminal obeys."""
    return text.encode("unicode_escape").decode()[:120]


def print_bounds(folder: Path, console: Console) -> None:
    """How many networks keep the study's bounds, or the nearest one, in a line; nothing where there are none."""
    from prunefront.pipelines.study.find import read_bounds

    if (line := read_bounds(folder)) is not None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def print_json(data: Any) -> None:
    """The only thing on stdout."""
    sys.stdout.write(json.dumps(data, indent=1) + "\n")


def main() -> None:
    """Runs the command. A PrunefrontError, or what the system refuses, is one line on stderr and exit code 2;
    `--debug` shows its traceback."""
    debug = "--debug" in sys.argv
    if debug:
        # accepted anywhere on the line, not only before the command's name
        sys.argv = [sys.argv[0], *(a for a in sys.argv[1:] if a != "--debug")]
    try:
        app()
    except PrunefrontError as error:
        _fail(_traceback() if debug else str(error))
    except OSError as error:
        if debug:
            _fail(_traceback())
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _fail(f"{what}; check path, permissions and free space (a stopped search goes on with --resume)")


def _fail(line: str) -> NoReturn:
    """Ends the program; what libraries say of an address may hold its password."""
    from prunefront.pipelines.events.redaction import without_secrets

    shown = Text.assemble(("error:", "red"), " ", without_secrets(line))
    Console(stderr=True).print(shown, highlight=False, soft_wrap=True)
    sys.exit(2)


def _traceback() -> str:
    return f"\n{traceback.format_exc().rstrip()}"


if __name__ == "__main__":
    main()
