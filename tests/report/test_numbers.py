"""How numbers are written."""

from __future__ import annotations

import math

import pytest

from qatflow.report.numbers import (
    MetricFormat,
    compact,
    decibels,
    duration,
    format_of,
    metric_format,
    moment,
    precision_label,
)
from qatflow.results.result import RunResult


@pytest.mark.parametrize(
    ("fp32", "max_drop", "decimals"),
    [
        (0.9824, 0.01, 4),
        (1.0, 0.01, 4),
        (37.42, 0.5, 2),
        (37.42, 0.0005, 5),
        (0.0123, 0.001, 5),
        (1234.5, None, 0),
        (0.0, None, 4),
        (1e-30, None, 8),
    ],
)
def test_decimals_follow_fp32_and_the_gate(fp32: float, max_drop: float | None, decimals: int) -> None:
    assert metric_format([fp32], max_drop) == MetricFormat(decimals)


def test_a_candidate_that_exploded_does_not_change_the_precision() -> None:
    assert metric_format([0.0123, 1e9], None) == metric_format([0.0123], None)


@pytest.mark.parametrize(
    ("number", "value", "drop"),
    [
        (0.98239, "0.9824", "+0.9824"),
        (-0.004, "−0.0040", "−0.0040"),
        (0.0, "0.0000", "0.0000"),
        (-0.00001, "0.0000", "0.0000"),
        (None, "–", "–"),
        (math.nan, "–", "–"),
        (math.inf, "–", "–"),
        (3e9, "3.000e9", "+3.000e9"),
    ],
)
def test_values_and_drops(number: float | None, value: str, drop: str) -> None:
    form = MetricFormat(4)
    assert form.value(number) == value
    assert form.drop(number) == drop


def test_an_interval_needs_both_bounds() -> None:
    form = MetricFormat(3)
    assert form.interval(-0.001, 0.0071) == "−0.001 to +0.007"
    assert form.interval(None, 0.0071) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (201, "3 min 21 s"), (3900, "1 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_small_texts() -> None:
    assert compact(1.2e-6) == "1.2e−6"
    assert compact(0.023514) == "0.02351"
    assert compact(None) == "–"
    assert decibels(-2.24) == "−2.2"
    assert decibels(-0.02) == "0.0"
    assert decibels(math.inf) == "exact"
    assert decibels(None) == "–"
    assert moment("2026-01-31T12:00:00+00:00") == "2026-01-31 12:00 UTC"
    assert moment("yesterday") == "yesterday"


def test_precision_label(met_run: RunResult, trained_run: RunResult, empty_run: RunResult) -> None:
    assert precision_label(met_run.tensors) == "INT8"
    assert precision_label(trained_run.tensors) == "W4A4"
    assert precision_label([*met_run.tensors[::2], *trained_run.tensors]) == "W4/8A4"
    assert precision_label(trained_run.tensors[::2]) == "W4"
    assert precision_label(empty_run.tensors) == "quantized"


def test_a_run_without_a_gate_has_a_format(empty_run: RunResult) -> None:
    assert format_of(empty_run) == MetricFormat(4)
