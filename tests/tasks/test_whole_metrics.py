"""What torchmetrics is given: shapes that fit, whole labels, and logits told from probabilities once."""

import pytest
import torch
import torchmetrics
from torch import Tensor
from torchmetrics.functional import classification as functional

from qatflow.errors import DataError, UserCodeError
from qatflow.recipe import Gate
from qatflow.tasks.metrics import Metric, fitted, load_metric, update

LOGITS = torch.tensor([-3.0, -1.0, 2.0, 0.4, 0.2, -0.5])
LABELS = torch.tensor([0, 1, 1, 1, 1, 0])


def metric(name: str, **kwargs: object) -> Metric:
    return load_metric(Gate(metric=f"torchmetrics.classification:{name}", metric_kwargs=kwargs))


def value(made: Metric, batches: list[tuple[Tensor, Tensor]]) -> float:
    whole = made.make_whole()
    for outputs, target in batches:
        update(whole, made, outputs, target)
    return float(whole.compute())


@pytest.mark.parametrize("name", ["BinaryAccuracy", "BinaryF1Score", "BinaryAUROC", "BinaryAveragePrecision"])
@pytest.mark.parametrize("target", [LABELS, LABELS[:, None], LABELS.float()])
def test_one_logit_in_any_shape(name: str, target: Tensor) -> None:
    made = fitted(metric(name), [LOGITS[:, None]], [target])
    wanted = getattr(torchmetrics.classification, name)()(LOGITS, LABELS)
    assert value(made, [(LOGITS[:, None], target)]) == pytest.approx(float(wanted))


def test_a_batch_of_small_logits_is_no_batch_of_probabilities() -> None:
    batches = [(LOGITS[:3, None], LABELS[:3]), (LOGITS[3:5, None], LABELS[3:5]), (LOGITS[5:, None], LABELS[5:])]
    made = fitted(metric("BinaryAccuracy"), *map(list, zip(*batches, strict=True)))
    assert value(made, batches) == pytest.approx(5 / 6)
    plain = torchmetrics.classification.BinaryAccuracy()
    for outputs, target in batches:
        plain.update(outputs[:, 0], target)
    assert float(plain.compute()) == pytest.approx(3 / 6)  # what it would make of 0.4 and 0.2


def test_a_probability_a_little_above_one_is_no_logit() -> None:
    shares = torch.tensor([0.1, 0.2, 0.9, 1.0])
    target = torch.tensor([0, 0, 1, 1])
    made = fitted(metric("BinaryAccuracy"), [shares], [target])
    assert value(made, [(shares + 0.004, target)]) == 1


def test_several_labels_and_many_classes() -> None:
    outputs, several = torch.tensor([[0.3, 0.2], [-1.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    made = fitted(metric("MultilabelAccuracy", num_labels=2), [outputs], [several])
    assert value(made, [(one[None], two[None]) for one, two in zip(outputs, several, strict=True)]) == 1
    scores, target = torch.randn(30, 4), torch.randint(4, (30,))
    area = fitted(metric("MulticlassAUROC", num_classes=4), [scores], [target])
    halves = [(scores[:15], target[:15]), (scores[15:], target[15:])]
    assert value(area, halves) == pytest.approx(float(functional.multiclass_auroc(scores, target, 4)))


def test_regression_may_have_a_column() -> None:
    values, target = torch.randn(9, 1), torch.randn(9)
    made = load_metric(Gate(metric="torchmetrics.regression:MeanSquaredError", metric_kwargs={"squared": False}))
    assert made.name == "RMSE"
    assert value(made, [(values, target)]) == pytest.approx(float((values[:, 0] - target).square().mean().sqrt()))


def test_what_a_metric_cannot_take_is_told_when_it_is_fitted() -> None:
    with pytest.raises(UserCodeError, match=r"^RuntimeError: .*gate.metric: accuracy, given the model's outputs"):
        fitted(metric("BinaryAccuracy"), [torch.randn(4, 2)], [torch.tensor([0, 1, 1, 0])])


class Own:
    """A metric of the user's, which is given what the model returns."""

    higher_is_better = True

    def update(self, outputs: Tensor, target: Tensor) -> None:
        self.shapes = (outputs.shape, target.shape)

    def compute(self) -> float:
        return float(self.shapes == ((4, 1), (4,)))


def test_a_metric_of_the_users_gets_everything_as_it_is() -> None:
    made = load_metric(Gate(metric="tests.tasks.test_whole_metrics:Own"), ("tests",))
    assert made.name == "Own"
    assert value(made, [(torch.randn(4, 1), torch.ones(4))]) == 1


def tokens(count: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12, count, classes, generator=generator)
    return scores, scores.argmax(2)


def test_classes_of_tokens_are_where_the_labels_say() -> None:
    scores, labels = tokens(5, 3)
    f1 = metric("MulticlassF1Score", num_classes=3)
    assert value(f1, [(scores, labels)]) == 1.0
    assert value(f1, [(scores.movedim(2, 1), labels)]) == 1.0
    assert value(metric("MulticlassAUROC", num_classes=3), [(scores, labels)]) > 0.95


def test_as_many_tokens_as_classes_are_refused() -> None:
    said = r"nothing says on which axis the classes are: let the model return them on axis 1"
    with pytest.raises(DataError, match=said):
        value(metric("MulticlassF1Score", num_classes=3), [tokens(3, 3)])
