"""Names of our own models, data and metrics, with one line about each.

They stand apart from the code behind them because a recipe is checked before torch is imported. A test holds these
tables and that code together.
"""

from __future__ import annotations

MODELS: dict[str, str] = {
    "digits_mobilenet": "a small MobileNetV2 for 8x8 handwritten digits",
    "digits_mobilenet_skewed": "the same network with weight ranges that differ widely between channels",
    "digits_mobilenet_thin": "the same network with a quarter of the channels, too few for weights of two bits",
}

DATASETS: dict[str, str] = {
    "digits": "1797 handwritten digits of 8x8 pixels, shipped with scikit-learn",
}

METRICS: dict[str, str] = {
    "accuracy": "share of samples whose label comes first",
    "top5_accuracy": "share of samples whose label is among the first five",
    "mean_squared_error": "mean squared difference from a real-valued label; lower is better",
    "agreement": "share of samples on which FP32 answers the same; needs no labels",
    "sqnr_db": "signal to quantization-noise ratio of the outputs against FP32's, in dB; needs no labels",
}

METRIC_KWARGS: dict[str, tuple[str, ...]] = {
    "accuracy": ("threshold", "class_axis"),
    "top5_accuracy": ("class_axis",),
    "agreement": ("threshold", "class_axis"),
}
"""What `gate.metric_kwargs` may say to metrics of ours; the others take nothing."""

FIDELITY_METRICS: tuple[str, ...] = ("agreement", "sqnr_db")
"""Metrics that compare with FP32 and need no labels."""

LOWER_IS_BETTER: tuple[str, ...] = ("mean_squared_error",)
"""Metrics that are errors."""


LOSSES: dict[str, str] = {
    "cross_entropy": "of class scores and labels",
    "mean_squared_error": "from a real-valued label",
    "distillation": "mean squared difference from FP32's outputs; needs no labels",
    "soft_targets": "divergence of class probabilities from FP32's; needs no labels",
}

LABELLED_LOSSES: tuple[str, ...] = ("cross_entropy", "mean_squared_error")

OPTIMIZERS: tuple[str, ...] = ("adam", "adamw", "sgd")
