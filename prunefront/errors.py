"""Errors that a person can act on: what was asked, what is possible, what to do."""

from prunefront.text import one_line


class PrunefrontError(Exception):
    """Base of every error whose message is for the user: one line, no traceback, exit code 2."""

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
