"""Axes: from numbers to percent of a picture's width or height, with ticks at round numbers.

Percent, because the page's SVG has no fixed size: it grows and shrinks with the window while its text stays legible.
For Plotly, which wants numbers, `marks` are the same ticks by value: it would put 16.2 epochs and `10μ` on an axis,
and Optuna `'trained'` in quotes and three digits of a metric that differs in the fourth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from qatflow.report.numbers import MINUS, compact

Value = float | int | str
ROOM = 0.3
"""The distance from an end at which another text does not run into the one there."""


class Tick(NamedTuple):
    """A mark on an axis: its place in percent and its text."""

    at: float
    text: str


class Mark(NamedTuple):
    """A tick: its value, its place between the lowest (0) and the highest value (1), and its text."""

    value: Value
    place: float
    text: str


class Axis(NamedTuple):
    """A stretch of numbers laid over 0 to 100 percent."""

    low: float
    high: float

    def at(self, number: float) -> float:
        """Return the place of `number` in percent, outside 0 to 100 where it is off the scale."""
        return round(100 * (number - self.low) / (self.high - self.low), 3)

    def holds(self, number: float) -> bool:
        """Tell whether `number` is on the scale."""
        return self.low <= number <= self.high

    def clipped(self, number: float) -> float:
        """Return the place of `number` in percent, at the nearer end where it is off the scale."""
        return min(max(self.at(number), 0.0), 100.0)


def finite(numbers: Iterable[float | None]) -> list[float]:
    """Return the numbers that can be drawn."""
    return [number for number in numbers if number is not None and math.isfinite(number)]


def axis_over(numbers: Iterable[float], margin: float = 0.06) -> Axis:
    """Return an axis that holds all `numbers` (at least one) with a margin, as a share of their span, at both ends."""
    values = list(numbers)
    low, high = min(values), max(values)
    span = high - low
    if span <= 1e-12 * max(1.0, abs(high)):
        span = abs(high) if high else 1.0
        return Axis(low - span / 2, high + span / 2)
    return Axis(low - margin * span, high + margin * span)


def ticks(axis: Axis, wanted: int = 5) -> list[Tick]:
    """Return about `wanted` ticks at multiples of 1, 2 or 5 times a power of ten."""
    rough = (axis.high - axis.low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.8)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(axis.low / step - 1e-9)
    last = math.floor(axis.high / step + 1e-9)
    return [Tick(axis.at(count * step), _text(count * step, step, decimals)) for count in range(first, last + 1)]


def log_ticks(axis: Axis) -> list[Tick]:
    """Return ticks for an axis of base-ten logarithms: powers of ten, with 2 and 5 between where there is room."""
    factors = (1, 2, 5) if axis.high - axis.low < 1.6 else (1,)
    powers = range(math.floor(axis.low), math.ceil(axis.high) + 1)
    marks = [(power + math.log10(factor), f"{factor}e{power}") for power in powers for factor in factors]
    return [Tick(axis.at(place), text.replace("-", "−")) for place, text in marks if axis.holds(place)]


def marks(values: Sequence[Value], log: bool = False) -> list[Mark]:
    """Return the ticks of an axis from the lowest to the highest of `values`, or of one with a place for each word."""
    words = list(dict.fromkeys(value for value in values if isinstance(value, str)))
    if words:
        return [Mark(word, index / max(len(words) - 1, 1), word) for index, word in enumerate(words)]
    numbers = [value for value in values if not isinstance(value, str)]
    low, high = min(numbers), max(numbers)
    if low == high:
        return [Mark(low, 0.5, compact(low))]
    if log:
        return _log_marks(low, high)
    whole = all(isinstance(value, int) for value in numbers)
    found = ticks(Axis(low, high), min(4, int(high - low)) if whole else 4)
    return [Mark(_number(tick.text), tick.at / 100, tick.text) for tick in found]


def _log_marks(low: float, high: float) -> list[Mark]:
    """Return round numbers; where there are not two of them, the ends as well, to two digits."""
    found = log_ticks(Axis(math.log10(low), math.log10(high)))
    shown = [Mark(_number(tick.text), tick.at / 100, tick.text) for tick in found]
    if len(shown) >= 2:
        return shown
    between = [mark for mark in shown if ROOM < mark.place < 1 - ROOM]
    return [Mark(low, 0.0, compact(float(f"{low:.1e}"))), *between, Mark(high, 1.0, compact(float(f"{high:.1e}")))]


def _number(text: str) -> float:
    """Return the number that a tick stands for; its place is rounded, its text is not."""
    return float(text.replace(MINUS, "-"))


def _text(number: float, step: float, decimals: int) -> str:
    number = 0.0 if abs(number) < step / 1000 else number
    text = f"{number:.{decimals}f}" if decimals <= 6 and abs(number) < 1e6 else f"{number:.2g}"
    return text.replace("-", "−")
