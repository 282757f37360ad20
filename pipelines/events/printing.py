"""The one place that prints: text of any origin comes out as text, in whatever encoding and into whatever is there."""

import codecs
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from prunefront.text import plain

if TYPE_CHECKING:
    from rich.console import Console

LONGEST_LINE = 1000
"""Width of a table, in characters, where there is no window."""

ERRORS = "prunefront-ascii"
"""Name of the handler of characters that an encoding lacks."""

ASCII = str.maketrans(
    {
        "×": "x", "÷": "/", "±": "+-", "–": "-", "—": "-", "−": "-", "…": "...", "→": "->", "≤": "<=", "≥": ">=",
        "≈": "~", "“": '"', "”": '"', "‘": "'", "’": "'", "•": "*", "µ": "u", "²": "2", "³": "3", "\u00a0": " ",
        "─": "-", "━": "-", "╺": "-", "╸": "-", "│": "|", "✓": "ok", "⌈": "ceil(", "⌉": ")",
    }
)  # fmt: skip
"""Character -> its stand-in where only ASCII can be written."""


def write_anywhere(streams: Iterable[TextIO] | None = None) -> None:
    """Makes streams write plain ASCII where their encoding lacks a character, in place of an error.

    streams: None = standard output and standard error.
    """
    codecs.register_error(ERRORS, _replace)
    for stream in (sys.stdout, sys.stderr) if streams is None else streams:
        reconfigure = getattr(stream, "reconfigure", None)  # not where a test or a notebook has put its own
        if reconfigure is not None:
            reconfigure(errors=ERRORS)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(ASCII)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def write_line(line: str, stream: TextIO, *, prefix: str = "") -> None:
    """Writes a text and a line end; what a terminal would obey is escaped. prefix: our own, which may have colours."""
    stream.write(f"{prefix}{plain(line)}\n")
    stream.flush()


def colours(stream: TextIO) -> bool:
    """Tells whether a stream is a terminal that may have colours: NO_COLOR, set to anything, forbids them."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def people(*, stderr: bool = False, quiet: bool = False, **options: Any) -> "Console":
    """Returns a console for people, which takes nothing for markup, emoji or commands to a terminal but our styles.

    options: see `rich.console.Console`. In a pipe or a file, a line is as long as its text, unless COLUMNS says
    otherwise: nobody looks at it through a window, and a program would read half of a cell.
    """
    from rich.console import Console
    from rich.segment import Segment

    class People(Console):
        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                # what rich itself says to the terminal is marked as such
                yield segment if segment.control else segment._replace(text=plain(segment.text))

    console = People(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False, **options)
    if not console.is_terminal and "width" not in options and not os.environ.get("COLUMNS"):
        console.width = LONGEST_LINE
    return console
