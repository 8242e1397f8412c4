"""The tables of names, which a recipe is checked against, and the code behind them are the same."""

import importlib
from dataclasses import fields

import pytest
import torch

from qatflow.errors import DataError
from qatflow.qat.losses import FROM_TEACHER, ON_LABELS
from qatflow.qat.optimizers import OPTIMIZERS, choose_optimizer
from qatflow.recipe import Gate, Qat, names
from qatflow.tasks.classes import Reading
from qatflow.tasks.data import DATASETS
from qatflow.tasks.metric_names import USUAL_NAMES, metric_name
from qatflow.tasks.metrics import METRICS, Metric, fitted, load_metric
from qatflow.tasks.models import MODELS


def test_names_are_those_of_the_code() -> None:
    assert set(names.MODELS) == set(MODELS)
    assert set(names.DATASETS) == set(DATASETS)
    assert set(names.METRICS) == set(METRICS)
    assert set(names.OPTIMIZERS) == set(OPTIMIZERS)
    assert set(names.LOSSES) == {*ON_LABELS, *FROM_TEACHER}
    assert set(names.LABELLED_LOSSES) == set(ON_LABELS)
    assert set(names.LOWER_IS_BETTER) == {name for name, metric in METRICS.items() if not metric.higher_is_better}


def test_optimizers_take_what_they_are_given() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    for name in names.OPTIMIZERS:
        made = choose_optimizer(Qat(optimizer=name))([{"params": [weight], "lr": 0.1}])
        assert type(made).__name__.lower() == name


def test_what_our_metrics_take_is_what_reads_outputs() -> None:
    assert set(names.METRIC_KWARGS) == {name for name, metric in METRICS.items() if metric.fit is not None}
    assert {name for taken in names.METRIC_KWARGS.values() for name in taken} == {
        field.name for field in fields(Reading)
    }
    for metric, taken in names.METRIC_KWARGS.items():
        for name in taken:
            assert load_metric(Gate(metric=metric, max_drop=0.01, metric_kwargs={name: 1})).name == metric


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


def needs_no_labels(metric: Metric) -> bool:
    """Tell whether a metric scores outputs against FP32's alone."""
    outputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    try:
        fitted(metric, [outputs], [None])
    except (AttributeError, DataError, TypeError):
        return False
    return True


def test_fidelity_metrics_are_those_that_need_no_labels() -> None:
    assert set(names.FIDELITY_METRICS) == {name for name, metric in METRICS.items() if needs_no_labels(metric)}
