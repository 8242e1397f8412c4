"""Whether the numbers of a file make sense, and whether it covers the tensors that need an encoding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from qatflow.export.encodings.fields import shown
from qatflow.export.encodings.tensor import EncodingsFile, TensorEncoding

RANGE_TOLERANCE = 1e-3
"""How far `min` and `max` may be from scale and offset, as a share of the range's larger end."""


@dataclass(frozen=True)
class Findings:
    """What `validate` found.

    Attributes:
        wrong: sentences about entries that contradict themselves.
        missing: names without an entry that must have one.
        unknown: names with an entry that nobody knows.
    """

    wrong: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.wrong or self.missing or self.unknown)


def validate(
    file: EncodingsFile,
    *,
    activations: Collection[str] | None = None,
    parameters: Collection[str] | None = None,
    optional: Collection[str] = (),
) -> Findings:
    """Check the numbers of a file and, where names are given, which tensors it covers.

    Args:
        file: what was read.
        activations: names that must have an entry as an activation; a tensor in float has one as well.
        parameters: names that must have one as a parameter.
        optional: names that may have one. A name that is in none of the three is unknown.
    """
    wrong = problems_of(file)
    if activations is None and parameters is None:
        return Findings(tuple(wrong))
    required = {"activation": set(activations or ()), "parameter": set(parameters or ())}
    roles = {tensor.name: tensor.role for tensor in file.tensors}
    for role, names in required.items():
        for name in sorted(names):
            if roles.get(name, role) != role:
                wrong.append(
                    f"{shown(name)}: is listed as {_with_article(roles[name])}; expected {_with_article(role)}"
                )
    wanted = [*(activations or ()), *(parameters or ())]
    known = {*wanted, *optional}
    missing = tuple(name for name in dict.fromkeys(wanted) if name not in roles)
    return Findings(tuple(wrong), missing, tuple(name for name in roles if name not in known))


def problems_of(file: EncodingsFile) -> list[str]:
    """Return a sentence about everything in a file that contradicts itself."""
    found = []
    for name, count in Counter(tensor.name for tensor in file.tensors).items():
        if count > 1:
            found.append(f"{shown(name)}: has {count} entries; expected one")
    for tensor in file.tensors:
        found += [f"{shown(tensor.name)}: {problem}" for problem in _problems_of_tensor(tensor)]
    return found


def _problems_of_tensor(tensor: TensorEncoding) -> list[str]:
    if tensor.in_float:
        return []
    found = []
    scales, zero_points = tensor.scales, tensor.zero_points
    if len(scales) != len(zero_points):
        found.append(f"{len(scales)} scales and {len(zero_points)} offsets; expected as many of both")
    if tensor.axis is None and len(scales) != 1:
        found.append(f"{len(scales)} scales for the whole tensor; expected one")
    bad = [scale for scale in scales if not (scale > 0 and math.isfinite(scale))]
    if bad:
        found.append(f"scale is {bad[0]}{_and_more(bad)}; expected a positive, finite number")
    off = [zero_point for zero_point in zero_points if not tensor.qmin <= zero_point <= tensor.qmax]
    if off:
        expected = f"expected {tensor.qmin} to {tensor.qmax}, offsets from {1 - 2**tensor.bits} to 0"
        found.append(f"zero point is {off[0]}{_and_more(off)}, off the grid; {expected}")
    return found or _problems_of_ranges(tensor)


def _problems_of_ranges(tensor: TensorEncoding) -> list[str]:
    """Compare the ranges that a file of 0.6.1 says with those that scale and offset span."""
    for scale, offset, (low, high) in zip(tensor.scales, tensor.offsets, tensor.ranges or (), strict=False):
        wanted_low, wanted_high = scale * offset, scale * (offset + 2**tensor.bits - 1)
        slack = RANGE_TOLERANCE * max(-wanted_low, wanted_high)
        if not (abs(low - wanted_low) <= slack and abs(high - wanted_high) <= slack):
            said = f"min {low:g} and max {high:g} do not go with scale {scale:g} and offset {offset}"
            return [f"{said}; expected about {wanted_low:g} and {wanted_high:g}"]
    return []


def _and_more(bad: list[int] | list[float]) -> str:
    return f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""


def _with_article(role: str) -> str:
    return f"an {role}" if role == "activation" else f"a {role}"
