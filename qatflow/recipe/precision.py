"""The recipe's section `precision`: bit widths, and what differs for some layers and tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_serializer

from qatflow.recipe.config import Config

Bits = Annotated[int, Field(ge=2, le=16)]
SHORT_PRECISION = re.compile(
    r"(?:w(?P<weights>\d+))?(?:a(?P<activations>\d+))?(?P<granularity>_per_tensor|_per_channel)?"
)


def _as_layer_precision(value: Any) -> Any:
    """Read `float`, or a short form such as `w8a16`, `w4` or `a16_per_tensor`; returns what `LayerPrecision` takes."""
    if not isinstance(value, str):
        return value
    if value == "float":
        return {"quantized": False}
    found = SHORT_PRECISION.fullmatch(value)
    if not value or found is None:
        raise ValueError("write float, or bits such as w8a16, w4, a16 or w8a8_per_tensor")
    parts: dict[str, Any] = {name: int(found[name]) for name in ("weights", "activations") if found[name]}
    return parts | ({"per_channel": found["granularity"] == "_per_channel"} if found["granularity"] else {})


def as_precision(value: Any) -> Any:
    """Read a short form such as `w8a8` or `w4a8_per_tensor`; returns what `Precision` takes."""
    if isinstance(value, str) and (value == "float" or not SHORT_PRECISION.fullmatch(value)):
        raise ValueError("write bits such as w8a8 or w4a8_per_tensor, or the section's keys below it")
    return _as_layer_precision(value)


class LayerPrecision(Config):
    """What differs for some layers; null is as everywhere else.

    `weights` are the layer's own; `activations` are the tensors that it reads and gives. Where two layers differ about
    a tensor between them, it gets the more bits.
    """

    quantized: bool = True
    """False leaves the layer in float: neither its weight is quantized nor, for its sake, what it reads and gives."""
    weights: Bits | None = None
    activations: Bits | None = None
    per_channel: bool | None = None

    @model_serializer
    def _as_written(self) -> str | dict[str, Any]:
        if not self.quantized:
            return "float"
        stated = {"weights": self.weights, "activations": self.activations, "per_channel": self.per_channel}
        return {name: value for name, value in stated.items() if value is not None}


ShortLayerPrecision = Annotated[LayerPrecision, BeforeValidator(_as_layer_precision)]


class Precision(Config):
    """Bit widths, and one scale per tensor or per output channel for weights."""

    weights: Bits = 8
    activations: Bits = 8
    per_channel: bool = True
    weights_symmetric: bool = True
    """False gives weights a zero point."""
    activations_symmetric: bool | None = None
    """Null is the target's own way."""
    first_layer: ShortLayerPrecision | None = None
    """Of the weighted layers that no other comes before: `float`, or bits such as `w8a16`."""
    last_layer: ShortLayerPrecision | None = None
    """Of the weighted layers that no other comes after."""
    overrides: dict[str, ShortLayerPrecision] = Field(default_factory=dict)
    """By module path, such as `features.0` or `classifier.*`, with all that is inside, or else by the name of a tensor,
    such as `add_3` or `head.weight`; a later one counts more."""


def written(overrides: Mapping[str, LayerPrecision]) -> str:
    """Return overrides as a recipe has them: `{features.0: float, add_3: a16}`."""
    return "{" + ", ".join(f"{name}: {_short(one)}" for name, one in overrides.items()) + "}"


def _short(one: LayerPrecision) -> str:
    if not one.quantized:
        return "float"
    scales = {None: "", True: "_per_channel", False: "_per_tensor"}[one.per_channel]
    return f"{f'w{one.weights}' if one.weights else ''}{f'a{one.activations}' if one.activations else ''}{scales}"
