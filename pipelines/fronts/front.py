"""A front as one object: what a search returns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunefront.pipelines.fronts import choice
from prunefront.pipelines.fronts.row import FrontRow, arrange, read_rows

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Front:
    """The networks of a front, fastest first, with the dense network and the controls beside them.

    Raises FrontError for no row, and for two of one key.

    >>> front = pf.load_front("digits")
    >>> [(row.key, row.accuracy, row.latency_ms) for row in front]
    [('c41', 0.98, 0.8), ('dense', 0.99, 2.0)]
    >>> front.best(under={"latency_ms": 1, "size_bytes": 250_000}).key
    'c41'
    """

    rows: tuple[FrontRow, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(arrange(self.rows)))

    def __iter__(self) -> Iterator[FrontRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def best(
        self, under: Mapping[str, float] | None = None, by: str | None = None, require: Sequence[str] = ()
    ) -> FrontRow:
        """Returns the row that is best in the objective `by` among those whose fields are at most as `under` says.

        by: None = the metric. require: bounds in words, such as "accuracy >= -1pt".

        Raises FrontError for a name that there is not, and where no row is within the bounds; it names the nearest.
        Raises ConstraintError for words that are no bound.
        """
        return choice.best_row(self.rows, under or {}, by, require)

    def table(self) -> "Table":
        """Returns a table for a terminal; see `fronts.table`."""
        from prunefront.pipelines.fronts.table import table

        return table(self.rows)

    def to_json(self) -> list[dict[str, Any]]:
        """Returns the content of a front.json."""
        return [row.to_json() for row in self.rows]

    @classmethod
    def from_json(cls, data: object) -> "Front":
        """Reads the content of a front.json, which may come from elsewhere. Raises FrontError when it is no front."""
        return cls(tuple(read_rows(data)))
