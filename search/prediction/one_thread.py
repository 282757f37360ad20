"""Linear algebra in one thread.

The matrices of a searcher are small, and the cores belong to the workers: BLAS with a thread for each core waits for
cores that others have, and took ten times as long beside busy workers. One thread also gives the same numbers
whatever the machine.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

Given = ParamSpec("Given")
Found = TypeVar("Found")


def one_thread(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """Decorator: BLAS has one thread while the function runs; afterwards as many as before."""

    @wraps(function)
    def limited(*args: Given.args, **options: Given.kwargs) -> Found:
        with _controller().limit(limits=1, user_api="blas"):
            return function(*args, **options)

    return limited


@cache
def _controller() -> Any:
    import scipy.linalg  # its BLAS is another one than numpy's, and only what is loaded is found
    from threadpoolctl import ThreadpoolController

    assert scipy.linalg
    return ThreadpoolController()
