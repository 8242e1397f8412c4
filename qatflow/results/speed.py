"""The second gate: how fast the exported file must be beside FP32, and is."""

from __future__ import annotations

from qatflow.results.latency import LatencyRecord
from qatflow.results.record import Record


class SpeedRecord(Record):
    """What `gate.min_speedup` asks for, and what the exported file's latency says of it."""

    wanted: float
    """How many times as fast as FP32 the file must be."""
    reached: float | None
    """How many times as fast it is; null where it was not timed, or its runtime takes longer than the model."""
    timed: bool = True
    """Whether the file was timed."""
    low: float | None = None
    high: float | None = None
    """Bounds of that with 95 % confidence."""
    strict: bool = False
    """Whether the whole interval must reach what is asked for."""

    @staticmethod
    def of(latency: LatencyRecord | None, wanted: float, *, strict: bool) -> SpeedRecord:
        """Hold a latency against what is asked for; None is a file that could not be timed."""
        if latency is None or latency.too_small:
            return SpeedRecord(wanted=wanted, reached=None, timed=latency is not None, strict=strict)
        low, high = latency.speed_up_interval or (None, None)
        return SpeedRecord(wanted=wanted, reached=latency.speed_up, low=low, high=high, strict=strict)

    @property
    def passed(self) -> bool:
        """Whether the gate is met; within noise it is, unless it is strict."""
        if self.reached is None:
            return self.timed and not self.strict
        best, worst = self.reached if self.high is None else self.high, self.reached if self.low is None else self.low
        return (worst if self.strict else best) >= self.wanted

    @property
    def sentence(self) -> str:
        """The verdict, in words."""
        asked = f"where at least {self.wanted:g} is asked for"
        if self.reached is None:
            why = "the model is too small to tell" if self.timed else "the file could not be timed"
            return f"Speed {'within noise' if self.passed else 'missed'}: {why}, {asked}."
        title = "met" if self.passed and self.reached >= self.wanted else "within noise" if self.passed else "missed"
        between = "" if self.low is None or self.high is None else f" ({self.low:.2f} to {self.high:.2f})"
        return f"Speed {title}: {self.reached:.2f} times as fast as FP32{between}, {asked}."
