"""Linear algebra in one thread.

The matrices of a searcher are small, and the cores belong to the workers. BLAS with a thread for each core waits for
cores that are in use, and took ten times as long beside busy workers. One thread also gives the same numbers on every
machine.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def one_thread(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorator that gives BLAS one thread while the function runs, and afterwards as many as before."""

    @wraps(function)
    def limited(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
        with _controller().limit(limits=1, user_api="blas"):
            return function(*args, **options)

    return limited


@cache
def _controller() -> Any:
    import scipy.linalg  # its BLAS differs from numpy's, and the controller finds only libraries that are loaded
    from threadpoolctl import ThreadpoolController

    assert scipy.linalg
    return ThreadpoolController()
