"""Errors that a person can act on: what was asked, what is possible, what to do."""


class PrunefrontError(Exception):
    """Base of every error whose message is meant for the user: one line, no traceback, exit code 2."""


class UnsupportedOp(PrunefrontError):
    """The forward pass holds an operator without a channel rule."""


class NotTraceable(PrunefrontError):
    """`torch.export` could not turn the model into a graph."""


class RatioError(PrunefrontError):
    """A requested ratio cannot be carried out."""


class UnknownName(PrunefrontError):
    """A registry was asked for a name that it does not hold."""
