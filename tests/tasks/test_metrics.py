"""Metrics against torchmetrics, scikit-learn and by hand; factories; what does not fit is refused."""

import math

import pytest
import torch
import torchmetrics
from sklearn.metrics import accuracy_score, mean_squared_error, top_k_accuracy_score
from torch import Tensor

from qatflow.errors import DataError, RecipeError, UserCodeError
from qatflow.recipe import Gate
from qatflow.tasks.metrics import METRICS, Metric, load_metric, logits

HERE = "tests.tasks.test_metrics"


def score(name: str, outputs: object, target: object = None, fp32: object = None) -> Tensor:
    return METRICS[name].per_sample(outputs, target, fp32)


def classified(count: int = 60, classes: int = 9) -> tuple[Tensor, Tensor]:
    return torch.randn(count, classes), torch.randint(classes, (count,))


def test_accuracy_is_scikit_learns_and_torchmetrics() -> None:
    outputs, target = classified()
    got = score("accuracy", outputs, target)
    assert (got.shape, got.dtype) == ((60,), torch.float64)
    assert float(got.mean()) == accuracy_score(target, outputs.argmax(1))
    wanted = torchmetrics.classification.MulticlassAccuracy(9, average="micro")(outputs, target)
    assert float(got.mean()) == pytest.approx(float(wanted))


def test_top5_accuracy_is_scikit_learns() -> None:
    outputs, target = classified()
    got = float(score("top5_accuracy", outputs, target).mean())
    assert got == top_k_accuracy_score(target.numpy(), outputs.numpy(), k=5, labels=list(range(9)))
    for few in (torch.randn(6, 5), torch.randn(6, 1), torch.randn(6), torch.zeros(6, dtype=torch.long)):
        with pytest.raises(DataError, match=r"needs more than 5 classes.*gate.metric: accuracy"):
            score("top5_accuracy", few, torch.zeros(6, dtype=torch.long))


def test_mean_squared_error_is_scikit_learns() -> None:
    outputs, target = torch.randn(20, 3), torch.randn(20, 3)
    got = score("mean_squared_error", outputs, target)
    assert got.shape == (20,)
    assert float(got.mean()) == pytest.approx(mean_squared_error(target, outputs))


def test_agreement_is_accuracy_with_fp32_for_a_teacher() -> None:
    outputs, fp32 = torch.randn(30, 5), torch.randn(30, 5)
    assert torch.equal(score("agreement", outputs, None, fp32), score("accuracy", outputs, fp32.argmax(1)))
    assert float(score("agreement", fp32, None, fp32).mean()) == 1


def test_for_pixels_a_score_is_the_share_of_them() -> None:
    outputs, target = torch.randn(4, 6, 5, 5), torch.randint(6, (4, 5, 5))
    got = score("accuracy", outputs, target)
    assert got.tolist() == [
        accuracy_score(t.flatten(), o.argmax(0).flatten()) for o, t in zip(outputs, target, strict=True)
    ]
    assert score("top5_accuracy", outputs, target).shape == (4,)


def test_sqnr_by_hand() -> None:
    fp32 = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 2.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    outputs = torch.tensor([[3.0, 4.5], [0.9, 0.0], [2.0, 2.0], [0.0, 0.0], [1.0, 0.0], [1e9, 0.0]])
    wanted = [20.0, 20.0, 100.0, 100.0, -100.0, -100.0]
    got = score("sqnr_db", outputs, None, fp32)
    assert got[:5].tolist() == pytest.approx(wanted[:5], abs=1e-4)
    assert float(got[5]) == pytest.approx(10 * math.log10(2 / 1e18), abs=0.1) or float(got[5]) == -100
    assert score("sqnr_db", outputs[:, 0], None, fp32[:, 0]).shape == (6,)


@pytest.mark.parametrize("name", METRICS)
def test_a_model_that_gives_nan_has_no_better_score_than_any(name: str) -> None:
    outputs, target = classified(8)
    target = torch.randn(8, 9) if name == "mean_squared_error" else target
    broken = score(name, outputs * math.nan, target, outputs)
    assert broken.shape == (8,)
    if name in ("mean_squared_error", "sqnr_db"):
        assert not torch.isfinite(broken).any()


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (8,)])
def test_targets_may_have_a_dimension_of_one_more_or_less(shape: tuple[int, ...]) -> None:
    outputs, target = classified(8)
    assert torch.equal(score("accuracy", outputs, target.view(shape)), score("accuracy", outputs, target))
    values = torch.randn(8, 1)
    wanted = (values.flatten() - target).square().double()
    torch.testing.assert_close(score("mean_squared_error", values, target.view(shape)), wanted)


@pytest.mark.parametrize("name", ["accuracy", "top5_accuracy", "mean_squared_error"])
def test_targets_that_do_not_fit_are_refused(name: str) -> None:
    outputs, _ = classified(8)
    for target in (torch.zeros(7), torch.zeros(8, 2), None, [1, 2]):
        with pytest.raises(DataError, match="make them fit"):
            score(name, outputs, target)


