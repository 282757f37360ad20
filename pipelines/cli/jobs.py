"""The commands of `prunefront` about studies that run as jobs of a cluster. `cli.main` offers them."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from prunefront.pipelines.cluster.jobs import Job, JobsServer

LOG_LINES = 5
"""Of a submitted study's log, what `status` shows."""

StudyFile = Annotated[Path, typer.Argument(help="The study file (TOML).", show_default=False)]
Server = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="RAY_API_SERVER_ADDRESS",
        help="The cluster's jobs server, http://HEAD:8265: the dashboard of its head.",
        show_default=False,
    ),
]
Sent = Annotated[str, typer.Argument(help="A study file, a study's name, or a job's id.", show_default=False)]


def submit(
    study: StudyFile,
    address: Server,
    folder: Annotated[
        str | None,
        typer.Option(
            help="Where results go on the cluster's head, absolute or below ~. Default: the study's `folder` if that "
            "is absolute, else ~/prunefront/studies."
        ),
    ] = None,
    include: Annotated[
        list[Path] | None,
        typer.Option(help="A file or folder here that goes along too, for your own modules; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the study stopped.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what an earlier run of this study left.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "--no-follow", help="Do not wait for the end, nor show the log.")
    ] = False,
) -> None:
    """Search on a Ray cluster, as a job that goes on when this machine is off.

    The study file, the weights and latency table that it names by relative paths, and its own modules go along; data
    never does. The exit code is the job's.
    """
    from prunefront.pipelines.cluster.jobs import JobsServer
    from prunefront.pipelines.cluster.package import megabytes, pack, results_folder

    package = pack(study, include=include or ())
    kept = results_folder(folder, package)
    server = JobsServer(address)
    server.check_free(package.name)
    plain(f"{megabytes(package.size_bytes)} go along: {', '.join(package.files)}")
    if package.there:
        plain(f"expected there: {', '.join(f'{key} = {path}' for key, path in package.there.items())}")
    job = server.submit(package, kept, ["--resume"] * resume + ["--fresh"] * fresh)
    plain(f"job {job.id}; results on the head: {job.folder}")
    if detach:
        plain(f"follow it with: {server.command('logs', job)}")
        return
    watch(server, job)


def logs(
    study: Sent, address: Server, follow: Annotated[bool, typer.Option(help="Until it ends.")] = True
) -> None:
    """The log of a study that was submitted; it is followed until the study ends."""
    from prunefront.pipelines.cluster.jobs import JobsServer

    server = JobsServer(address)
    job = server.find(study_name(study))
    if follow:
        watch(server, job)
    else:
        sys.stdout.write(server.log(job))


def stop(study: Sent, address: Server) -> None:
    """End a study that was submitted, cleanly: what is finished is kept, and --resume goes on."""
    from prunefront.pipelines.cluster.jobs import JobsServer

    server = JobsServer(address)
    job = server.find(study_name(study))
    if job.over:
        plain(f"job {job.id} had ended before: {job.state.lower()}")
        return
    plain(f"stopping job {job.id}")
    ended = server.stop(job)
    plain(f"{ended.state.lower()}; what is finished is kept in {ended.folder} on the head; --resume goes on")


def study_name(study: str) -> str:
    """What a study is called among a cluster's jobs: the name in a study file, else what was given."""
    if not study.endswith(".toml"):
        return study
    from prunefront.pipelines.config.read import load

    return load(Path(study)).name


def watch(server: "JobsServer", job: "Job") -> None:
    """Shows a job's log until it ends, then exits with its code. Ctrl-C ends the showing, not the job."""
    from prunefront.pipelines.cluster.jobs import ENDED

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def say(line: str) -> None:
        Console(stderr=True).print(line, highlight=False, soft_wrap=True, markup=False)

    try:
        ended = server.follow(job, write, say)
    except KeyboardInterrupt:
        say(
            f"no longer following; job {job.id} goes on. Follow it with: {server.command('logs', job)}  "
            f"End it with: {server.command('stop', job)}"
        )
        raise typer.Exit(130) from None
    say(f"job {ended.id}: {ended.outcome}")
    if ended.state != "SUCCEEDED":
        raise typer.Exit(ENDED[ended.state] if ended.exit_code is None else ended.exit_code or 1)


def submitted_status(study: str, address: str, as_json: bool) -> None:
    """Prints how a submitted study's job stands, and the end of its log."""
    from prunefront.pipelines.cluster.jobs import JobsServer
    from prunefront.pipelines.events.display import format_duration

    server = JobsServer(address)
    job = server.find(study_name(study))
    last = [line for line in server.log(job).splitlines() if line.strip()][-LOG_LINES:]
    if as_json:
        sys.stdout.write(json.dumps({**job.to_json(), "log": last}, indent=1) + "\n")
        return
    plain(f"{'study':<12}{job.study}: {job.state.lower()}")
    plain(f"{'job':<12}{job.id}")
    if job.started is not None:
        plain(f"{'time':<12}{format_duration((job.ended or time.time()) - job.started)}")
    plain(f"{'results':<12}{job.folder} on the head")
    for line in last:
        plain(f"{'log':<12}{line}")


def plain(line: str) -> None:
    """One line on stdout, as it is."""
    Console().print(line, highlight=False, soft_wrap=True, markup=False)
