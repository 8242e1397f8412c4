"""What a network is quantized for and how: the target, the bits, and the way to find ranges.

A design is a frozen value that goes with its network: simulation, placement, files and records read it there. A step
may return a network of another design, but for the target, which the captured graph was prepared for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qatflow.quant.target import Target
from qatflow.quant.targets.onnxruntime import ONNXRUNTIME
from qatflow.recipe import Calibration, LayerPrecision, Precision
from qatflow.recipe.calibration import Method, WeightMethod
from qatflow.results.result import DesignRecord


@dataclass(frozen=True)
class Design:
    """How a network is quantized.

    Attributes:
        target: the runtime's table.
        precision: bits, scales per channel or per tensor, and what differs for some layers and tensors.
        calibration: how ranges are found.
        ranges: activations whose range another method finds, by the tensor's name in the graph.
    """

    target: Target = ONNXRUNTIME
    precision: Precision = field(default_factory=Precision)
    calibration: Calibration = field(default_factory=Calibration)
    ranges: Mapping[str, Method] = field(default_factory=dict)

    def calibration_of(self, tensor: str) -> Calibration:
        """Return how the range of an activation is found."""
        method = self.ranges.get(tensor)
        return self.calibration if method is None else self.calibration.model_copy(update={"activations": method})

    def found_by(
        self,
        activations: Method | None = None,
        weights: WeightMethod | None = None,
        ranges: Mapping[str, Method] | None = None,
    ) -> Design:
        """Return the design with other ways to find ranges; None leaves one as it is."""
        stated = {"activations": activations, "weights": weights}
        update = {key: value for key, value in stated.items() if value is not None}
        calibration = self.calibration.model_copy(update=update)
        return replace(self, calibration=calibration, ranges=self.ranges if ranges is None else dict(ranges))

    def with_overrides(self, overrides: Mapping[str, LayerPrecision]) -> Design:
        """Return the design with another precision of some layers or tensors; these count more than those before."""
        kept = {name: one for name, one in self.precision.overrides.items() if name not in overrides}
        precision = self.precision.model_copy(update={"overrides": {**kept, **overrides}})
        return replace(self, precision=precision)

    def to_record(self) -> DesignRecord:
        """Return the design as plain values; the target by its name."""
        return DesignRecord(
            target=self.target.name,
            precision=self.precision.model_dump(mode="json"),
            calibration=self.calibration.model_dump(mode="json"),
            ranges=dict(self.ranges),
        )

    def from_record(self, record: Mapping[str, Any]) -> Design:
        """Return the design that `to_record` made plain values of, for the target of this one.

        Raises:
            ValueError: it is of another target, or damaged.
        """
        stored = DesignRecord.model_validate(record)
        if stored.target != self.target.name:
            message = f"a design for target {stored.target} is none for target {self.target.name}"
            raise ValueError(message)
        return Design(
            self.target,
            Precision.model_validate(stored.precision),
            Calibration.model_validate(stored.calibration),
            stored.ranges,
        )
