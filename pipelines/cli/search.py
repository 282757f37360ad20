"""`prunefront search`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli.app import (
    AsJson,
    Fresh,
    RayAddress,
    Resume,
    Study,
    command,
    print_json,
    say,
)


@command(
    "search",
    "search examples/digits.toml",
    "search digits --resume",
    "search study.toml --address auto --json > front.json",
)
def search(
    study: Study,
    resume: Resume = False,
    fresh: Fresh = False,
    address: RayAddress = None,
    without_ray: Annotated[
        bool, typer.Option("--without-ray", help="Do everything in this process, one candidate at a time.")
    ] = False,
    folder: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where results go. Default: `folder` in the study, else studies/."),
    ] = None,
    log_json: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Append one line of JSON per event to this file. - means stdout, as PRUNEFRONT_LOG=json does; other "
            "text then goes to stderr.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=1,
            max=65535,
            help="Where Ray on this machine exports metrics for Prometheus. Default: a free port.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search for smaller, faster versions of a network.

    Many candidates are scored without training, the promising ones fine-tuned, measured and published, and the Pareto
    front is reported. A study that has not been searched yet is named by its file.

    Ctrl-C or SIGTERM stops the search: finished work is kept, a partial front is written, and --resume continues. A
    second signal ends it at once.
    """
    from prunefront.pipelines.cli.resolve import study_config
    from prunefront.pipelines.cluster.stopping import exit_code, stop_on_signal
    from prunefront.pipelines.events.display import Display
    from prunefront.pipelines.events.log import STDOUT, json_lines, log_target
    from prunefront.pipelines.events.printing import people as console_for

    target = log_target(log_json)
    if as_json and target == STDOUT:
        raise PrunefrontError(
            "--json and events cannot both use stdout; give --log-json a file, or unset PRUNEFRONT_LOG"
        )
    people = console_for(stderr=target == STDOUT)
    config = study_config(study)
    if folder is not None:
        config = config.model_copy(update={"folder": Path(folder).expanduser()})
    try:
        with stop_on_signal(), json_lines(target):
            from prunefront.pipelines.study.run import next_steps, run

            rows = run(
                config,
                display=Display(people),
                address=address,
                resume=resume,
                fresh=fresh,
                metrics_port=metrics_port,
                without_ray=without_ray,
            )
    except (KeyboardInterrupt, SystemExit) as error:
        if (code := exit_code(error)) is None:
            raise
        say(f"stopped; continue with: prunefront search {shlex.quote(study)} --resume", err=True)
        raise typer.Exit(code) from None
    from prunefront.pipelines.cli.look import print_bounds, print_front

    print_front(rows, people)
    print_bounds(config.path, people)
    found_by = Path(study) if folder is None else config.path
    people.print(next_steps(config, found_by, rows), highlight=False, soft_wrap=True, markup=False)
    if as_json:
        print_json([row.to_json() for row in rows])
