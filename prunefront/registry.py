"""Registry of named entries, filled at import and then only read."""

import inspect
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from prunefront.errors import UnknownName
from prunefront.text import did_you_mean, with_colon

T = TypeVar("T")


class Registry(Generic[T]):
    """Map from names to entries. A duplicate or an unknown name is an error that lists the known ones."""

    def __init__(self, kind: str, *, own: bool = False) -> None:
        """own: where a name is asked for, `module:callable` of one's own is possible too."""
        self.kind, self.own = kind, own
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that registers its target under `name`. Raises ValueError for a name already taken."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """Returns the entry called `name`. Raises UnknownName, which lists the known names."""
        if name not in self._entries:
            near = did_you_mean(name, self._entries) or (with_colon(name) if self.own else "")
            raise UnknownName(f"no {self.kind} is called {name!r}; {near}known: {', '.join(sorted(self))}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)


def summary_of(entry: object, kind: str, name: str) -> str:
    """Returns the first line of an entry's docstring, for lists. Raises ValueError where there is none."""
    summary = (inspect.getdoc(entry) or "").partition("\n")[0]
    if not summary:
        raise ValueError(f"{kind} {name!r} has no docstring to describe it")
    return summary
