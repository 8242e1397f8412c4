"""What a recipe or option file may hold: more than any recipe needs, and less than what hangs or breaks a reader.

A YAML file is gone through as a stream of events before anything is built of it: an alias counts as much as what it
stands for, so that nine lines of aliases to aliases are refused at once. The same bounds hold for values on the command
line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from qatflow.errors import Mistake, RecipeError
from qatflow.recipe.sentences import shown

BYTES = 256 * 1024
NODES = 10_000
"""Values and keys, those that aliases stand for included."""
DEPTH = 20
CHARACTERS = 20_000
"""Of one text."""
LARGEST = 2**63
"""Whole numbers are smaller: torch and NumPy have none beyond."""
LINKS = 20
"""`${...}` in one recipe: each may stand for a text that has several others."""
KEY_CHARACTERS = 1_000
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, which change what a terminal shows and end a path early, and halves of characters."""
STRING, INTEGER, MERGE = (f"tag:yaml.org,2002:{name}" for name in ("str", "int", "merge"))


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds, as plain values.

    Raises:
        RecipeError: it cannot be read, is no YAML, or holds more than any recipe; the error names file and line.
    """
    text = yaml_text(path)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:
        raise RecipeError([unreadable(error, path)]) from error


def yaml_text(path: Path) -> str:
    """Return the text of a YAML file, once it is known to be within bounds.

    Raises:
        RecipeError: it cannot be read, is no YAML, or holds more than any recipe; the error names file and line.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise RecipeError([Mistake(str(path), "is not a file")])
        with path.open("rb") as file:
            content = file.read(BYTES + 1)
        if len(content) > BYTES:
            problem = f"is {path.stat().st_size:,} bytes long, and no recipe is longer than {BYTES:,}"
            raise RecipeError([Mistake(str(path), problem)])
        text = content.decode("utf-8-sig")
        _go_through(text, path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError([unreadable(error, path)]) from error
    return text


def unreadable(error: Exception, path: Path | None = None) -> Mistake:
    """Return the mistake behind a YAML file that cannot be read, with file and line where they are known."""
    place, reason = str(path or "a YAML file"), (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            place = f"{path or mark.name}, line {mark.line + 1}"
        reason = error.problem or reason
    elif isinstance(error, OSError):
        reason = error.strerror or reason
    return Mistake(place, f"cannot be read: {reason}")


def value_mistakes(path: str, value: Any) -> Iterator[Mistake]:
    """Tell the first thing by which a plain value is more than any recipe holds, if there is one."""
    seen, waiting = 0, [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        seen += 1
        problem, fix = _too_much(seen, depth) or _scalar_problem(one) or ("", "")
        if problem:
            yield Mistake(path, problem, fix)
            return
        inner: Iterable[Any] = [*one, *one.values()] if isinstance(one, Mapping) else one
        if isinstance(one, (Mapping, list, tuple)):
            waiting += [(part, depth + 1) for part in inner]


def line_mistakes(key: str, line: str) -> Iterator[Mistake]:
    """Tell by what a text of the command line is more than can be read, before it is parsed."""
    depth, deepest = 0, sum(line.partition("=")[0].count(one) for one in ".[")
    for one in line:
        depth += (one in "[{(") - (one in "]})")
        deepest = max(deepest, depth)
    problem, fix = _too_much(0, deepest) or _scalar_problem(line) or _key_problem(line.partition("=")[0]) or ("", "")
    if problem:
        yield Mistake(key, problem, fix)


def link_problem(value: Any) -> str:
    """Return what is wrong with the number of `${...}` in a plain value; empty where nothing is."""
    count, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            count += one.count("${")
        elif isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, (list, tuple)):
            waiting += one
    return f"has {count} times ${{...}}, and no recipe has more than {LINKS}" if count > LINKS else ""


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
    """Goes through the events of one text."""

    def __init__(self, text: str, path: Path) -> None:
        self.loader = yaml.SafeLoader(text)
        self.path = path
        self.open: list[_Open] = []
        self.sizes: dict[str, tuple[int, int]] = {}
        """Nodes and depth of what has an anchor."""
        self.nodes = 0

    def refuse(self, event: yaml.Event, problem: str, fix: str = "") -> NoReturn:
        """Raise what is wrong with the line of an event."""
        raise RecipeError([Mistake(f"{self.path}, line {event.start_mark.line + 1}", problem, fix)])

    def no_mapping(self, kind: str) -> NoReturn:
        """Raise that the whole text is something else than a mapping."""
        raise RecipeError([Mistake(str(self.path), f"is a {kind}, and a recipe is a mapping", "write `key: value` lines")])

    def take(self, event: yaml.Event) -> None:
        """Count one event, and look at what it holds."""
        match event:
            case yaml.AliasEvent():
                if event.anchor not in self.sizes:
                    self.refuse(event, f"the alias {shown(event.anchor)} stands for nothing, or for what it is a part of")
                self._counted(event, *self.sizes[event.anchor])
            case yaml.ScalarEvent():
                self._scalar(event)
                self._counted(event, 1, 0)
                if event.anchor is not None:
                    self.sizes[event.anchor] = (1, 0)
            case yaml.CollectionStartEvent():
                if event.tag is not None:
                    self.refuse(event, f"the tag {shown(event.tag)} has no place in a recipe", "remove it")
                if not self.open and isinstance(event, yaml.SequenceStartEvent):
                    self.no_mapping("list")
                if self.open and self.open[-1].awaits_key:
                    self.refuse(event, "a list or mapping is no key", "a key is text")
                self.sizes.pop(event.anchor, None)
                self._counted(event, 1, 0)
                self.open.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent), self.nodes - 1))
            case yaml.CollectionEndEvent():
                done = self.open.pop()
                if done.anchor is not None:
                    self.sizes[done.anchor] = (self.nodes - done.nodes, done.depth)
                self._deepen(done.depth + 1)

    def _counted(self, event: yaml.Event, nodes: int, depth: int) -> None:
        self.nodes += nodes
        deep = len(self.open) + depth
        if problem := _too_much(self.nodes, deep):
            self.refuse(event, *problem)
        self._deepen(depth + 1)
        if self.open:
            self.open[-1].items += 1

    def _deepen(self, depth: int) -> None:
        if self.open:
            self.open[-1].depth = max(self.open[-1].depth, depth)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        if not self.open and (event.value or event.style):
            self.no_mapping("text")
        if event.tag is not None:
            self.refuse(event, f"the tag {shown(event.tag)} has no place in a recipe", "quote what is text")
        tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        if self.open and self.open[-1].awaits_key and tag not in (STRING, INTEGER, MERGE):
            name = tag.rpartition(":")[2]
            fix = "quote it: YAML reads words such as off, on, yes, no and ~ as something else"
            self.refuse(event, f"the key {shown(event.value or 'null', quote=False)} is no text but of type {name}", fix)
        value: Any = event.value
        if tag == INTEGER and len(value) <= CHARACTERS:
            try:
                value = self.loader.construct_yaml_int(yaml.ScalarNode(tag, value))
            except ValueError:
                self.refuse(event, f"{shown(value)} cannot be read as a number")
        as_key = _key_problem(event.value) if self.open and self.open[-1].awaits_key else None
        if problem := _scalar_problem(value) or as_key:
            self.refuse(event, *problem)


