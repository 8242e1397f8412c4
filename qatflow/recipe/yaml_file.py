"""Read a recipe's or option's YAML within bounds.

A text is gone through as a stream of events before anything is built of it, and an alias counts as much as what it
stands for: a few lines of aliases to aliases are refused before they become millions of values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from qatflow.errors import Mistake, RecipeError
from qatflow.recipe.limits import CHARACTERS, key_problem, scalar_problem, size_problem
from qatflow.recipe.sentences import shown

BYTES = 256 * 1024
STRING, INTEGER, MERGE = (f"tag:yaml.org,2002:{name}" for name in ("str", "int", "merge"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds, as plain values; an empty one where it is empty.

    Raises:
        RecipeError: it cannot be read, is no YAML, or holds more than any recipe; the error names file and line.
    """
    return _built(yaml_text(path), str(path))


def loaded(text: str, name: str) -> dict[str, Any]:
    """Return the mapping that a YAML text holds, as plain values; an empty one where it is empty.

    Raises:
        RecipeError: it is no YAML, or holds more than any recipe; the error names text and line.
    """
    _go_through(text, name)
    return _built(text, name)


def _built(text: str, name: str) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(text) or {})
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:
        raise RecipeError([unreadable(error, name)]) from error


def yaml_text(path: Path) -> str:
    """Return the text of a YAML file, once it is known to be within bounds.

    Raises:
        RecipeError: it cannot be read, is no YAML, or holds more than any recipe; the error names file and line.
    """
    if path.exists() and not path.is_file():  # a pipe would never end
        raise RecipeError([Mistake(str(path), "is not a file")])
    try:
        with path.open("rb") as file:
            content = file.read(BYTES + 1)
        if len(content) > BYTES:
            problem = f"is {path.stat().st_size:,} bytes long, and no recipe is longer than {BYTES:,}"
            raise RecipeError([Mistake(str(path), problem)])
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([unreadable(error, str(path))]) from error
    _go_through(text, str(path))
    return text


def unreadable(error: Exception, name: str) -> Mistake:
    """Return the mistake behind a YAML text that cannot be read, with the line where it is known."""
    place, reason = name, (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            place = f"{name}, line {mark.line + 1}"
        reason = error.problem or reason
    elif isinstance(error, OSError):
        reason = error.strerror or reason
    return Mistake(place, f"cannot be read: {reason}")


def _go_through(text: str, name: str) -> None:
    """Look through a YAML text.

    Raises:
        RecipeError: it is no YAML, holds more than any recipe does, or what no recipe holds.
    """
    try:
        walk = _Walk(text, name)
        while walk.loader.check_event():
            walk.take(walk.loader.get_event())  # type: ignore[no-untyped-call]
    except yaml.YAMLError as error:
        raise RecipeError([unreadable(error, name)]) from error


@dataclass
class _Open:
    """A list or mapping under way."""

    anchor: str | None
    is_mapping: bool
    nodes: int
    """How many there were before it."""
    depth: int = 0
    """How deep it is in itself, as far as is known."""
    items: int = 0

    @property
    def awaits_key(self) -> bool:
        return self.is_mapping and self.items % 2 == 0


class _Walk:
    """Goes through the events of one text.

    Raises:
        RecipeError: one is more than a recipe may hold.
    """

    def __init__(self, text: str, name: str) -> None:
        self.loader = yaml.SafeLoader(text)
        self.name = name
        self.open: list[_Open] = []
        self.sizes: dict[str | None, tuple[int, int]] = {}
        """Nodes and depth of what has an anchor."""
        self.nodes = 0

    def take(self, event: yaml.Event) -> None:
        """Count one event, and look at what it holds."""
        match event:
            case yaml.AliasEvent():
                if event.anchor not in self.sizes:
                    self.refuse(event, f"the alias {shown(event.anchor)} stands for nothing, or for what holds it")
                self.count(event, *self.sizes[event.anchor])
            case yaml.ScalarEvent():
                self.scalar(event)
                self.count(event, 1, 0)
                self.sizes[event.anchor] = (1, 0)
            case yaml.CollectionStartEvent():
                self.begin(event)
            case yaml.CollectionEndEvent():
                done = self.open.pop()
                self.sizes[done.anchor] = (self.nodes - done.nodes, done.depth)
                self.deepen(done.depth + 1)

    def begin(self, event: yaml.CollectionStartEvent) -> None:
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag is not None:
            self.refuse(event, f"the tag {shown(event.tag)} has no place in a recipe", "remove it")
        if not self.open and not is_mapping:
            self.no_mapping("list")
        if self.open and self.open[-1].awaits_key:
            self.refuse(event, "a list or mapping is no key", "a key is text")
        self.sizes.pop(event.anchor, None)  # it means nothing within itself
        self.count(event, 1, 0)
        self.open.append(_Open(event.anchor, is_mapping, self.nodes - 1))

    def scalar(self, event: yaml.ScalarEvent) -> None:
        if not self.open and (event.value or event.style):
            self.no_mapping("text")
        if event.tag is not None:
            self.refuse(event, f"the tag {shown(event.tag)} has no place in a recipe", "quote what is text")
        tag: str = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]
        is_key = bool(self.open) and self.open[-1].awaits_key
        if is_key and tag not in (STRING, INTEGER, MERGE):
            said = (
                f"the key {shown(event.value or 'null', quote=False)} is no text but of type {tag.rpartition(':')[2]}"
            )
            self.refuse(event, said, "quote it: YAML reads words such as off, on, yes, no and ~ as something else")
        value: Any = event.value
        if tag == INTEGER and len(value) <= CHARACTERS:
            try:
                value = self.loader.construct_yaml_int(yaml.ScalarNode(tag, value))
            except ValueError:
                self.refuse(event, f"{shown(value)} cannot be read as a number")
        if problem := scalar_problem(value) or (key_problem(event.value) if is_key else ""):
            self.refuse(event, problem)

    def count(self, event: yaml.Event, nodes: int, depth: int) -> None:
        self.nodes += nodes
        if problem := size_problem(self.nodes, len(self.open) + depth):
            self.refuse(event, problem)
        self.deepen(depth + 1)
        if self.open:
            self.open[-1].items += 1

    def deepen(self, depth: int) -> None:
        if self.open:
            self.open[-1].depth = max(self.open[-1].depth, depth)

    def refuse(self, event: yaml.Event, problem: str, fix: str = "") -> NoReturn:
        line = event.start_mark.line + 1  # type: ignore[union-attr]  # a parser's events have marks
        raise RecipeError([Mistake(f"{self.name}, line {line}", problem, fix)])

    def no_mapping(self, kind: str) -> NoReturn:
        raise RecipeError([Mistake(self.name, f"is a {kind}, and a recipe is a mapping", "write `key: value` lines")])
