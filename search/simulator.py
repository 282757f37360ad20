"""Simulation of a study on a virtual clock: thousands of trials in seconds, with slow, dying and late workers."""

import heapq
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Literal, TypeVar

import numpy as np

from prunefront.errors import PrunefrontError
from prunefront.search.outcomes.front import ParetoFront
from prunefront.search.outcomes.measurement import Failure, Measurement, NotFinite, Outcome
from prunefront.search.searchers.searcher import Searcher
from prunefront.search.space.candidate import Candidate
from prunefront.search.space.problem import Problem

Job = TypeVar("Job")

MOST_DUPLICATES = 200
"""Number of known proposals in a row after which the space counts as exhausted."""


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers of a simulated study, and their faults. Raises PrunefrontError for impossible values.

    count: number of workers. seconds: duration of a job, for all or by candidate. spread: standard deviation of the
    logarithm of a factor on the duration, drawn for each job. slow: worker, counted from 0 -> factor on its durations.
    failures: share of jobs in which the worker dies, at a moment drawn evenly. rerun: True runs the candidate again on
    the replacement; False tells it as a `crashed` Failure, as the real pool does. restart: seconds until the
    replacement can work. late: share of results that reach the driver, and so free their worker, `delay` seconds after
    their end. twice: share of results that come once more, `delay` seconds later.
    """

    count: int = 8
    seconds: float | Callable[[Candidate], float] = 1.0
    spread: float = 0.0
    slow: Mapping[int, float] = field(default_factory=dict)
    failures: float = 0.0
    rerun: bool = False
    restart: float = 0.0
    late: float = 0.0
    twice: float = 0.0
    delay: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise PrunefrontError(f"a study needs at least one worker, got {self.count}")
        if not callable(self.seconds) and not 0.0 < self.seconds < math.inf:
            raise PrunefrontError(f"a job takes more than 0 seconds and ends, got {self.seconds}")
        for name in ("failures", "late", "twice"):
            share = getattr(self, name)
            if not 0.0 <= share <= 1.0:
                raise PrunefrontError(f"{name} is a share of the jobs, from 0 to 1, got {share}")
        if self.rerun and self.failures == 1.0:
            raise PrunefrontError("where every job dies and runs again, none ends: let failures be below 1")
        for name in ("spread", "restart", "delay"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise PrunefrontError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")
        for worker, factor in self.slow.items():
            if not 0 <= worker < self.count or not 0.0 < factor < math.inf:
                raise PrunefrontError(
                    f"slow says that worker {worker} takes {factor} times as long; workers are 0 to "
                    f"{self.count - 1}, and the factor is above 0"
                )


@dataclass(frozen=True, slots=True)
class Result(Generic[Job]):
    """A worker's result. seconds: of its last computation. again: True if the result has come before."""

    name: str
    job: Job
    worker: int
    seconds: float
    again: bool