def test_logits_are_found_in_what_models_return() -> None:
    x, other = torch.randn(2, 3), torch.randn(2, 3)
    for outputs in (x, [x, other], (x,), {"logits": x, "aux": other}, {"aux": other, "out": x}, {"a": {"b": x}}):
        assert logits(outputs) is x
    with pytest.raises(DataError, match="returns no tensor"):
        logits({"a": 3})


def negative_error() -> object:
    return lambda outputs, target, fp32: -(outputs.flatten() - target).abs()


def no_function() -> object:
    return 3


class OwnMetric:
    """As torchmetrics' are, without a direction."""

    def update(self, outputs: Tensor, target: Tensor) -> None:
        self.count = len(outputs)

    def compute(self) -> float:
        return float(self.count)


def test_a_name_of_ours() -> None:
    outputs, target = classified()
    made = load_metric(Gate(metric="accuracy"))
    assert (made.name, made.higher_is_better) == ("accuracy", True)
    assert torch.equal(made.per_sample(outputs, target, None), score("accuracy", outputs, target))
    turned = load_metric(Gate(metric="mean_squared_error", direction="higher"))
    assert (turned.name, turned.higher_is_better) == ("mean_squared_error", True)
    assert {name: one.higher_is_better for name, one in METRICS.items() if not one.higher_is_better} == {
        "mean_squared_error": False
    }


def test_a_metric_of_torchmetrics_brings_its_direction_and_is_made_anew_every_time() -> None:
    gate = Gate(
        metric="torchmetrics.classification:MulticlassF1Score", metric_kwargs={"num_classes": 9, "average": "macro"}
    )
    metric = load_metric(gate)
    assert (metric.name, metric.higher_is_better, metric.per_sample) == ("F1", True, None)
    outputs, target = classified()
    one, other = metric.make_whole(), metric.make_whole()
    one.update(outputs, target)
    assert other is not one
    wanted = torchmetrics.functional.classification.multiclass_f1_score(outputs, target, 9)
    assert float(one.compute()) == pytest.approx(float(wanted))
    lower = load_metric(Gate(metric="torchmetrics:MeanSquaredError"))
    assert lower.higher_is_better is False
    assert load_metric(Gate(metric="torchmetrics:MeanSquaredError", direction="higher")).higher_is_better is True


def test_a_function_of_the_users_needs_a_direction() -> None:
    metric = load_metric(Gate(metric=f"{HERE}:negative_error", direction="higher"), ("tests",))
    assert isinstance(metric, Metric)
    assert (metric.name, metric.higher_is_better, metric.make_whole) == ("negative_error", True, None)
    assert metric.per_sample(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 5.0]), None).tolist() == [-1.0, 0.0]
    for name in ("negative_error", "OwnMetric"):
        with pytest.raises(DataError, match=r"nothing says whether a higher .* is better; write higher or lower"):
            load_metric(Gate(metric=f"{HERE}:{name}"), ("tests",))


def test_a_function_of_the_users_that_fails_is_told_of_with_its_line() -> None:
    metric = load_metric(Gate(metric=f"{HERE}:negative_error", direction="higher"), ("tests",))
    with pytest.raises(UserCodeError, match=r"^/.*test_metrics.py:\d+, in <lambda>: RuntimeError: .*negative_error"):
        metric.per_sample(torch.zeros(3, 2), torch.zeros(3), None)


@pytest.mark.parametrize("name", ["mean_squared_error", "sqnr_db"])
def test_class_ids_have_no_distance(name: str) -> None:
    ids = torch.tensor([1, 2])
    with pytest.raises(DataError, match=r"the model returns int64, class ids it seems: write gate.metric: agreement"):
        score(name, ids, ids, ids)


def test_real_targets_may_be_whole_or_double() -> None:
    values = torch.tensor([[1.0], [2.5]])
    for target in (torch.tensor([1, 2]), torch.tensor([1.0, 2.0], dtype=torch.float64)):
        assert score("mean_squared_error", values, target).tolist() == [0, 0.25]


def test_what_is_no_metric_is_refused() -> None:
    with pytest.raises(DataError, match="no_function is a int; it has to be a function"):
        load_metric(Gate(metric=f"{HERE}:no_function", direction="higher"), ("tests",))
    with pytest.raises(RecipeError, match="'tests' is not trusted"):
        load_metric(Gate(metric=f"{HERE}:negative_error", direction="higher"))
    with pytest.raises(RecipeError, match="wrong"):
        load_metric(Gate(metric=f"{HERE}:negative_error", metric_kwargs={"wrong": 1}, direction="higher"), ("tests",))


def right(outputs: Tensor, target: Tensor, fp32_outputs: Tensor) -> Tensor:
    return (outputs.argmax(1) == target).float()


def test_a_metric_that_is_named_instead_of_what_makes_it_is_told() -> None:
    with pytest.raises(RecipeError, match=r"name a function that returns it instead of the metric or loss itself"):
        load_metric(Gate(metric="tests.tasks.test_metrics:right", direction="higher"), ("tests",))
