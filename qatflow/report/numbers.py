"""Numbers as people read them: one precision for the whole report, signs on drops, an en dash for what is missing.

A metric's unit is unknown here (accuracy is at most 1, an error may be anything), so values are shown raw, with four
significant digits of FP32 and enough decimals that the gate's limit can be told from zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from qatflow.results.result import RunResult, TensorRecord

MISSING = "–"
MINUS = "−"
MOST_DECIMALS = 8


class MetricFormat(NamedTuple):
    """How values and drops of one metric are written, all with the same number of decimals."""

    decimals: int

    def value(self, number: float | None) -> str:
        """Return a value such as `0.9824`, or an en dash for one that is missing or not finite."""
        if number is None or not math.isfinite(number):
            return MISSING
        if abs(number) >= 1e7:
            return _typeset(f"{number:.3e}")
        text = _typeset(f"{number:.{self.decimals}f}")
        return text if _is_nonzero(text) else text.removeprefix(MINUS)

    def drop(self, number: float | None) -> str:
        """Return a drop with its sign, `+0.0040` for a loss; zero has none."""
        text = self.value(number)
        return f"+{text}" if _is_nonzero(text) and not text.startswith(MINUS) else text

    def interval(self, low: float | None, high: float | None) -> str:
        """Return `+0.0010 to +0.0071`, or an en dash where either bound is missing."""
        texts = (self.drop(low), self.drop(high))
        return MISSING if MISSING in texts else " to ".join(texts)


def metric_format(values: Iterable[float | None], max_drop: float | None) -> MetricFormat:
    """Return the format for a metric; the first finite value that is not zero sets the precision (pass FP32 first)."""
    size = next((abs(value) for value in values if value is not None and math.isfinite(value) and value != 0), 1.0)
    decimals = 4 - math.ceil(math.log10(size))
    if max_drop is not None and 0 < max_drop < math.inf:
        decimals = max(decimals, 1 - math.floor(math.log10(max_drop)))
    return MetricFormat(min(max(decimals, 0), MOST_DECIMALS))


def format_of(result: RunResult) -> MetricFormat:
    """Return the format of a run's metric."""
    values = [result.fp32, *(candidate.value for candidate in result.candidates)]
    return metric_format(values, result.gate.max_drop if result.gate else None)


def compact(number: float | None) -> str:
    """Return four significant digits, `1.2e-6` or `0.02351`."""
    return MISSING if number is None or not math.isfinite(number) else _typeset(f"{number:.4g}")


def decibels(number: float | None) -> str:
    """Return an SQNR with one decimal, without the unit."""
    if number is not None and math.isinf(number):
        return "exact" if number > 0 else MISSING
    if number is None or math.isnan(number):
        return MISSING
    text = _typeset(f"{number:.1f}")
    return text if _is_nonzero(text) else text.removeprefix(MINUS)


def duration(seconds: float) -> str:
    """Return seconds as `0.4 s`, `12 s`, `3 min 21 s` or `1 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(text: str) -> str:
    """Return an ISO 8601 time as `2026-01-31 12:00 UTC`; a text that is none stays as it is."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{time:%Y-%m-%d %H:%M}{' UTC' if time.utcoffset() == timedelta(0) else f'{time:%z}'}"


def precision_label(tensors: Iterable[TensorRecord]) -> str:
    """Return `INT8` where all tensors have 8 bits, else such as `W4A8`; `quantized` where none is known."""
    bits: dict[str, set[int]] = {"weight": set(), "activation": set()}
    for tensor in tensors:
        bits[tensor.kind].add(tensor.bits)
    both = bits["weight"] | bits["activation"]
    if not both:
        return "quantized"
    if both == {8}:
        return "INT8"
    parts = (("W", bits["weight"]), ("A", bits["activation"]))
    return "".join(letter + "/".join(map(str, sorted(widths))) for letter, widths in parts if widths)


def _is_nonzero(text: str) -> bool:
    return any(digit in text for digit in "123456789")


def _typeset(text: str) -> str:
    """Use a real minus sign and drop the zeros of an exponent."""
    mantissa, mark, exponent = text.partition("e")
    exponent = str(int(exponent)) if mark else ""
    return f"{mantissa}{mark}{exponent}".replace("-", MINUS)


def megabytes(size: int) -> str:
    """Return a file size in MB, with three digits that count."""
    return f"{compact(size / 1e6)} MB"
