"""What a runtime wants: a table of rules that the placement engine applies.

A target is data. Kinds of ops are those of `qatflow.graph.ops`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qatflow.quant.grid import Grid


@dataclass(frozen=True, kw_only=True)
class Target:
    """The rules of one runtime."""

    name: str
    activations_signed: bool
    activations_symmetric: bool
    weights_symmetric: bool = True
    weights_narrow: bool = False
    weight_axis: dict[str, int]
    """Channel axis of a layer's weight, by kind, where precision asks for one scale per channel."""
    quantized: frozenset[str]
    """Kinds that run on integers: every float input and the output is quantized."""
    preserving: frozenset[str]
    """Kinds that only move values: the output has the encoding of the input and no quantizer of its own."""
    fused: frozenset[tuple[str, str]]
    """Neighbours that run as one op: no quantizer between them where nothing else reads the first."""
    fixed_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Outputs whose range is known and need not be calibrated."""

    def activation_grid(self, bits: int) -> Grid:
        """Return the integers of an activation."""
        return Grid(bits, self.activations_signed, self.activations_symmetric)

    def weight_grid(self, bits: int) -> Grid:
        """Return the integers of a weight."""
        return Grid(bits, signed=True, symmetric=self.weights_symmetric, narrow=self.weights_narrow)
