"""Errors that a person can act on: what was asked, what is possible, what to do."""

LONGEST = 2000
"""Characters of a message; who lists more than fits says too much."""


def one_line(text: str, most: int = LONGEST) -> str:
    """The text as a terminal or a log may have it: one line, whatever obeys a terminal escaped, the middle of what is
    longer than `most` characters left out. Names from a file that is not trusted are quoted in messages."""
    if len(text) > 4 * most:
        text = f"{text[: 2 * most]} … {text[-2 * most :]}"
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if len(line) <= most:
        return line
    head = most * 2 // 3
    return f"{line[: head - 3]} … {line[head - most :]}"


class PrunefrontError(Exception):
    """Base of every error whose message is meant for the user: one line, no traceback, exit code 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class UnsupportedOp(PrunefrontError):
    """The forward pass holds an operator without a channel rule."""


class NotTraceable(PrunefrontError):
    """`torch.export` could not turn the model into a graph."""


class RatioError(PrunefrontError):
    """A requested ratio cannot be carried out."""


class UnknownName(PrunefrontError):
    """A registry was asked for a name that it does not hold."""
