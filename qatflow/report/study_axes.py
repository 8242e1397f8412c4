"""Ticks of the study's plots: whole epochs, round rates on a log scale, words for choices.

Plotly would put 16.2 epochs and `10μ` on these axes, Optuna `'trained'` in quotes and three digits of a metric that
differs in the fourth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from qatflow.report.axis import Axis, log_ticks, ticks
from qatflow.report.numbers import MINUS, compact

Value = float | int | str
ROOM = 0.3
"""The distance from an end at which another text does not run into the one there."""


class Mark(NamedTuple):
    """A tick: its value, its place between the lowest (0) and the highest value (1), and its text."""

    value: Value
    place: float
    text: str


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
