"""Tells errors that Ray raises from our own."""

from types import TracebackType


def raised_by_ray(error: BaseException) -> bool:
    """Tells whether Ray raised an error: its class is Ray's, or Ray's code raised it, whatever its class.

    Ray raises plain Exception, RuntimeError and AssertionError too, as `ray.init` does on a machine that is busy.
    """
    if type(error).__module__.partition(".")[0] == "ray":
        return True
    return _innermost(error.__traceback__).partition(".")[0] == "ray"


def _innermost(traceback: TracebackType | None) -> str:
    """Returns the name of the module in which an error was raised."""
    name = ""
    while traceback is not None:
        name = str(traceback.tb_frame.f_globals.get("__name__", ""))
        traceback = traceback.tb_next
    return name
