"""What a verdict rests on, in words: what was counted or measured, the bound that follows, and what was asked.

A sentence never speaks of an interval where there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal

from qatflow.results.intervals import Interval


@dataclass(frozen=True)
class Limit:
    """One thing that a gate asks, turned so that less is better.

    Attributes:
        loss: the drop, or the candidate's value, which is negated where higher is better.
        most: the largest loss that passes.
        slack: what rounding in binary may add to it: 0.97 - 0.96 is a hair more than 0.01.
        label: what the value is called; empty for a drop.
        negated: whether the loss is a negated value.
    """

    loss: Interval
    most: float
    slack: float
    label: str = ""
    negated: bool = False

    @property
    def missed(self) -> bool:
        """Whether the point estimate misses it."""
        return not self.loss.value <= self.most + self.slack

    @property
    def missed_beyond_noise(self) -> bool:
        """Whether no value in the interval would meet it either."""
        return self.missed and not self.loss.low <= self.most + self.slack

    def settled(self, times: float = 1.0) -> bool:
        """Tell whether the whole interval meets it, with so many times the samples."""
        return self.loss.scaled(times)[1] <= self.most + self.slack


@dataclass(frozen=True)
class Basis:
    """What a verdict rests on, beside its limits.

    Attributes:
        counts: samples lost and gained; None where they are not right or wrong.
        samples: how many were measured; 0 where that is not known.
        needed: about how many samples would settle what is within noise; None where it is settled or never would be.
        least: the largest drop that is possible although no sample changed; None where that is within the limit.
        looks: how many candidates were judged on these samples.
        implausible: whether the gain is larger than a quantized model's can be.
    """

    confidence: float
    counts: tuple[int, int] | None
    samples: int
    needed: int | None = None
    least: float | None = None
    looks: int = 1
    implausible: bool = False


def verdict_sentence(limits: list[Limit], basis: Basis) -> str:
    """Return one or more sentences: a clause for every limit, then what a reader should know of it."""
    said = "; ".join(_clause(limit, basis) for limit in limits)
    sentences = [said[:1].upper() + said[1:]]
    if basis.implausible:
        sentences.append("So large a gain is implausible: check the evaluation before you trust it")
    if basis.least is not None and basis.counts == (0, 0):
        sentences.append(f"Few samples: {basis.samples} without any loss say no more")
    elif basis.least is not None:
        few = f"Few samples: with {basis.samples}, even no loss at all leaves a drop of up to"
        sentences.append(f"{few} {number(basis.least, ROUND_CEILING)} possible")
    if basis.needed is not None:
        sentences.append(f"About {basis.needed} samples would settle it")
    elif _is_open(limits):
        sentences.append("It is too near to the limit for more samples to settle it")
    if basis.looks > 1 and any(limit.loss.exists for limit in limits):
        sentences.append(
            f"This is look {basis.looks} at these samples, and paid for: hence {percent(basis.confidence)}"
        )
    return ". ".join(sentences) + "."


def _is_open(limits: list[Limit]) -> bool:
    """Tell whether noise is all that stands between a candidate and the gate."""
    return not any(limit.missed for limit in limits) and any(
        limit.loss.exists and not limit.settled() for limit in limits
    )


def _clause(limit: Limit, basis: Basis) -> str:
    said = _seen(limit, basis)
    if limit.missed:
        return f"{said}, {_asked(limit)}{_range(limit, basis)}"
    if not limit.loss.exists:
        return f"{said}, {_asked(limit)}; no interval can be given"
    confident = f"with {percent(basis.confidence)} confidence"
    if limit.settled():
        return f"{said}: {confident} {_bound(limit)}, {_asked(limit, limit.loss.high)}"
    return f"{said}, {_asked(limit)}, but {confident} {_possible(limit)}"


def _seen(limit: Limit, basis: Basis) -> str:
    """Return what was counted or measured."""
    over = f" over {basis.samples} samples" if basis.samples else ""
    if limit.label:
        return f"{limit.label} is {number(-limit.loss.value if limit.negated else limit.loss.value)}{over}"
    drop = limit.loss.value
    plain = "no drop" if drop == 0 else f"a gain of {number(-drop)}" if drop < 0 else f"a drop of {number(drop)}"
    if basis.counts is None:
        return plain + over
    lost, gained = basis.counts
    counted = f"{lost} of {basis.samples} samples lost, {gained} gained"
    return counted if not limit.missed and limit.settled() else f"{counted}: {plain}"


def _bound(limit: Limit) -> str:
    """Return the worse end of the interval in words."""
    high = limit.loss.high
    if limit.negated:
        return f"it is at least {number(-high, ROUND_FLOOR)}"
    if not limit.label and high < 0:
        return f"the gain is at least {number(-high, ROUND_FLOOR)}"
    return f"{'it' if limit.label else 'the drop'} is at most {number(high, ROUND_CEILING)}"


def _possible(limit: Limit) -> str:
    """Return the worse end of an interval that reaches beyond the limit."""
    if limit.negated:
        return f"it may be as low as {number(-limit.loss.high, ROUND_FLOOR)}"
    return f"{'it' if limit.label else 'the drop'} may be up to {number(limit.loss.high, ROUND_CEILING)}"


def _range(limit: Limit, basis: Basis) -> str:
    """Return the interval in words; nothing where there is none."""
    if not limit.loss.exists:
        return ""
    loss = -limit.loss if limit.negated else limit.loss
    low, high = number(loss.low, ROUND_FLOOR, beside=loss.high), number(loss.high, ROUND_CEILING, beside=loss.low)
    return f"; with {percent(basis.confidence)} confidence it is {low} to {high}"


def _asked(limit: Limit, loss: float | None = None) -> str:
    """Return how the loss, or the worse end of its interval, stands to what was asked."""
    most = number(-limit.most if limit.negated else limit.most)
    if not limit.label:
        gain = (limit.loss.value if loss is None else loss) < 0
        return (
            f"more than the {most} allowed"
            if limit.missed
            else (f"where a drop of {most} is allowed" if gain else f"within the {most} allowed")
        )
    least = "least" if limit.negated else "most"
    return f"where at {least} {most} is asked for"


def number(value: float, rounding: str = ROUND_HALF_EVEN, beside: float = 0.0) -> str:
    """Return four significant digits in plain decimals, such as `0.0074`; bounds are rounded outwards.

    A value much smaller than the one that it stands beside has no more decimals than that.
    """
    exact = Context(prec=12).create_decimal_from_float(value)  # binary noise is no reason to round up
    larger = max(abs(value), abs(beside))
    if larger == 0:
        return "0"
    unit = Decimal(1).scaleb(math.floor(math.log10(larger)) - 3)
    text = f"{exact.quantize(unit, rounding, Context(prec=400)):f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) if Decimal(text) else "0"


def percent(confidence: float) -> str:
    """Return a confidence as `95 %`."""
    return f"{100 * confidence:.4g} %"
