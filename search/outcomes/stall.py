"""Detection of a search that no longer gains."""

from collections.abc import Sequence


def recent_gain(volumes: Sequence[float], patience: int) -> float | None:
    """Returns the gain of the last `patience` evaluations in hypervolume, as a share of the present one.

    volumes: hypervolume after each evaluation. Returns None for at most `patience` of them, and 0 while the hypervolume
    is 0. Raises ValueError for a patience below 1.
    """
    if patience < 1:
        raise ValueError(f"patience must be 1 or more, got {patience}")
    if len(volumes) <= patience:
        return None
    now, before = volumes[-1], volumes[-1 - patience]
    return (now - before) / now if now > 0 else 0.0


def stalled(volumes: Sequence[float], patience: int, min_gain: float) -> bool:
    """Returns True if the last `patience` evaluations gained less than `min_gain`; never while the hypervolume is 0."""
    gain = recent_gain(volumes, patience)
    return gain is not None and volumes[-1] > 0 and gain < min_gain
