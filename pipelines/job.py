"""Runs one search on a cluster: `ray submit cluster.yaml pipelines/job.py study.toml`.

`ray submit` copies this one file to the home folder of the cluster's head and runs it there. So the file imports
nothing of ours before it has changed to the folder that `ray up` copied the project to. Its arguments are those of
`prunefront search`. When one begins with a dash, all go after `--`, as in `ray submit cluster.yaml pipelines/job.py --
study.toml --resume`.
"""

import os
import sys
from pathlib import Path

PROJECT = Path("~/prunefront").expanduser()
"""Folder into which cluster.yaml's file_mounts put the project; relative paths in the arguments begin here."""


def cli_arguments(given: list[str], project: Path) -> list[str]:
    """Returns the arguments of `prunefront` for a search on the cluster whose head this machine is.

    Raises FileNotFoundError, whose text says what to do, if the project or the study is not here.
    """
    if not project.is_dir():
        raise FileNotFoundError(
            f"{project} is not on this machine; `ray submit` runs this file, after `ray up`"
        )
    for argument in given:
        if argument.endswith(".toml") and not (project / argument).is_file():
            raise FileNotFoundError(
                f"{argument} is not on the cluster's head, which has what file_mounts in cluster.yaml name; "
                f"copy it there: ray rsync-up cluster.yaml {argument} '~/prunefront/{argument}'"
            )
    return ["search", *given, "--address", "auto"]


def main() -> None:
    """Runs the search and ends with its exit code, which is 2 where the project or the study is not here."""
    try:
        arguments = cli_arguments(sys.argv[1:], PROJECT)
    except FileNotFoundError as error:
        sys.stderr.write(f"job.py: {error}\n")
        sys.exit(2)
    os.chdir(PROJECT)
    sys.path[0] = str(PROJECT)  # was the home folder, where anything may lie
    sys.argv = ["prunefront", *arguments]

    from prunefront.pipelines.cli.main import main as prunefront

    prunefront()


if __name__ == "__main__":
    main()
