"""Runs one search on a cluster: `ray submit cluster.yaml pipelines/job.py study.toml`.

`ray submit` copies this one file to the head's home folder and runs it there. It therefore imports nothing of ours
before it has changed to the folder with the studies. Its arguments are those of `prunefront search`. When one begins
with a dash, all go after `--`, as in `ray submit cluster.yaml pipelines/job.py -- study.toml --resume`.
"""

import os
import sys
from pathlib import Path

PROJECT = Path("~/prunefront").expanduser()
"""Folder to which cluster.yaml's file_mounts copy studies and the person's own modules.

Relative paths in the arguments begin here. prunefront itself is installed from another folder: here its `search` and
`pipelines` would hide modules of the person with these names.
"""


def cli_arguments(given: list[str], project: Path) -> list[str]:
    """Returns the arguments of `prunefront` for a search on the cluster that runs on this machine.

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
    """Runs the search and exits with its code, or with 2 where the project or the study is not here."""
    try:
        arguments = cli_arguments(sys.argv[1:], PROJECT)
    except FileNotFoundError as error:
        sys.stderr.write(f"job.py: {error}\n")
        sys.exit(2)
    os.chdir(PROJECT)
    sys.path[0] = str(PROJECT)  # instead of the home folder, where anything may lie
    sys.argv = ["prunefront", *arguments]

    from prunefront.pipelines.cli.main import main as prunefront

    prunefront()


if __name__ == "__main__":
    main()
