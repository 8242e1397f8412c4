"""The pictures of the QAT trials, laid out in percent: the metric over the epochs, and over the learning rate.

The best trial stands out and the others step back: with eight or eighty trials, a colour each tells nobody anything.
The two pictures have scales of their own, because training moves the metric far and trials end close together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from qatflow.report.charts.axis import Axis, Tick, axis_over, finite, log_ticks, ticks
from qatflow.report.info import TrialLine, TrialsInfo
from qatflow.report.numbers import MetricFormat, compact

CLOSE_X, CLOSE_Y = 6.0, 5.0  # percent: end labels nearer to one another than this are moved apart


class Point(NamedTuple):
    """A place in percent, y downwards."""

    x: float
    y: float


class Curve(NamedTuple):
    """One trial: pieces of a line (more than one where an epoch has no value), its best epoch and its end."""

    pieces: tuple[tuple[Point, ...], ...]
    tone: str
    best: Point | None
    end: Point | None
    label: Point | None
    number: int
    about: str


class CurveChart(NamedTuple):
    """Curves over epochs, the best trial last, so that it lies on top."""

    curves: tuple[Curve, ...]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    start: float | None
    """Height of the PTQ start, in percent."""


class Spot(NamedTuple):
    """One trial of the search."""

    at: Point
    tone: str
    hollow: bool
    number: int
    about: str


class SpotChart(NamedTuple):
    """Trials over the learning rate, on a log scale."""

    spots: tuple[Spot, ...]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def curve_chart(info: TrialsInfo, form: MetricFormat) -> CurveChart | None:
    """Return the metric per epoch of every trial; None where no epoch has a value."""
    values = finite(value for line in info.lines for value in line.values)
    if not values:
        return None
    sound = finite(value for line in info.lines if line.state != "failed" for value in line.values)
    y_axis = axis_over(sound or values, margin=0.08)
    last = max(epoch for line in info.lines for epoch in line.epochs)
    x_axis = Axis(0.0, max(float(last), 1.0))
    curves = [_curve(line, x_axis, y_axis, form) for line in sorted(info.lines, key=lambda line: line.best)]
    return CurveChart(
        curves=tuple(_labelled(curves)),
        x_ticks=[tick for tick in ticks(x_axis, 5) if "." not in tick.text],
        y_ticks=[Tick(100 - tick.at, tick.text) for tick in ticks(y_axis, 4)],
        start=100 - y_axis.at(info.start) if info.start is not None and math.isfinite(info.start) else None,
    )


def spot_chart(info: TrialsInfo, form: MetricFormat) -> SpotChart | None:
    """Return the best value of every trial over its learning rate; None with fewer than two to compare."""
    lines = [(line, line.value) for line in info.lines if line.value is not None and math.isfinite(line.value)]
    lines = [(line, value) for line, value in lines if line.lr > 0]
    if len(lines) < 2:
        return None
    y_axis = axis_over((value for _, value in lines), margin=0.15)
    x_axis = axis_over((math.log10(line.lr) for line, _ in lines), margin=0.12)
    spots = [
        Spot(
            at=Point(x_axis.at(math.log10(line.lr)), 100 - y_axis.at(value)),
            tone=_tone(line),
            hollow=not line.range_learning,
            number=line.number,
            about=_about(line, form),
        )
        for line, value in lines
    ]
    return SpotChart(tuple(spots), log_ticks(x_axis), [Tick(100 - tick.at, tick.text) for tick in ticks(y_axis, 4)])


def _curve(line: TrialLine, x_axis: Axis, y_axis: Axis, form: MetricFormat) -> Curve:
    pieces: list[tuple[Point, ...]] = []
    current: list[Point] = []
    best = None
    for epoch, value in zip(line.epochs, line.values, strict=True):
        if value is None or not math.isfinite(value):
            pieces, current = [*pieces, tuple(current)], []
            continue
        current.append(Point(x_axis.at(epoch), 100 - y_axis.at(value)))
        best = current[-1] if epoch == line.best_epoch else best
    pieces = [piece for piece in [*pieces, tuple(current)] if piece]
    end = pieces[-1][-1] if pieces else None
    if end is not None:
        end = Point(end.x, min(max(end.y, 3.0), 97.0))  # a diverged trial leaves the scale, its cross stays
    return Curve(tuple(pieces), _tone(line), best, end, None, line.number, _about(line, form))


def _labelled(curves: list[Curve]) -> list[Curve]:
    """Put a label beside the end of each curve, moved down where it would lie on another one's."""
    taken: list[Point] = []
    labelled = {}
    for curve in sorted((curve for curve in curves if curve.end), key=lambda curve: curve.end.y if curve.end else 0):
        place = curve.end or Point(0, 0)
        for other in sorted(taken, key=lambda point: point.y):
            if abs(other.x - place.x) < CLOSE_X and abs(other.y - place.y) < CLOSE_Y:
                place = Point(place.x, other.y + CLOSE_Y)
        taken.append(place)
        labelled[curve.number] = place
    return [curve._replace(label=labelled.get(curve.number)) for curve in curves]


def _tone(line: TrialLine) -> str:
    return "best" if line.best else line.state


def _about(line: TrialLine, form: MetricFormat) -> str:
    ranges = "ranges trained" if line.range_learning else "ranges frozen"
    return f"trial {line.number} ({line.state}): {form.value(line.value)}, learning rate {compact(line.lr)}, {ranges}"
