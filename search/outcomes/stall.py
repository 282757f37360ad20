"""When a search has stopped to gain anything."""

from collections.abc import Sequence


def recent_gain(volumes: Sequence[float], patience: int) -> float | None:
    """By how much the last `patience` evaluations raised the hypervolume, as a share of what it is now.

    volumes: after each evaluation. None before there are more than `patience` of them; 0 where there is no volume yet.
    Raises ValueError for a patience below 1.
    """
    if patience < 1:
        raise ValueError(f"patience must be 1 or more, got {patience}")
    if len(volumes) <= patience:
        return None
    now, before = volumes[-1], volumes[-1 - patience]
    return (now - before) / now if now > 0 else 0.0


def stalled(volumes: Sequence[float], patience: int, min_gain: float) -> bool:
    """Whether the last `patience` evaluations gained less than `min_gain`; never before any volume was reached."""
    gain = recent_gain(volumes, patience)
    return gain is not None and volumes[-1] > 0 and gain < min_gain
