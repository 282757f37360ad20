"""Commands about studies that run as jobs of a Ray cluster: `submit`, `logs`, `stop`, and a job's `status`."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunefront.pipelines.cli.app import AsJson, Fresh, JobsServer, Resume, Study, command, print_json, say
from prunefront.pipelines.cli.complete import studies
from prunefront.text import plain

if TYPE_CHECKING:
    from prunefront.pipelines.cluster import jobs

LOG_LINES = 5
"""Lines of a submitted study's log that `status` shows, the last ones."""

Submitted = Annotated[
    str,
    typer.Argument(
        metavar="STUDY|JOB",
        help="The study: its file (TOML), its name, or its folder; or the id of its job.",
        show_default=False,
        autocompletion=studies,
    ),
]


@command(
    "submit",
    "submit study.toml --jobs-server http://localhost:8265",
    "submit study.toml --resume --detach",
)
def submit(
    study: Study,
    jobs_server: JobsServer,
    resume: Resume = False,
    fresh: Fresh = False,
    folder: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where results go on the cluster's head, absolute or below ~. Default: the study's `folder` if that "
            "is absolute, else ~/prunefront/studies.",
        ),
    ] = None,
    include: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH", help="File or folder to send with the job, for your own modules; repeatable."
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "--no-follow", help="Return at once, without showing the log.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Search on a Ray cluster, as a job that continues without you.

    The study file, the weights and latency table that it names by relative paths, and its own modules are sent; data
    is never sent. The log is shown until the job ends, and the exit code is the job's. Ctrl-C ends only the display.
    """
    from prunefront.pipelines.cli.resolve import study_file
    from prunefront.pipelines.cluster.jobs import JobsServer
    from prunefront.pipelines.cluster.package import PackedSections, megabytes, pack, results_folder
    from prunefront.pipelines.config.read import load

    with study_file(study) as file:
        paths_as_written = load(file, base=Path()).part(PackedSections)
        package = pack(file, paths_as_written, include=include or ())
        results = results_folder(folder, package)
        server = JobsServer(jobs_server)
        server.check_free(package.name)
        say(f"{megabytes(package.size_bytes)} are sent: {', '.join(package.files)}")
        if package.there:
            say(
                f"expected on the cluster: {', '.join(f'{key} = {path}' for key, path in package.there.items())}"
            )
        job = server.submit(package, results, ["--resume"] * resume + ["--fresh"] * fresh)
    say(f"job {job.id}; results on the head: {job.folder}")
    if not detach:
        job = follow(server, job)
    else:
        say(f"follow it with: {server.command('logs', job)}")
    if as_json:
        print_json(job.to_json())
    if not detach:
        exit_as(job)


@command("logs", "logs digits --jobs-server http://localhost:8265", "logs digits --no-follow")
def logs(
    study: Submitted,
    jobs_server: JobsServer,
    follow_: Annotated[
        bool,
        typer.Option("--follow/--no-follow", help="Follow until the study ends, or show the log so far."),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Show the log of a submitted study.

    When the log is followed to its end, the exit code is the job's. With --json the log is on stderr as it comes, and
    in the document as a list of lines.
    """
    from prunefront.pipelines.cli.resolve import study_name
    from prunefront.pipelines.cluster.jobs import JobsServer

    server = JobsServer(jobs_server)
    job = server.find(study_name(study))
    if follow_:
        job = follow(server, job)
    else:
        sys.stdout.write(plain(server.log(job)))
    if as_json:
        print_json({**job.to_json(), "log": server.log(job).splitlines()})
    if follow_:
        exit_as(job)


@command("stop", "stop digits --jobs-server http://localhost:8265")
def stop(study: Submitted, jobs_server: JobsServer, as_json: AsJson = False) -> None:
    """Stop a submitted study; finished work is kept.

    The search ends as after Ctrl-C. `prunefront submit STUDY --resume` continues it.
    """
    from prunefront.pipelines.cli.resolve import study_name
    from prunefront.pipelines.cluster.jobs import JobsServer

    server = JobsServer(jobs_server)
    job = server.find(study_name(study))
    if job.over:
        say(f"job {job.id} had already ended: {job.state.lower()}")
    else:
        say(f"stopping job {job.id}")
        job = server.stop(job)
        say(f"{job.state.lower()}; finished work is kept in {job.folder} on the head; --resume continues")
    if as_json:
        print_json(job.to_json())


def follow(server: "jobs.JobsServer", job: "jobs.Job") -> "jobs.Job":
    """Shows a job's log until it ends; returns it as it is then. Ctrl-C ends the showing, not the job."""

    def write(text: str) -> None:
        sys.stdout.write(plain(text))
        sys.stdout.flush()

    def tell(line: str) -> None:
        say(line, err=True)

    try:
        ended = server.follow(job, write, tell)
    except KeyboardInterrupt:
        tell(
            f"no longer following; job {job.id} continues. Follow it with: {server.command('logs', job)}  "
            f"End it with: {server.command('stop', job)}"
        )
        raise typer.Exit(130) from None
    tell(f"job {ended.id}: {ended.outcome}")
    return ended


def exit_as(job: "jobs.Job") -> None:
    """Exits with the code of a job that ended, unless it succeeded."""
    from prunefront.pipelines.cluster.jobs import ENDED

    if job.state != "SUCCEEDED":
        raise typer.Exit(ENDED[job.state] if job.exit_code is None else job.exit_code or 1)


def submitted_status(study: str, jobs_server: str, *, as_json: bool) -> None:
    """Prints how a submitted study's job stands, and the end of its log."""
    from prunefront.pipelines.cli.resolve import study_name
    from prunefront.pipelines.cluster.jobs import JobsServer
    from prunefront.pipelines.events.display import format_duration

    server = JobsServer(jobs_server)
    job = server.find(study_name(study))
    last = [line for line in server.log(job).splitlines() if line.strip()][-LOG_LINES:]
    if as_json:
        print_json({**job.to_json(), "log": last})
        return
    rows = [("study", f"{job.study}: {job.state.lower()}"), ("job", job.id)]
    if job.started is not None:
        rows.append(("time", format_duration((job.ended or time.time()) - job.started)))
    rows += [("results", f"{job.folder} on the head"), *(("log", line) for line in last)]
    for name, value in rows:
        say(f"{name:<12}{value}")
