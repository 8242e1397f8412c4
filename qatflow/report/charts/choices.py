"""What `mixed_precision` measured: the metric over the cost of every choice, from the table that it left."""

from __future__ import annotations

import csv
import io
import math
from typing import NamedTuple

from qatflow.report.charts.axis import Tick, axis_over, ticks
from qatflow.report.charts.trials import Point
from qatflow.report.numbers import MetricFormat

MOST = 100


class Choice(NamedTuple):
    """One choice of tensors."""

    cost: float
    tensors: int
    value: float
    sqnr_db: float
    predicted_db: float
    passed: bool
    overrides: str


class ChoiceSpot(NamedTuple):
    """A choice in the picture."""

    at: Point
    tone: str
    number: int
    about: str


class ChoiceChart(NamedTuple):
    """The metric over the cost."""

    spots: tuple[ChoiceSpot, ...]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def choices(text: str) -> list[Choice]:
    """Return the choices that a table holds, the cheapest first; none where it is damaged."""
    try:
        rows = list(csv.DictReader(io.StringIO(text)))[:MOST]
        found = [
            Choice(
                float(row["cost"]),
                int(row["tensors"]),
                float(row["value"]),
                float(row["sqnr_db"]),
                float(row["predicted_db"]),
                row["passed"] == "True",
                row["overrides"],
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError, csv.Error):
        return []
    return sorted(found, key=lambda one: one.cost)


def choice_chart(rows: list[Choice], form: MetricFormat) -> ChoiceChart | None:
    """Return the picture; None with fewer than two choices to compare."""
    sound = [(number, one) for number, one in enumerate(rows) if math.isfinite(one.value) and math.isfinite(one.cost)]
    if len(sound) < 2:
        return None
    x_axis = axis_over((one.cost for _, one in sound), margin=0.1)
    y_axis = axis_over((one.value for _, one in sound), margin=0.15)
    spots = tuple(
        ChoiceSpot(
            Point(x_axis.at(one.cost), 100 - y_axis.at(one.value)),
            "best" if one.passed else "complete",
            number,
            f"choice {number}: {form.value(one.value)} for {one.cost:.3g}",
        )
        for number, one in sound
    )
    return ChoiceChart(spots, ticks(x_axis, 5), [Tick(100 - tick.at, tick.text) for tick in ticks(y_axis, 4)])