class VirtualPool(Generic[Job]):
    """Workers with the interface of the real pool (`free`, `in_flight`, `submit`, `next`), on a clock that jumps.

    now: seconds since the start. died: number of workers lost. The draws for a job follow from (seed, number of the
    job).
    """

    def __init__(
        self,
        evaluate: Callable[[Job], Outcome],
        workers: Workers,
        *,
        seed: int = 0,
        seconds: Callable[[Job], float] = lambda _: 1.0,
    ) -> None:
        """Starts the workers.

        evaluate: called when a result is handed over; its errors pass through, but NotFinite becomes a Failure.
        seconds: duration of a job on a worker that is not slow.
        """
        self.workers = workers
        self.now = 0.0
        self.died = 0
        self.in_flight = 0
        self._evaluate, self._seconds, self._seed = evaluate, seconds, seed
        self._free = list(range(workers.count))
        self._ready = [0.0] * workers.count
        self._spans: list[tuple[int, float, float]] = []  # worker, start and end of each computation
        self._numbers = count()
        self._coming: list[tuple[float, int, Result[Job], Failure | None]] = []  # a heap

    @property
    def free(self) -> int:
        """Number of idle workers."""
        return len(self._free)

    @property
    def coming(self) -> float:
        """Moment of the next result; infinite if none is on its way."""
        return self._coming[0][0] if self._coming else math.inf

    def busy(self, until: float) -> tuple[float, ...]:
        """Returns the seconds that each worker computed before `until`, lost computations included."""
        seconds = [0.0] * self.workers.count
        for worker, start, end in self._spans:
            seconds[worker] += max(0.0, min(end, until) - start)
        return tuple(seconds)

    def submit(self, name: str, job: Job) -> None:
        """Starts a job on the worker that was freed last, as the real pool does."""
        w, worker, number = self.workers, self._free.pop(), next(self._numbers)
        rng = np.random.default_rng([self._seed, number])
        usual = self._seconds(job) * w.slow.get(worker, 1.0)
        at, lost = max(self.now, self._ready[worker]), None
        while True:
            takes = usual * math.exp(w.spread * rng.standard_normal())
            dies = rng.random() < w.failures
            end = at + (takes * rng.random() if dies else takes)
            self._spans.append((worker, at, end))
            start, at = at, end
            if not dies:
                break
            self.died += 1
            if not w.rerun:
                lost = Failure("crashed", f"the process of worker {worker} died")
                self._ready[worker] = at + w.restart
                break
            at += w.restart
        if rng.random() < w.late:
            at += w.delay
        self.in_flight += 1
        heapq.heappush(self._coming, (at, number, Result(name, job, worker, end - start, False), lost))
        if rng.random() < w.twice:
            again = Result(name, job, worker, end - start, True)
            heapq.heappush(self._coming, (at + w.delay, next(self._numbers), again, lost))

    def next(self, timeout: float = math.inf) -> tuple[str, Outcome, float] | None:
        """Waits for the first result and returns its name, outcome and seconds; None after `timeout` seconds."""
        found = self.take(timeout)
        return None if found is None else (found[0].name, found[1], found[0].seconds)

    def take(self, timeout: float = math.inf) -> tuple[Result[Job], Outcome] | None:
        """Waits as `next` and returns the whole result with its outcome."""
        if self.coming - self.now > timeout:
            self.now += timeout
            return None
        at, _, result, lost = heapq.heappop(self._coming)
        self.now = max(self.now, at)
        if not result.again:
            self.in_flight -= 1
            self._free.append(result.worker)
        if lost is not None:
            return result, lost
        try:
            return result, self._evaluate(result.job)
        except NotFinite as error:
            return result, Failure("not_finite", str(error))

    def wait(self, seconds: float) -> None:
        """Moves the clock while the driver is busy; results that come meanwhile wait for it."""
        self.now += seconds


Kind = Literal["asked", "known", "impossible", "told", "again", "late"]


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a simulated study.

    at: virtual seconds. key: of the realised architecture, "" if there is none. outcome: None for `asked`. kind:

    - `asked`: proposed, and sent to a worker unless the same architecture is with one
    - `known`, `impossible`: proposed and told at once
    - `told`: a worker's result, told for all candidates of that architecture
    - `again`: a result that had come before
    - `late`: a result that came after the end
    """

    at: float
    kind: Kind
    key: str
    candidate: Candidate
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class History:
    """The record of a simulated study.

    seconds: virtual, from start to end. busy: seconds that each worker computed. driver: seconds of ask and tell. died:
    number of workers lost. exhausted: True if the study ended for lack of new proposals.
    """

    events: tuple[Event, ...]
    seconds: float
    busy: tuple[float, ...]
    driver: float
    died: int
    exhausted: bool

    @property
    def told(self) -> list[Event]:
        """One event for each architecture that was paid for, in order."""
        return [e for e in self.events if e.kind == "told"]

    @property
    def duplicates(self) -> int:
        """Number of proposals of an architecture that was known or being scored."""
        proposed = [e for e in self.events if e.kind in ("asked", "known")]
        return len(proposed) - len({e.key for e in proposed})

    @property
    def busy_share(self) -> float:
        """Share of all workers' time that they computed; 0 for a study of no length."""
        return sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds > 0 else 0.0


