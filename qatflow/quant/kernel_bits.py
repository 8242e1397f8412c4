"""Bits that a runtime has no integer kernels for: said before a run, since only its file would show it otherwise."""

from __future__ import annotations

from collections.abc import Iterator

from qatflow.quant.placement import Placement, Point
from qatflow.quant.target import Target
from qatflow.quant.targets import TARGETS

SHOWN = 3
KINDS = {"activations": "a", "weights": "w"}
"""Keys of `precision`, and their letters in its short form."""


def bits_without_kernels(placement: Placement, target: Target) -> list[str]:
    """Return a sentence for every width that layers have and the target computes in float."""
    return [
        _sentence(kind, bits, placement, target)
        for kind in KINDS
        for bits in sorted({point.grid.bits for point in _points(placement, kind)} - target.integer_bits[kind])
    ]


def _points(placement: Placement, kind: str) -> Iterator[Point]:
    return (point for point in placement.points if (point.parameter is None) == (kind == "activations"))


def _sentence(kind: str, bits: int, placement: Placement, target: Target) -> str:
    every = list(_points(placement, kind))
    found = list(dict.fromkeys(point.layer or point.tensor for point in every if point.grid.bits == bits))
    count = sum(point.grid.bits == bits for point in every)
    named = ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
    which = "all" if count == len(every) else f"{count} of {len(every)} ({named})"
    nearest = min(target.integer_bits[kind], key=lambda one: abs(one - bits))
    able = [name for name, one in TARGETS.items() if bits in one.integer_bits[kind]]
    other = f", or target: {' or '.join(able)}" if able else ""
    return (
        f"target {target.name} has no integer kernels for {bits}-bit {kind}, which {which} have here: their layers "
        f"will run in float, and the file is a simulation, as accurate but no faster; for integers write "
        f"precision.{kind}: {nearest} ({KINDS[kind]}{nearest} in first_layer, last_layer and overrides){other}"
    )
