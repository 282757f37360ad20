"""Progress on a person's terminal while a study runs: candidates done, front size, hypervolume, time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column


class Display:
    """Shows a live bar for each stage on a terminal, and a plain line now and then in a file or a log."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.on_say: Callable[[str], None] = lambda line: None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._label = ""
        self._total = 0
        self._printed = -1.0

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self.on_say(line)
        # a failure's reason is text, whatever brackets it holds
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    @contextmanager
    def stage(self, label: str, total: int, done: int = 0) -> Iterator[None]:
        """Shows a stage of `total` candidates within. done: number of them that an earlier run finished."""
        self._label, self._total, self._printed = label, total, (done / total if done else -1.0)
        if not self.console.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24 if self.console.width >= 100 else 10),
            MofNCompleteColumn(),
            TextColumn(
                "{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
            ),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            self._progress, self._task = (
                progress,
                progress.add_task(label, total=total, completed=done, note=""),
            )
            yield
        self._progress = self._task = None

    def update(self, done: int, note: str) -> None:
        """Shows that `done` candidates of the stage are finished. note: state of the front."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)
        elif done == self._total or done / max(self._total, 1) - self._printed >= 0.2:
            self._printed = done / max(self._total, 1)
            self.say(f"{self._label}: {done}/{self._total}  {note}")


def format_duration(seconds: float) -> str:
    """Returns a length of time in the unit that suits it, such as 3.5 min."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
