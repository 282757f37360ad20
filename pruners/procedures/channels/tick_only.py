"""Tick-Tock without the Tocks in between: an ablation (You et al. 2019, 1909.08174)."""

from collections.abc import Iterator

from prunefront.pruners.procedures import Phase, procedure
from prunefront.pruners.procedures.channels.tick_tock import run_ticks
from prunefront.pruners.procedures.run import Run


@procedure(
    "tick_only",
    choose="to learn what the Tocks are worth; otherwise tick_tock",
    paper="You et al. 2019, 1909.08174",
)
def tick_only(
    run: Run,
    ticks: int = 30,
    tick_share: float = 0.2,
    tock_share: float = 0.2,
    strength: float = 1e-3,
) -> Iterator[Phase]:
    """Runs Tick-Tock's ablation: one Tock, then only Ticks, then the last fine-tuning.

    Options as in tick_tock; `tock_share` is that of the only Tock.
    """
    yield from run_ticks("tick_only", run, ticks, ticks, tick_share, tock_share, strength)
