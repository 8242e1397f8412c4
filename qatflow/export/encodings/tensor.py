"""What an encodings file says, whatever its version.

A real number `x` is stored as `q = clamp(round(x / scale) + zero_point, qmin, qmax)` (ONNX's convention). AIMET's older
versions write an `offset` instead: always for the unsigned grid of the same width and with the opposite sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["parameter", "activation", "bias"]
"""`bias` is a bias on a 32-bit grid, which only version 2.0.0 has."""


@dataclass(frozen=True, kw_only=True)
class TensorEncoding:
    """The encoding of one tensor.

    Attributes:
        name: of the tensor in the ONNX model.
        role: what the tensor is.
        bits: width of the integers, or of the floats where `in_float`.
        signed: whether the integers reach from `-2^(bits-1)`, else from 0.
        symmetric: whether the grid was chosen to be symmetric; version 2.0.0 does not say, it is then told from a
            signed grid with no zero point.
        scales: one, or one per channel; none in float.
        zero_points: as many, whole numbers on the tensor's own grid.
        axis: the channel axis; None is one scale for the tensor.
        in_float: the tensor stays in float of `bits` bits.
        ranges: smallest and largest real number per scale as a file of 0.6.1 says them, else None.
    """

    name: str
    role: Role
    bits: int
    signed: bool = False
    symmetric: bool = False
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis: int | None = None
    in_float: bool = False
    ranges: tuple[tuple[float, float], ...] | None = field(default=None, compare=False)

    @property
    def qmin(self) -> int:
        """Smallest integer."""
        return -int(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Largest integer."""
        return self.qmin + int(2**self.bits) - 1

    @property
    def offsets(self) -> tuple[int, ...]:
        """AIMET's offsets, one per zero point: minus the zero point on the unsigned grid."""
        return tuple(self.qmin - zero_point for zero_point in self.zero_points)


@dataclass(frozen=True, kw_only=True)
class EncodingsFile:
    """The content of one encodings file.

    Attributes:
        version: of the file that it was read from or is meant for.
        tensors: in the order of the file.
        producer: `package` and `version` of the program that found the numbers; None where the file does not say.
        excluded_layers: names of layers left in float; None where the file does not say, as in 2.0.0.
        quantizer_args: how the quantizers were set up; likewise.
    """

    version: str
    tensors: tuple[TensorEncoding, ...] = ()
    producer: Mapping[str, Any] | None = None
    excluded_layers: tuple[str, ...] | None = None
    quantizer_args: Mapping[str, Any] | None = None
