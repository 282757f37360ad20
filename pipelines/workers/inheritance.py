"""Inherited weights in the first stage: who starts from whose, and which are kept; on the driver and on its disk."""

from collections.abc import Callable, Collection, Container
from dataclasses import dataclass
from pathlib import Path

from prunefront.atomic import write_whole
from prunefront.errors import PrunefrontError
from prunefront.pruners.cut.inherit import can_hand_on
from prunefront.pruners.graph.pruning_plan import PruningPlan
from prunefront.reading import LARGEST_WEIGHTS, read_bytes
from prunefront.search.outcomes.measurement import Measurement, Outcome
from prunefront.search.space.candidate import Candidate

KEPT = 64
"""So many of the latest networks' weights are kept, and so many of the front's."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A trained network that another starts from. weights: its state dict as safetensors."""

    plan: PruningPlan
    weights: bytes


class Inheritance:
    """Networks by the key of their plan.

    Who starts from whom, and what is kept, follows from the order of asks and tells alone, thus from the journal. Where
    a file is gone or broken, the children that were to start from it start from the dense network.
    """

    def __init__(
        self,
        folder: Path,
        front: Container[str],
        say: Callable[[str], None],
        *,
        kept: int = KEPT,
    ) -> None:
        """folder: for the weights. front: whether a key is on the front by now. kept: as KEPT."""
        self._folder, self._front, self._say, self._most = folder, front, say, kept
        self._realised: dict[str, str] = {}  # candidate key -> plan key, of all that were scored
        self._plans: dict[str, PruningPlan] = {}  # of those whose weights are kept, oldest first
        self._starts: dict[str, str] = {}  # of those that are awaited: whose weights they start from
        self._waiting: dict[str, PruningPlan] = {}
        self._from_dense: set[str] = set()  # awaited ones whose parent's weights could not be had after all

    def start(self, candidate: Candidate) -> str:
        """The network that a new candidate starts from, "" = the dense one."""
        parent = self._realised.get(candidate.parent, "")
        return parent if parent in self._plans else ""

    def knows(self, key: str) -> bool:
        """Tells whether a network can start from this one."""
        return key in self._plans

    def expect(self, plan: PruningPlan, start: str) -> None:
        """Notes that a network is to be scored. start: as `start` gave it, or the journal has it."""
        self._waiting[plan.key()] = plan
        self._starts[plan.key()] = start

    def parent(self, key: str) -> Parent | None:
        """Returns what an awaited network starts from; None = dense. Says so where it should have been another."""
        start = self._starts[key]
        if not start:
            return None
        path = self._path(start)
        try:
            return Parent(self._plans[start], read_bytes(path, limit=LARGEST_WEIGHTS))
        except OSError as error:
            self.refuse(key, f"{path} cannot be read: {error.strerror}")
            return None

    def refuse(self, key: str, reason: str) -> None:
        """Notes, and says, that an awaited network starts from the dense one all the same."""
        self._from_dense.add(key)
        self._say(f"{key} starts from the dense network, not from its parent {self._starts[key]}: {reason}")

    def inherited(self, key: str) -> bool:
        """Tells whether an awaited network started from another than the dense one."""
        return bool(self._starts[key]) and key not in self._from_dense

    def write(self, key: str, weights: bytes) -> None:
        """Keeps a network's trained weights, in one step; before anybody is told of it. Raises PrunefrontError."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(key), lambda file: file.write(weights))
        except OSError as error:
            raise PrunefrontError(
                f"the weights of {key} cannot be kept in {self._folder}: {error.strerror}; make room there and "
                "continue with --resume, or set scoring.train_images = 0 and start again"
            ) from error

    def settle(self, key: str, candidates: Collection[Candidate], outcome: Outcome) -> None:
        """Takes note of an outcome, and of who asked for it; drops weights that may no longer be anyone's start."""
        self._starts.pop(key)
        self._from_dense.discard(key)
        plan = self._waiting.pop(key)
        for candidate in candidates:
            self.note(candidate, key)
        if isinstance(outcome, Measurement) and can_hand_on(plan):
            self._plans[key] = plan
        latest = list(self._plans)
        best = [k for k in latest if k in self._front]
        keep = {*latest[-self._most :], *best[-self._most :], *self._starts.values()}
        for old in [k for k in latest if k not in keep]:
            del self._plans[old]
            self._path(old).unlink(missing_ok=True)

    def note(self, candidate: Candidate, key: str) -> None:
        """Notes which network a candidate came down to, so that it may be named as a parent."""
        self._realised[candidate.key()] = key

    def tidy(self) -> None:
        """Deletes files that belong to no kept network, as a killed run leaves them."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.stem not in self._plans or path.suffix != ".safetensors":
                    path.unlink()

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"
