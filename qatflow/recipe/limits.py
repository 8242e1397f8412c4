"""What a recipe may hold: more than any needs, and less than what hangs or breaks whoever reads it.

The same bounds hold for files (`yaml_file`) and for values on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qatflow.errors import Mistake

NODES = 10_000
"""Values and keys, those that aliases stand for included."""
DEPTH = 20
CHARACTERS = 20_000
"""Of one text."""
KEY_CHARACTERS = 1_000
LARGEST = 2**63
"""Whole numbers are smaller: torch and NumPy have none beyond."""
LINKS = 20
"""`${...}` in one recipe: each may stand for a text that has several others."""
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, which change what a terminal shows and end a path early, and halves of characters."""


def value_mistakes(path: str, value: Any) -> Iterator[Mistake]:
    """Tell the first thing by which a plain value is more than any recipe holds, if there is one."""
    seen, waiting = 0, [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        seen += 1
        problem = size_problem(seen, depth) or scalar_problem(one)
        if problem:
            yield Mistake(path, problem)
            return
        inner: Iterable[Any] = [*one, *one.values()] if isinstance(one, Mapping) else one
        if isinstance(one, (Mapping, list, tuple)):
            waiting += [(part, depth + 1) for part in inner]


def line_mistakes(key: str, line: str) -> Iterator[Mistake]:
    """Tell by what a text of the command line is more than can be read, before it is parsed."""
    written_key = line.partition("=")[0]
    depth, deepest = 0, sum(written_key.count(one) for one in ".[")
    for one in line:
        depth += (one in "[{(") - (one in "]})")
        deepest = max(deepest, depth)
    problem = size_problem(0, deepest) or scalar_problem(line) or key_problem(written_key)
    if problem:
        yield Mistake(key, problem)


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


def size_problem(nodes: int, depth: int) -> str:
    """Return what is wrong with the size of a value; empty where nothing is."""
    if depth > DEPTH:
        return f"lists and mappings are nested more than {DEPTH} deep, which no recipe is"
    if nodes > NODES:
        return f"there are more than {NODES:,} values, aliases counted as what they stand for, which no recipe has"
    return ""


def scalar_problem(value: Any) -> str:
    """Return what is wrong with a text or number; empty where nothing is."""
    if isinstance(value, str):
        found = FORBIDDEN.search(value)
        if found:
            return f"a text has the character {found[0]!r}, which cannot be written or shown"
        if len(value) > CHARACTERS:
            return f"a text has {len(value):,} characters, and none in a recipe has more than {CHARACTERS:,}"
    if isinstance(value, int) and not -LARGEST < value < LARGEST:
        return f"a whole number has {value.bit_length()} bits, and 63 are the most"
    return ""


def key_problem(key: str) -> str:
    """Return what is wrong with a key; empty where nothing is."""
    if len(key) > KEY_CHARACTERS:
        return f"a key has {len(key):,} characters, and none has more than {KEY_CHARACTERS:,}"
    return ""
