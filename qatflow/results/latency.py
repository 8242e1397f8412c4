"""How long a call of the exported file takes beside FP32's, and whether that can be told at all.

A call costs what the runtime does for any input, and then its work on every sample. Two samples in one call tell the
two apart: where they take hardly longer than one, the time is the runtime's own, and a ratio of two such times says
nothing about the models.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from qatflow.results.record import Record

SHORT_CALL = 0.2
"""Milliseconds. What does not grow with the samples in a longer call is work, such as reading many weights."""
MOSTLY_OVERHEAD = 1.5
"""Two samples take less than so many times as long as one where over half of a call is no work on samples."""


class LatencyRecord(Record):
    """Milliseconds of one call of the exported file and of the FP32 model in the same runtime, measured in turn."""

    batch: int
    int8: Annotated[float, Field(gt=0)]
    """Median."""
    int8_quartiles: tuple[float, float]
    fp32: Annotated[float, Field(gt=0)]
    fp32_quartiles: tuple[float, float]
    speed_up_interval: tuple[float, float] | None = None
    """Bounds of `speed_up` with 95 % confidence, from calls in turn; null in results of before."""
    int8_of_two: float | None = None
    """Median of a call with two samples; null where that was not measured."""
    fp32_of_two: float | None = None

    @property
    def speed_up(self) -> float:
        """How many times faster the exported file is."""
        return self.fp32 / self.int8

    @property
    def too_small(self) -> bool:
        """Whether the ratio says nothing: a call takes next to no time, and most of that is there for any batch."""
        pairs = ((self.int8, self.int8_of_two), (self.fp32, self.fp32_of_two))
        return any(two is not None and one < SHORT_CALL and two < MOSTLY_OVERHEAD * one for one, two in pairs)
