"""What a verdict rests on, in words: what was counted or measured, the bound that follows, and what was asked.

A sentence never speaks of an interval where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal

from qatflow.intervals import Interval


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
        least: the largest drop that is possible although no sample was lost; None where that is within the limit.
    """

    confidence: float
    counts: tuple[int, int] | None
    samples: int
    needed: int | None
    least: float | None
    looks: int


def verdict_sentence(limits: list[Limit], basis: Basis) -> str:
    """Return one or more sentences: a clause for every limit, then what more samples would do."""
    said = "; ".join(_clause(limit, basis) for limit in limits)
    sentences = [said[:1].upper() + said[1:]]
    if basis.least is not None:
        few = f"few samples: with {basis.samples}, even no loss at all leaves a drop of up to"
        sentences.append(f"{few[0].upper()}{few[1:]} {number(basis.least, ROUND_CEILING)} possible")
    if basis.needed is not None:
        sentences.append(f"About {basis.needed} samples would settle it")
    if basis.looks > 1 and any(limit.loss.exists for limit in limits):
        sentences.append(
            f"This is look {basis.looks} at these samples, and paid for: hence {percent(basis.confidence)}"
        )
    return ". ".join(sentences) + "."


def _clause(limit: Limit, basis: Basis) -> str:
    said = _seen(limit, basis)
    if limit.missed:
        return f"{said}, {_asked(limit, met=False)}" + _range(limit, basis)
    if not limit.loss.exists:
        return f"{said}, {_asked(limit, met=True)}; no interval can be given"
    bound = _bound(limit)
    if limit.settled():
        return f"{said}: with {percent(basis.confidence)} confidence {bound}, {_asked(limit, met=True)}"
    return f"{said}, {_asked(limit, met=True)}, but with {percent(basis.confidence)} confidence only that {bound}"


def _seen(limit: Limit, basis: Basis) -> str:
    """Return what was counted or measured."""
    over = f" over {basis.samples} samples" if basis.samples else ""
    if limit.label:
        value = -limit.loss.value if limit.negated else limit.loss.value
        return f"{limit.label} is {number(value)}{over}"
    drop = limit.loss.value
    plain = "no drop" if drop == 0 else f"a gain of {number(-drop)}" if drop < 0 else f"a drop of {number(drop)}"
    if basis.counts is None:
        return plain + over
    lost, gained = basis.counts
    counted = f"{lost} of {basis.samples} samples lost, {gained} gained"
    return counted if limit.loss.exists and not limit.missed and limit.settled() else f"{counted}: {plain}"


def _bound(limit: Limit) -> str:
    """Return the worse end of the interval in words."""
    high = limit.loss.high
    if limit.label:
        return f"it is at least {number(-high, ROUND_FLOOR)}" if limit.negated else f"it is at most {_up(high)}"
    return f"the drop is at most {_up(high)}" if high >= 0 else f"the gain is at least {number(-high, ROUND_FLOOR)}"


def _range(limit: Limit, basis: Basis) -> str:
    """Return the interval in words; nothing where there is none."""
    if not limit.loss.exists:
        return ""
    loss = -limit.loss if limit.negated else limit.loss
    return f"; with {percent(basis.confidence)} confidence it is {number(loss.low, ROUND_FLOOR)} to {_up(loss.high)}"


def _asked(limit: Limit, *, met: bool) -> str:
    """Return how the loss stands to what was asked."""
    if not limit.label:
        return f"{'within' if met else 'more than'} the {number(limit.most)} allowed"
    asked = f"the {number(-limit.most if limit.negated else limit.most)} asked for"
    return f"{'within' if met else 'short of' if limit.negated else 'beyond'} {asked}"


def _up(value: float) -> str:
    return number(value, ROUND_CEILING)


def number(value: float, rounding: str = ROUND_HALF_EVEN) -> str:
    """Return four significant digits in plain decimals, such as `0.0074`; bounds are rounded outwards."""
    exact = Context(prec=12).create_decimal_from_float(value)  # binary noise is no reason to round up
    text = f"{Context(prec=4, rounding=rounding).plus(exact):f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) if Decimal(text) else "0"


def percent(confidence: float) -> str:
    """Return a confidence as `95 %`."""
    return f"{100 * confidence:.4g} %"
