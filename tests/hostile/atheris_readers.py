"""Coverage-guided bytes for the readers of files, with atheris, where it can be had:

    pip install atheris
    python tests/hostile/atheris_readers.py -max_total_time=60          # all readers, or one: READER=parquet

A crash is whatever is not a PrunefrontError or what a reader's docstring names; the input is then kept in a file.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pipelines", "pruners", "search", "json", "tomllib", "safetensors"]):
    from prunefront.errors import PrunefrontError
    from prunefront.pipelines.artifacts.manifest import Manifest
    from prunefront.pipelines.config.read import load
    from prunefront.pipelines.data import parquet
    from prunefront.pipelines.formats.weights import read_state_dicts, unpack_weights
    from prunefront.pipelines.journal.journal import read_events
    from prunefront.pipelines.stages.latency_table import read
    from prunefront.pruners.saved import read_plan
    from prunefront.strict_json import loads

FOLDER = Path(tempfile.mkdtemp(prefix="prunefront-atheris-"))


def from_file(name: str, read_file: Callable[[Path], object]) -> Callable[[bytes], object]:
    def run(content: bytes) -> object:
        (FOLDER / name).write_bytes(content)
        return read_file(FOLDER / name)

    return run


def strict_json(content: bytes) -> None:
    try:
        loads(content)
    except ValueError:
        return


READERS: dict[str, Callable[[bytes], object]] = {
    "json": strict_json,
    "toml": from_file("s.toml", load),
    "journal": from_file("j.jsonl", lambda path: read_events(path)),
    "manifest": lambda content: Manifest.parse(content.decode(errors="replace"), source="x"),
    "plan": from_file("plan.json", read_plan),
    "table": from_file("t.json", read),
    "safetensors": from_file("w.safetensors", read_state_dicts),
    "packed": unpack_weights,
    "torch": from_file("w.pt", read_state_dicts),
    "parquet": from_file("p.parquet", parquet._open),
}
CHOSEN = [READERS[os.environ["READER"]]] if "READER" in os.environ else list(READERS.values())


def one_input(content: bytes) -> None:
    for reader in CHOSEN:
        try:
            reader(content)
        except PrunefrontError as error:
            if not str(error).isprintable():
                raise ValueError("an error that is no text for a terminal") from error


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
