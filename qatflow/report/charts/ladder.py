"""The pictures of the page, laid out: places in percent, which the macros of `charts.html.j2` turn into SVG.

A ladder spans from a model that is broken to differences of a thousandth, and one scale cannot show both. So the
ladder is drawn once over its whole range and, where the gate would be too narrow to see, once more around the gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from qatflow.report.charts.axis import Axis, Tick, axis_over, finite, ticks
from qatflow.report.info import LadderInfo
from qatflow.report.numbers import MetricFormat
from qatflow.results.result import Verdict

CROWDED = 6.0  # spans of the allowed drop, beyond which the gate needs a picture of its own


class Bar(NamedTuple):
    """One candidate or run to draw: a value with its bounds, in the chart's unit."""

    name: str
    text: str
    value: float | None
    low: float | None
    high: float | None
    limit: float | None
    tone: str
    hollow: bool = False
    strong: bool = False


class Mark(NamedTuple):
    """A bar laid out: places in percent; `off` is the side on which its value leaves the scale."""

    bar: Bar
    at: float | None
    low: float | None
    high: float | None
    off: str
    pass_from: float | None
    pass_to: float | None
    limit: float | None


class RowChart(NamedTuple):
    """One row per bar over a common axis."""

    title: str
    rows: tuple[Mark, ...]
    ticks: list[Tick]
    reference: Tick | None
    """FP32."""
    limit: Tick | None
    """The gate, where it is the same for all rows."""
    has_off: bool


def ladder_charts(info: LadderInfo, form: MetricFormat) -> list[RowChart]:
    """Return the ladder over its whole range and, where that is needed, around the gate; none without a value."""
    bars = [
        Bar(
            rung.name,
            form.value(rung.value),
            rung.value,
            rung.low,
            rung.high,
            info.limit,
            "left-out" if rung.left_out else rung.verdict.value,
            rung.left_out,
            rung.best,
        )
        for rung in info.rungs
    ]
    if info.fp32 is None:
        return _row_charts(bars, None, None, info.higher_is_better)
    reference = (info.fp32, f"FP32 {form.value(info.fp32)}")
    limit = (info.limit, f"limit {form.value(info.limit)}") if info.limit is not None else None
    return _row_charts(bars, reference, limit, info.higher_is_better)


def drop_charts(bars: Sequence[Bar], form: MetricFormat) -> list[RowChart]:
    """Return the drops of several runs against their own limits; a drop to the left of its limit passes."""
    limits = {bar.limit for bar in bars}
    shared = next(iter(limits)) if len(limits) == 1 else None
    limit = (shared, f"allowed {form.drop(shared)}") if shared is not None else None
    return _row_charts(bars, (0.0, "no drop"), limit, higher_passes=False)


def tone_of(verdict: Verdict | None) -> str:
    """Return the name of the colour that a verdict has on the page."""
    return verdict.value if verdict else "none"


def _row_charts(
    bars: Sequence[Bar],
    reference: tuple[float, str] | None,
    limit: tuple[float, str] | None,
    higher_passes: bool,
) -> list[RowChart]:
    ends = [reference[0]] if reference else []
    whole_numbers = [*finite(number for bar in bars for number in (bar.value, bar.low, bar.high, bar.limit)), *ends]
    if not any(bar.value is not None for bar in bars):
        return []
    whole = axis_over(whole_numbers)
    zoom = _around_gate(bars, whole, reference)
    axes = [(whole, "")] if zoom is None else [(whole, "The whole range"), (zoom, "Around the gate")]
    return [_laid_out(title, bars, axis, reference, limit, higher_passes) for axis, title in axes]


def _around_gate(bars: Sequence[Bar], whole: Axis, reference: tuple[float, str] | None) -> Axis | None:
    """Return the axis that shows the gate well; None where the whole one does, or nothing lies near the gate."""
    if reference is None:
        return None
    limits = finite(bar.limit for bar in bars)
    room = max((abs(limit - reference[0]) for limit in limits), default=0.0)
    if room == 0.0 or (whole.high - whole.low) < CROWDED * room:
        return None
    near = [bar for bar in bars if bar.value is not None and abs(bar.value - reference[0]) <= 2.5 * room]
    if sum(bar.value != reference[0] for bar in near) == 0:
        return None
    reach = finite(number for bar in near for number in (bar.value, bar.low, bar.high))
    reach = [number for number in reach if abs(number - reference[0]) <= 4 * room]
    margin = 0.4 * room
    low, high = min([*reach, *limits, reference[0]]), max([*reach, *limits, reference[0]])
    return Axis(low - margin, high + margin)


def _laid_out(
    title: str,
    bars: Sequence[Bar],
    axis: Axis,
    reference: tuple[float, str] | None,
    limit: tuple[float, str] | None,
    higher_passes: bool,
) -> RowChart:
    rows = tuple(_mark(bar, axis, higher_passes) for bar in bars)
    return RowChart(
        title=title,
        rows=rows,
        ticks=ticks(axis, 5),
        reference=_tick(axis, reference),
        limit=_tick(axis, limit),
        has_off=any(row.off for row in rows),
    )


def _mark(bar: Bar, axis: Axis, higher_passes: bool) -> Mark:
    limit = axis.clipped(bar.limit) if bar.limit is not None else None
    span = (None, None) if limit is None else (limit, 100.0) if higher_passes else (0.0, limit)
    off = ""
    if bar.value is not None and not axis.holds(bar.value):
        off = "left" if bar.value < axis.low else "right"
    drawn = bar.value is not None and not off
    low, high = (bar.low, bar.high) if drawn else (None, None)
    return Mark(
        bar=bar,
        at=axis.at(bar.value) if drawn and bar.value is not None else None,
        low=axis.clipped(low) if low is not None else None,
        high=axis.clipped(high) if high is not None else None,
        off=off,
        pass_from=span[0],
        pass_to=span[1],
        limit=axis.at(bar.limit) if bar.limit is not None and axis.holds(bar.limit) else None,
    )


def _tick(axis: Axis, mark: tuple[float, str] | None) -> Tick | None:
    return Tick(axis.at(mark[0]), mark[1]) if mark and axis.holds(mark[0]) else None
