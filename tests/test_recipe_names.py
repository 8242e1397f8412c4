"""The tables of names, which a recipe is checked against, and the code behind them are the same."""

import importlib
from dataclasses import fields

import pytest

from qatflow.recipe import names
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.steps import STEPS
from qatflow.tasks.classes import Reading
from qatflow.tasks.data import DATASETS
from qatflow.tasks.metric_names import USUAL_NAMES, metric_name
from qatflow.tasks.metrics import METRICS
from qatflow.tasks.models import MODELS


def test_names_are_those_of_the_code() -> None:
    assert set(names.MODELS) == set(MODELS)
    assert set(names.DATASETS) == set(DATASETS)
    assert set(names.METRICS) == set(METRICS)
    assert set(STEP_CONFIGS) == set(STEPS)


def test_what_our_metrics_take_is_what_reads_outputs() -> None:
    assert set(names.METRIC_KWARGS) == {name for name, metric in METRICS.items() if metric.fit is not None}
    assert {name for taken in names.METRIC_KWARGS.values() for name in taken} == {
        field.name for field in fields(Reading)
    }


@pytest.mark.parametrize(
    ("metric", "kwargs", "name"),
    [
        ("accuracy", {}, "accuracy"),
        ("own.package:F1Score", {}, "F1Score"),
        ("torchmetrics.regression:MeanSquaredError", {"squared": False}, "RMSE"),
        ("torchmetrics.regression:MeanSquaredError", {}, "MSE"),
        ("torchmetrics:MeanAbsoluteError", {}, "MAE"),
        ("torchmetrics.classification:MulticlassF1Score", {"num_classes": 3}, "F1"),
        ("torchmetrics.classification:MultilabelFBetaScore", {"beta": 2.0}, "F2"),
        ("torchmetrics.classification:MulticlassJaccardIndex", {}, "mIoU"),
        ("torchmetrics.classification:BinaryJaccardIndex", {}, "IoU"),
        ("torchmetrics:JaccardIndex", {"task": "binary"}, "IoU"),
        ("torchmetrics.classification:BinaryAUROC", {}, "AUROC"),
        ("torchmetrics.detection:MeanAveragePrecision", {}, "mAP"),
        ("torchmetrics:R2Score", {}, "R²"),
        ("torchmetrics:KLDivergence", {}, "KLDivergence"),
    ],
)
def test_metrics_are_called_what_people_call_them(metric: str, kwargs: dict[str, object], name: str) -> None:
    assert metric_name(metric, kwargs) == name


@pytest.mark.parametrize("name", USUAL_NAMES)
def test_usual_names_are_of_classes_that_exist(name: str) -> None:
    modules = [importlib.import_module(f"torchmetrics{one}") for one in ("", ".classification", ".segmentation")]
    assert any(hasattr(module, name) or hasattr(module, f"Multiclass{name}") for module in modules) or name in (
        "IntersectionOverUnion",
        "MeanAveragePrecision",
    )  # of torchmetrics.detection, which needs torchvision


def test_fidelity_metrics_are_metrics() -> None:
    assert set(names.FIDELITY_METRICS) <= set(names.METRICS)
