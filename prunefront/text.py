"""Pieces that many messages share: a text on one line, the first line of an error, the name that was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 2000
"""Largest length of a message, in characters; a message that lists more than fits says too much."""


def one_line(said: BaseException | str, limit: int = LONGEST) -> str:
    """Returns a text, or an error's message, as a terminal or a log may show it: on one line.

    What a terminal would obey is escaped, since messages quote names from files that are not trusted. A line longer
    than `limit` characters loses its middle. An error without a message gives the name of its type.
    """
    text = str(said)
    if isinstance(said, BaseException) and not text.strip():
        text = type(said).__name__
    if len(text) > 4 * limit:
        text = f"{text[: 2 * limit]} … {text[-2 * limit :]}"
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if len(line) <= limit:
        return line
    head = limit * 2 // 3
    return f"{line[: head - 3]} … {line[head - limit :]}"


def plain(text: str) -> str:
    """Returns a text of any number of lines as a terminal may show it: other control characters are escaped.

    So are characters that turn the direction of writing, and half surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t\u00a0" else c.encode("unicode_escape").decode() for c in text
    )


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message that is not blank; the name of its type where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def with_colon(name: str) -> str:
    """Returns "did you mean 'module:name'? " for "module.name", which Python writes otherwise; "" for other texts."""
    module, dot, last = name.rpartition(".")
    if not dot or not all(part.isidentifier() for part in (*module.split("."), last)):
        return ""
    return f"did you mean '{module}:{last}'? "


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns "did you mean 'x'? " for the known name nearest to `name`, "" where none is near.

    It stands between the complaint and the list of what is possible: "no … is called 'xx'; did you mean 'x'? known:
    x, y". Upper and lower case count as equal, and "size" is near "size_bytes".
    """
    folded = {other.casefold(): other for other in known}
    asked = name.casefold()
    near = get_close_matches(asked, folded, n=1) or [f for f in folded if f.startswith(f"{asked}_")]
    return f"did you mean {folded[near[0]]!r}? " if near else ""
