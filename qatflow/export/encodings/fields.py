"""Typed fields of JSON objects: what is wrong is gathered, so that one look at a file finds all of it.

A field that is missing or of another type adds one sentence to `problems` and yields a neutral value of its type.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from qatflow.errors import EncodingsError

T = TypeVar("T")
SUPPORTED = "supported are integers with one scale per tensor or per channel, and 16 or 32-bit float"
BITS = range(2, 33)
"""Widths of integers."""
FLOAT_BITS = (16, 32)
UNSUPPORTED = {
    "zero_point_shift": "a grid moved by half a step (zero_point_shift)",
    "block_size": "one scale per block (block_size)",
    "compressed_bw": "LPBQ (compressed_bw)",
    "per_block_int_scale": "LPBQ (per_block_int_scale)",
    "per_channel_float_scale": "LPBQ (per_channel_float_scale)",
    "rows_per_block": "VECTOR (rows_per_block)",
    "cols_per_block": "VECTOR (cols_per_block)",
    "vector_dim": "VECTOR (vector_dim)",
    "vector_stride": "VECTOR (vector_stride)",
    "index_bw": "VECTOR (index_bw)",
}
"""Fields of AIMET that change what an entry means, and what they stand for."""


class Fields:
    """The fields of one JSON object.

    Args:
        values: the object; anything else is a problem and counts as an empty one.
        where: the object's place in the file, for people.
        problems: the list that gets what is wrong.
    """

    def __init__(self, values: object, where: str, problems: list[str]) -> None:
        self.where = where
        self.problems = problems
        self.is_object = isinstance(values, dict)
        self.values: dict[str, Any] = values if isinstance(values, dict) else {}
        if not self.is_object:
            self.problem(f"is {shown(values)}; expected an object")

    def problem(self, text: str) -> None:
        """Add a sentence about this object."""
        self.problems.append(f"{self.where}: {text}" if self.where else text)

    def text(self, key: str, among: Sequence[str] = ()) -> str:
        """Return a string that is not empty, one of `among` where that is given."""
        expected = " or ".join(f'"{one}"' for one in among) or "text"
        return self._take(key, expected, lambda value: _is_text(value) and (not among or value in among), "")

    def whole(self, key: str, low: int = 0, high: int | None = None) -> int:
        """Return a whole number from `low` to `high`."""
        expected = f"a whole number from {low}" + (f" to {high}" if high is not None else "")
        return self._take(key, expected, lambda value: _is_whole(value, low, high), low)

    def any_whole(self, key: str) -> int:
        """Return a whole number of either sign."""
        return self._take(key, "a whole number", lambda value: type(value) is int, 0)

    def one_of(self, key: str, among: Collection[int]) -> int:
        """Return one of some numbers."""
        expected = " or ".join(map(str, among))
        return self._take(key, expected, lambda value: type(value) is int and value in among, 0)

    def flag(self, key: str) -> bool:
        """Return true or false."""
        return self._take(key, "true or false", lambda value: isinstance(value, bool), False)

    def number(self, key: str) -> float:
        """Return a real number; it need not be finite."""
        return as_float(self._take(key, "a number", is_number, 0.0))

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return a list of real numbers."""
        found: list[float] = self._take(key, "a list of numbers", lambda value: is_list_of(is_number, value), [])
        return tuple(map(as_float, found))

    def wholes(self, key: str) -> tuple[int, ...]:
        """Return a list of whole numbers."""
        found: list[int] = self._take(key, "a list of whole numbers", lambda value: is_list_of(_is_int, value), [])
        return tuple(found)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings; it may be empty."""
        fits: Callable[[Any], bool] = lambda value: value == [] or is_list_of(_is_text, value)  # noqa: E731
        found: list[str] = self._take(key, "a list of names", fits, [])
        return tuple(found)

    def entries(self, key: str) -> list[Any]:
        """Return a list of anything."""
        return self._take(key, "a list", lambda value: isinstance(value, list), [])

    def mapping(self, key: str) -> dict[str, Any]:
        """Return an object."""
        return self._take(key, "an object", lambda value: isinstance(value, dict), {})

    def supported(self) -> bool:
        """Tell whether no field stands for a kind of encoding that is not supported; else it is a problem."""
        kinds = [UNSUPPORTED[key] for key in self.values if key in UNSUPPORTED]
        if kinds:
            self.unsupported(", ".join(kinds))
        return not kinds

    def unsupported(self, kind: str) -> None:
        """Say that a kind of encoding is not supported."""
        self.problem(f"{kind} is not supported; {SUPPORTED}")

    def only(self, *allowed: str) -> None:
        """Make every other field a problem: what it means for the numbers is not known."""
        for key in self.values:
            if key not in allowed:
                self.problem(f"field {shown(key)} is not known; expected {', '.join(allowed)}")

    def _take(self, key: str, expected: str, fits: Callable[[Any], bool], neutral: T) -> T:
        if key not in self.values:
            if self.is_object:
                self.problem(f"{key} is missing; expected {expected}")
            return neutral
        value: T = self.values[key]
        if fits(value):
            return value
        self.problem(f"{key} is {shown(value)}; expected {expected}")
        return neutral


def is_number(value: object) -> bool:
    """Tell whether a JSON value is a number."""
    return type(value) in (int, float)


def is_list_of(fits: Callable[[object], bool], value: object) -> bool:
    """Tell whether a JSON value is a list with an element, all of which fit."""
    return isinstance(value, list) and bool(value) and all(map(fits, value))


def as_float(value: float) -> float:
    """Return a JSON number as a float; infinity where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def shown(value: object) -> str:
    """Return a JSON value on one short line."""
    try:
        text = json.dumps(value)
    except (RecursionError, TypeError, ValueError):  # nested too deeply, too many digits, or no JSON value at all
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 60 else f"{text[:57]}..."


def fail(problems: Sequence[str]) -> None:
    """Raise an error that tells all problems on one line, if there are any.

    Raises:
        EncodingsError: there are.
    """
    if problems:
        raise EncodingsError("; ".join(problems))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_int(value: object) -> bool:
    return type(value) is int


def _is_whole(value: object, low: int, high: int | None) -> bool:
    return isinstance(value, int) and type(value) is int and low <= value and (high is None or value <= high)