def simulate(
    searcher: Searcher,
    evaluate: Callable[[Candidate], Outcome],
    workers: Workers,
    *,
    budget: int,
    seed: int = 0,
    realise: Callable[[Candidate], str] = Candidate.key,
    until: float = math.inf,
    driver: float | None = 0.0,
) -> History:
    """Runs a study's first stage as `stages.scoring_loop` does, on virtual workers, to `budget` architectures.

    evaluate: its errors pass through, but NotFinite becomes a Failure. realise: returns the key of a candidate's
    architecture, and equal ones are paid for once; its PrunefrontError is told as an `impossible` Failure. until:
    virtual seconds after which nothing is asked or counted; later results are still told, as `late`. driver: virtual
    seconds that the driver is busy with each proposal; None = the real time of each ask and tell. With a number
    everything follows from `seed`; with None no two runs are alike.

    Unlike the real stage it goes on if the first candidates all fail.
    """
    takes = workers.seconds
    pool: VirtualPool[Candidate] = VirtualPool(
        evaluate, workers, seed=seed, seconds=takes if callable(takes) else lambda _: takes
    )
    stage = _Stage(searcher, pool, realise, driver)
    duplicates, stopped = 0, False
    while len(stage.outcomes) < budget:
        while (
            pool.free
            and pool.now < until
            and len(stage.outcomes) + len(stage.waiting) < budget
            and duplicates < MOST_DUPLICATES
        ):
            candidate = stage.ask()
            if candidate is None:
                break
            duplicates = 0 if stage.expect(candidate) else duplicates + 1
        if max(pool.now, pool.coming if pool.in_flight else 0.0) >= until:
            stopped = True
            break
        if not pool.in_flight:
            break
        stage.settle()
    end = until if stopped else min(pool.now, until)
    done = len(stage.outcomes)
    while math.isfinite(pool.coming):
        stage.settle(ended=True)
    return History(
        events=tuple(stage.events),
        seconds=end,
        busy=pool.busy(end),
        driver=stage.driver_seconds,
        died=pool.died,
        exhausted=done < budget and not stopped,
    )


class _Stage:
    """The bookkeeping of the stage: what `screening.Screening` does with a journal, on the virtual clock."""

    def __init__(
        self,
        searcher: Searcher,
        pool: VirtualPool[Candidate],
        realise: Callable[[Candidate], str],
        driver: float | None,
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.waiting: dict[str, list[Candidate]] = {}
        self.events: list[Event] = []
        self.driver_seconds = 0.0
        self._searcher, self._pool, self._realise, self._driver = searcher, pool, realise, driver
        self._asked_for: dict[str, list[Candidate]] = {}

    def ask(self) -> Candidate | None:
        with self._charged(0.0 if self._driver is None else self._driver):
            return self._searcher.ask()

    def expect(self, candidate: Candidate) -> bool:
        """Submits a new architecture and returns True; tells a known or impossible one, and returns False."""
        try:
            key = self._realise(candidate)
        except PrunefrontError as error:
            self._tell(candidate, "", Failure("impossible", str(error)), "impossible")
            return False
        if key in self.outcomes:
            self._tell(candidate, key, self.outcomes[key], "known")
            return False
        self._note("asked", key, candidate, None)
        self.waiting.setdefault(key, []).append(candidate)
        if len(self.waiting[key]) > 1:
            return False
        self._pool.submit(key, candidate)
        return True

    def settle(self, *, ended: bool = False) -> None:
        """Takes the next result. ended: the study is over, so the result is told but does not count."""
        found = self._pool.take()
        assert found is not None
        result, outcome = found
        if not result.again:
            self._asked_for[result.name] = self.waiting.pop(result.name)
            if not ended:
                self.outcomes[result.name] = outcome
        kind: Kind = "late" if ended else "again" if result.again else "told"
        first, *others = self._asked_for[result.name]
        self._tell(first, result.name, outcome, kind)
        for candidate in others:
            with self._charged():
                self._searcher.tell(candidate, outcome)

    def _tell(self, candidate: Candidate, key: str, outcome: Outcome, kind: Kind) -> None:
        self._note(kind, key, candidate, outcome)
        with self._charged():
            self._searcher.tell(candidate, outcome)

    def _note(self, kind: Kind, key: str, candidate: Candidate, outcome: Outcome | None) -> None:
        self.events.append(Event(self._pool.now, kind, key, candidate, outcome))

    @contextmanager
    def _charged(self, seconds: float = 0.0) -> Iterator[None]:
        """Charges the driver's time inside the block to the virtual clock."""
        start = time.perf_counter()
        yield
        if self._driver is None:
            seconds = time.perf_counter() - start
        self.driver_seconds += seconds
        self._pool.wait(seconds)


@dataclass(frozen=True, slots=True)
class Step:
    """State after a number of evaluations.

    at: virtual seconds. front: size of the front. hypervolume: relative, from 0 to 1.
    """

    evaluations: int
    at: float
    front: int
    hypervolume: float


def progress(told: Sequence[Event], problem: Problem, reference: Mapping[str, float]) -> list[Step]:
    """Returns one step per evaluation. told: of a `History`. reference: as from `front.reference_point`."""
    front = ParetoFront(problem.objectives, problem.constraints)
    steps: list[Step] = []
    size, volume = 0, 0.0
    for number, event in enumerate(told, 1):
        if isinstance(event.outcome, Measurement):
            joined = front.add(event.key, event.outcome)
            if joined or len(front) != size:
                size, volume = len(front), front.relative_hypervolume(reference)
        steps.append(Step(number, event.at, size, volume))
    return steps
