"""The tables of names, which a recipe is checked against, and the code behind them are the same."""

from qatflow import names
from qatflow.step_configs import STEP_CONFIGS
from qatflow.steps import STEPS
from qatflow.tasks.data import DATASETS
from qatflow.tasks.metrics import METRICS
from qatflow.tasks.models import MODELS


def test_names_are_those_of_the_code() -> None:
    assert set(names.MODELS) == set(MODELS)
    assert set(names.DATASETS) == set(DATASETS)
    assert set(names.METRICS) == set(METRICS)
    assert set(STEP_CONFIGS) == set(STEPS)


def test_fidelity_metrics_are_metrics() -> None:
    assert set(names.FIDELITY_METRICS) <= set(names.METRICS)
