"""How a candidate is quantized, as plain values."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from qatflow.recipe.calibration import Method
from qatflow.results.record import Record


class DesignRecord(Record):
    """How a candidate is quantized."""

    target: str
    precision: dict[str, Any]
    """As a recipe's section `precision` has it."""
    calibration: dict[str, Any]
    """As a recipe's section `calibration` has it."""
    ranges: dict[str, Method] = Field(default_factory=dict)
    """Activations whose range another method finds than the section says, by tensor."""

    @model_validator(mode="after")
    def _can_be_told(self) -> DesignRecord:
        try:
            self.sentence  # noqa: B018 - it is made of all that a design must have
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError("precision or calibration is not as a recipe has it") from error
        return self

    @property
    def sentence(self) -> str:
        """The design in a few words: `W8A8, classifier float, ranges by minmax`."""
        said = [f"W{self.precision['weights']}A{self.precision['activations']}"]
        if not self.precision.get("per_channel", True):
            said[0] += " per tensor"
        named = {"first layer": "first_layer", "last layer": "last_layer"}
        stated = {name: self.precision.get(key) for name, key in named.items()} | self.precision.get("overrides", {})
        said += [f"{name} {_bits(one)}" for name, one in stated.items() if one is not None]
        said.append(f"ranges by {self.calibration['activations']}")
        if self.ranges:
            said[-1] += f", of {len(self.ranges)} by others"
        if self.calibration["weights"] != "sqnr":
            said.append(f"weights' by {self.calibration['weights']}")
        return ", ".join(said)


def _bits(stated: str | dict[str, Any]) -> str:
    """Return what differs for a layer in the recipe's short form: `float`, `w8a16_per_tensor`."""
    if isinstance(stated, str):
        return stated
    letters = {"weights": "w", "activations": "a"}
    bits = "".join(f"{letter}{stated[key]}" for key, letter in letters.items() if stated.get(key) is not None)
    scales = {True: "_per_channel", False: "_per_tensor", None: ""}[stated.get("per_channel")]
    return bits + scales if bits else scales.strip("_").replace("_", " ")
