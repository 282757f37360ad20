"""`prunefront ui`."""

from typing import Annotated

import typer

from prunefront.pipelines.cli.app import STUDY, AsJson, command, print_json, say


@command("ui", "ui digits", "ui study.toml --port 5001")
def ui(
    study: Annotated[str | None, STUDY] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, metavar="PORT", help="Port to serve the pages at.")
    ] = 5000,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address of this machine to listen on: 127.0.0.1 or ::1.")
    ] = "127.0.0.1",
    as_json: AsJson = False,
) -> None:
    """Serve MLflow's pages on a study's records.

    Without STUDY it serves those of the study that was searched last. Ctrl-C ends the server. If the study records to
    an MLflow server, its address is printed, and nothing is served.
    """
    from prunefront.pipelines.cli.mlflow_ui import serve
    from prunefront.pipelines.study.find import tracking_uri

    def on_ready(address: str) -> None:
        if as_json:
            print_json({"address": address})

    serve(tracking_uri(study), port=port, host=host, say=say, on_ready=on_ready)
