"""The recipe's section `gate`: what a candidate must reach to be shipped. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_serializer

from qatflow.recipe.config import Config


def _as_drop(value: Any) -> Any:
    """Turn `1%` into `0.01` relative; leave a number alone. Returns what `Drop` takes."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return value
    relative = isinstance(value, str) and value.strip().endswith("%")
    try:
        amount = float(value.strip().removesuffix("%") if isinstance(value, str) else value)
    except (ValueError, OverflowError) as error:
        raise ValueError("write a number in the metric's unit, or a share of FP32 such as '1%'") from error
    return {"amount": amount / 100 if relative else amount, "relative": relative}


class Drop(Config):
    """An allowed loss: in the metric's own unit, or relative to FP32."""

    amount: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    relative: bool = False

    def __str__(self) -> str:
        return f"{self.amount * 100:g}%" if self.relative else f"{self.amount:g}"

    @model_serializer
    def _as_written(self) -> str | float:
        return str(self) if self.relative else self.amount


class Gate(Config):
    """What a candidate must reach to be shipped."""

    metric: str = "accuracy"
    """A name in qatflow's table of metrics, or `package.module:function`."""
    metric_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the factory; accuracy and agreement take `threshold` (of one score) and `class_axis`."""
    direction: Literal["auto", "higher", "lower"] = "auto"
    """Whether higher or lower is better; `auto` is what the metric itself says."""
    max_drop: Annotated[Drop | None, BeforeValidator(_as_drop)] = None
    """Largest drop against FP32: a number in the metric's unit, or `1%` of FP32. Null is 0.01, and no limit where
    `min_value` or `max_value` is given."""
    min_value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The least value that passes, where higher is better: 25 with `sqnr_db` asks for 25 dB."""
    max_value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The largest value that passes, where lower is better."""
    label: Annotated[str, Field(min_length=1)] | None = None
    """What reports call the metric; null is its own name."""
    min_speedup: Annotated[float, Field(gt=0, le=100)] | None = None
    """How many times as fast as FP32 the exported file must be in its runtime on this machine. Where it is not, parts
    that are faster in float go back to float, as long as the metric passes. Null asks for nothing."""
    strict: bool = False
    """Pass only if the whole confidence interval is within what the gate allows."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the interval; every further look at the test part is taken at less risk."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples behind the interval of scores that are not only 0 or 1."""
    max_gain: Annotated[float, Field(gt=0)] = 0.05
    """A gain over FP32 above this share of FP32, and beyond noise, is called anomalous."""

    @field_validator("max_value")
    @classmethod
    def _one_way(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("min_value") is not None:
            raise ValueError("keep gate.min_value where higher is better, gate.max_value where lower is")
        return value

    @property
    def worst_value(self) -> float | None:
        """The value that a candidate must reach, whichever way the metric points; None where only the drop counts."""
        return self.min_value if self.min_value is not None else self.max_value

    @property
    def drop_limit(self) -> Drop | None:
        """The largest drop, with what stands for null; None where only the value counts."""
        if self.max_drop is not None or self.worst_value is not None:
            return self.max_drop
        return Drop(amount=0.01)
