"""The recipe's section `calibration`: how ranges are found."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from qatflow.recipe.config import Config

Method = Literal["minmax", "percentile", "sqnr", "entropy"]
"""Ways to find the range of an activation: each is a branch of `qatflow.quant.calibrate.activation_encoding`."""
WeightMethod = Literal["minmax", "sqnr"]


class Calibration(Config):
    """How ranges are found from calibration samples."""

    samples: Annotated[int, Field(ge=1)] = 512
    activations: Method = "sqnr"
    """The step `calibrate` tries them all, for single tensors as well."""
    weights: WeightMethod = "sqnr"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    """Share of values, in percent, that a range found by `percentile` covers on each side."""

    @field_validator("activations", "weights", mode="before")
    @classmethod
    def _no_auto(cls, value: Any) -> Any:
        if value == "auto":
            raise ValueError("drop it and add the step `calibrate`, which tries all ways to find ranges")
        return value