def _go_through(text: str, path: Path) -> None:
    """Raise what is wrong with a YAML text, at the first place where something is.

    Raises:
        RecipeError: it holds more than any recipe does, or what no recipe holds.
        YAMLError: it is no YAML.
    """
    walk = _Walk(text, path)
    while walk.loader.check_event():
        walk.take(walk.loader.get_event())


def _too_much(nodes: int, depth: int) -> tuple[str, str] | None:
    if depth > DEPTH:
        return f"lists and mappings are nested more than {DEPTH} deep, which no recipe is", ""
    if nodes > NODES:
        return f"there are more than {NODES:,} values, aliases counted as what they stand for; no recipe has as many", ""
    return None


def _scalar_problem(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str):
        found = FORBIDDEN.search(value)
        if found:
            return f"a text has the character {found[0]!r}, which cannot be written or shown", "remove it"
        if len(value) > CHARACTERS:
            return f"a text has {len(value):,} characters, and none in a recipe has more than {CHARACTERS:,}", ""
    if isinstance(value, int) and not -LARGEST < value < LARGEST:
        return f"a whole number has {value.bit_length()} bits, and 63 are the most", ""
    return None


def _key_problem(key: str) -> tuple[str, str] | None:
    if len(key) > KEY_CHARACTERS:
        return f"a key has {len(key):,} characters, and none has more than {KEY_CHARACTERS:,}", ""
    return None
