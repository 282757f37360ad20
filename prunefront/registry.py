"""A named collection filled at import and then only read."""

import inspect
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from prunefront.errors import UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to entries; a duplicate or an unknown name is an error that lists what there is."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files its target under `name`. Raises ValueError for a name already taken."""

        def file(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return file

    def __getitem__(self, name: str) -> T:
        """Returns the entry called `name`. Raises UnknownName, which lists the known ones."""
        if name not in self._entries:
            near = get_close_matches(name, self._entries, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UnknownName(f"no {self.kind} is called {name!r}; {hint}known: {', '.join(sorted(self))}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)


def summary_of(entry: object, kind: str, name: str) -> str:
    """The first line of a docstring, for lists. Raises ValueError where there is none."""
    summary = (inspect.getdoc(entry) or "").partition("\n")[0]
    if not summary:
        raise ValueError(f"{kind} {name!r} has no docstring to describe it")
    return summary
