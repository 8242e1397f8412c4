"""A table of names whose entries are imported when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar

from qatflow.errors import allowed_values

Entry = TypeVar("Entry")


class Table(Mapping[str, Entry]):
    """From names of ours to what is behind them.

    Args:
        what: what an entry is, for messages.
        names: in the order of the table.
        place: returns module and attribute of a name's entry.
    """

    def __init__(self, what: str, names: Iterable[str], place: Callable[[str], tuple[str, str]]) -> None:
        self._what, self._names, self._place = what, tuple(names), place

    def __getitem__(self, name: str) -> Entry:
        """Return an entry.

        Raises:
            KeyError: there is none of that name; the message has those there are, and a near match.
        """
        if name not in self._names:
            message = f"no {self._what} is called {name!r}; {allowed_values(str(name), self._names)}"
            raise KeyError(message)
        module, attribute = self._place(name)
        entry: Any = getattr(import_module(module), attribute)
        return entry  # type: ignore[no-any-return]  # a test holds that it is one

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
