"""BLAS has one thread inside a searcher's linear algebra, and the caller's number outside."""

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from prunefront.search.prediction.one_thread import one_thread


def threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@one_thread
def inside(fail: bool = False) -> set[int]:
    if fail:
        raise ValueError("on purpose")
    return threads()


def test_one_thread_inside_and_as_many_as_before_afterwards_also_after_an_error() -> None:
    with threadpool_limits(2, user_api="blas"):
        assert inside() == {1}
        assert threads() == {2}
        with pytest.raises(ValueError, match="on purpose"):
            inside(fail=True)
        assert threads() == {2}
