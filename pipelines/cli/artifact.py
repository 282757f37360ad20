"""Commands on published networks: `fetch` one, `verify` it, `export` it."""

import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunefront.errors import PrunefrontError
from prunefront.pipelines.cli.app import (
    AsJson,
    Best,
    EndpointUrl,
    Replace,
    Require,
    Source,
    TrustedStudy,
    Under,
    command,
    console,
    parse_bounds,
    print_json,
    say,
)
from prunefront.pipelines.cli.complete import FORMATS, formats

if TYPE_CHECKING:
    from prunefront.pipelines.artifacts.verify import Verification

Artifact = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder of a fetched network.", show_default=False)
]


@command(
    "fetch",
    "fetch digits --under latency_ratio=0.5 -o best/",
    "fetch study.toml --key dense -o dense/",
    "fetch digits --require 'accuracy >= -1pt' --best latency_ms",
    "fetch s3://bucket/prefix --best size_bytes --under macs=1e7",
)
def fetch(
    source: Source,
    under: Under = None,
    require: Require = None,
    best: Best = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Key of one row of the front, instead of bounds.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write.")] = Path("best"),
    replace: Replace = False,
    endpoint_url: EndpointUrl = None,
    as_json: AsJson = False,
) -> None:
    """Fetch the best network of a front within bounds.

    STUDY|URI may also be the address of one artifact. The digest of every file is checked.

    Names: the metric, such as accuracy (0 to 1), latency_ms, latency_ratio (to the dense network), size_bytes, macs and
    params.
    """
    from prunefront.pipelines.study.fetch import fetch_best

    limits = parse_bounds(under or ())
    if replace:
        with in_place_of(out) as place:
            row, _ = fetch_best(source, limits, best, key, place, endpoint_url, require or ())
        folder = out.resolve()
    else:
        row, folder = fetch_best(source, limits, best, key, out, endpoint_url, require or ())
    if as_json:
        print_json({"row": row and row.to_json(), "folder": str(folder)})
    if row is not None:
        # timed against itself, the dense network's ratio is nothing but noise
        ratio = "" if row.is_dense else f" ({row.latency_ratio:.2f} of dense)"
        say(
            f"{row.key}: {row.metric.name} {row.quality:.4f}, {row.latency_ms:.3f} ms{ratio}, {row.macs:,} MACs, "
            f"{row.size_bytes:,} bytes"
        )
    say(f"written to {folder}; check it with: prunefront verify {shlex.quote(str(out))}")


@command(
    "verify",
    "verify best/",
    "verify best/ --study study.toml --json",
    "verify best/ --require 'accuracy >= -1pt' --require 'macs <= 1M'",
    "verify best/ --require 'latency_ms <= 60%' --dense dense/",
)
def verify(
    folder: Artifact,
    study: TrustedStudy = None,
    require: Require = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the fetched dense network, which relative requirements are beside.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a fetched network by measuring it again.

    Digests first, then the recorded quality and outputs. The exit code is 1 if something differs. With --require it is
    a gate: quality and latency are measured here, and the exit code is 3 if the network does not meet a bound.
    """
    from prunefront.pipelines.artifacts.verify import verify as check
    from prunefront.pipelines.cli.resolve import study_config

    trusted = study_config(study) if study is not None else None
    found = check(
        folder,
        factory=trusted.model if trusted else None,
        data=trusted.data if trusted else None,
        task=trusted.task if trusted else None,
        require=require or (),
        dense=dense,
    )
    if as_json:
        print_json(found.to_json())
    else:
        print_checks(found)
    if not found.met:
        raise typer.Exit(NOT_MET if found.ok else 1)


NOT_MET = 3
"""Exit code of `verify` for a network that is as it says, and does not meet a requirement."""


def print_checks(found: "Verification") -> None:
    """Prints each check, and each requirement, for people."""
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "recorded", "measured", "", box=None, padding=(0, 2, 0, 0))
    for item in found.checks:
        mark = Text("ok", style="green") if item.ok else Text("differs", style="red")
        # what an artifact says of itself is text, not markup
        table.add_row(item.name, Text(item.recorded), Text(item.measured), mark)
    console().print(table)
    for reason in found.skipped:
        say(f"not checked: {reason}")
    for required in found.required:
        say(f"{'met' if required.ok else 'NOT MET'}: {required.asked}: {required.found}")


@command("export", "export best/ --format onnx -o best.onnx", "export best/ --format int8 --float fc")
def export(
    folder: Artifact,
    to: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="|".join(FORMATS),
            help="Format to write; int8 is ONNX that computes in integers.",
            show_default=False,
            autocompletion=formats,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="File to write. Default: model.onnx, .pt2 or .xml here, model.int8.onnx for int8.",
        ),
    ] = None,
    replace: Replace = False,
    study: TrustedStudy = None,
    float_: Annotated[
        list[str] | None,
        typer.Option("--float", metavar="MODULE", help="For int8: a module that stays in float; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a fetched network in another format.

    The new file's outputs are compared with those of the network's own ONNX file before it is put in place.
    """
    from prunefront.pipelines.artifacts.convert import convert
    from prunefront.pipelines.cli.resolve import study_config

    trusted = study_config(study) if study is not None else None
    done = convert(
        folder,
        to,
        out,
        factory=trusted.model if trusted else None,
        data=trusted.data if trusted else None,
        exclude=tuple(float_ or ()),
        overwrite=replace,
    )
    if as_json:
        print_json(
            {
                "path": str(done.path),
                "format": to,
                "size_bytes": done.size_bytes,
                "difference": done.difference,
            }
        )
    say(str(done))


@contextmanager
def in_place_of(out: Path) -> Iterator[Path]:
    """A free place for an artifact, which takes that of the one at `out` once it is whole.

    Raises PrunefrontError where `out` holds anything but an artifact, which nobody means to lose.
    """
    from prunefront.pipelines.artifacts.manifest import FILES, MANIFEST

    out = out.resolve()
    if out.exists():
        names = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name]
        foreign = [name for name in names if name not in (*FILES, MANIFEST)]
        if foreign or (names and MANIFEST not in names):
            raise PrunefrontError(
                f"{out} holds {', '.join(foreign[:3]) or 'no whole artifact'}, and --replace replaces only a fetched "
                "network; choose another folder"
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as beside:
        new, old = Path(beside) / "new", Path(beside) / "old"
        yield new
        if out.exists():
            os.replace(out, old)
        os.replace(new, out)
