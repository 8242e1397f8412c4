"""What people call metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

USUAL_NAMES: dict[str, str] = {
    "Accuracy": "accuracy",
    "AveragePrecision": "average precision",
    "CalibrationError": "ECE",
    "CharErrorRate": "CER",
    "ConcordanceCorrCoef": "concordance",
    "CohenKappa": "Cohen's kappa",
    "DiceScore": "Dice",
    "ExactMatch": "exact match",
    "ExplainedVariance": "explained variance",
    "F1Score": "F1",
    "GeneralizedDiceScore": "Dice",
    "HammingDistance": "Hamming distance",
    "IntersectionOverUnion": "IoU",
    "JaccardIndex": "mIoU",
    "MatthewsCorrCoef": "MCC",
    "MeanAbsoluteError": "MAE",
    "MeanAbsolutePercentageError": "MAPE",
    "MeanAveragePrecision": "mAP",
    "MeanIoU": "mIoU",
    "MeanSquaredError": "MSE",
    "MeanSquaredLogError": "MSLE",
    "NormalizedRootMeanSquaredError": "NRMSE",
    "PeakSignalNoiseRatio": "PSNR",
    "PearsonCorrCoef": "Pearson correlation",
    "Perplexity": "perplexity",
    "Precision": "precision",
    "R2Score": "R²",
    "Recall": "recall",
    "ScaleInvariantSignalDistortionRatio": "SI-SDR",
    "ScaleInvariantSignalNoiseRatio": "SI-SNR",
    "SignalNoiseRatio": "SNR",
    "SpearmanCorrCoef": "Spearman correlation",
    "Specificity": "specificity",
    "StructuralSimilarityIndexMeasure": "SSIM",
    "SymmetricMeanAbsolutePercentageError": "SMAPE",
    "WordErrorRate": "WER",
}
"""What people call torchmetrics' classes, without the kind of task in front."""


def metric_name(metric: str, kwargs: Mapping[str, Any]) -> str:
    """Return what people call a metric: `RMSE` for torchmetrics' `MeanSquaredError` with `squared: false`.

    Args:
        metric: `gate.metric`.
        kwargs: `gate.metric_kwargs`.
    """
    package, _, name = metric.partition(":")
    if package.split(".")[0] != "torchmetrics":
        return name or metric
    binary = name.startswith("Binary") or kwargs.get("task") == "binary"
    plain = re.sub("^(Binary|Multiclass|Multilabel)", "", name)
    if plain == "MeanSquaredError" and kwargs.get("squared") is False:
        return "RMSE"
    if plain == "FBetaScore":
        return f"F{kwargs.get('beta', 1.0):g}"
    if plain == "JaccardIndex" and binary:
        return "IoU"
    return USUAL_NAMES.get(plain, plain)
