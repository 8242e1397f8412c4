"""Outputs read as classes: one score, several labels, ids, tokens, pixels; labels that do not count; wrong ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score
from torch import Tensor

from qatflow.errors import DataError, RecipeError
from qatflow.recipe import Gate
from qatflow.tasks.classes import Reading
from qatflow.tasks.data import Batch
from qatflow.tasks.evaluate import Evaluator
from qatflow.tasks.metrics import METRICS, Metric, fitted, load_metric


def metric(name: str = "accuracy", ignore_index: int | None = None, **kwargs: object) -> Metric:
    return load_metric(Gate(metric=name, metric_kwargs=kwargs), ignore_index=ignore_index)


def scores(made: Metric, outputs: Tensor, target: object, fp32: Tensor | None = None) -> list[float]:
    return made.per_sample(outputs, target, fp32).tolist()


LOGITS = torch.tensor([-2.0, -0.1, 0.2, 3.0, 0.6])
LABELS = torch.tensor([0, 1, 0, 1, 1])
RIGHT = [1.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 1, 1, 1)])
@pytest.mark.parametrize("target", [LABELS, LABELS[:, None], LABELS.float(), LABELS.bool()])
def test_one_logit_is_a_yes_or_no(shape: tuple[int, ...], target: Tensor) -> None:
    outputs = LOGITS.view(shape)
    for made in (metric(), fitted(metric(), [outputs], [target])):
        assert scores(made, outputs, target) == RIGHT
    assert scores(metric("agreement"), outputs, target, outputs - 0.3) == [1, 1, 0, 1, 1]
    assert scores(metric("agreement"), outputs, None, outputs - 0.3) == [1, 1, 0, 1, 1]


def test_probabilities_are_told_from_logits_once_by_fp32() -> None:
    batches, target = [LOGITS.sigmoid()[:3, None], LOGITS.sigmoid()[3:, None]], [LABELS[:3], LABELS[3:]]
    made = fitted(metric(), batches, target)
    assert [score for one, of in zip(batches, target, strict=True) for score in scores(made, one, of)] == RIGHT
    assert scores(fitted(metric("agreement"), batches, target), batches[0], None, batches[0] - 0.06) == [1, 1, 0]
    logits = fitted(metric(), [LOGITS[:, None]], [LABELS])
    assert scores(logits, torch.tensor([[0.2], [0.4]]), torch.tensor([1, 1])) == [1, 1]  # a batch within 0 to 1


def test_a_threshold_of_the_users_stays() -> None:
    made = fitted(metric(threshold=0.5), [LOGITS], [LABELS])
    assert scores(made, LOGITS, LABELS) == [1, 0, 1, 1, 1]
    with pytest.raises(DataError, match=r"threshold: the model's outputs .* have 3 classes.*remove it"):
        fitted(metric(threshold=0.5), [torch.randn(4, 3)], [torch.tensor([0, 1, 2, 0])])


def test_pixels_of_one_logit() -> None:
    outputs = torch.tensor([[[[1.0, -1.0], [-1.0, 2.0]]]])
    target = torch.tensor([[[1, 0], [1, 255]]])
    for one in (target, target[:, None]):
        assert scores(metric(), outputs, one) == pytest.approx([2 / 3])


def test_tokens_have_their_classes_where_the_labels_fit() -> None:
    outputs, target = torch.randn(4, 7, 3), torch.randint(3, (4, 7))
    wanted = [accuracy_score(t, o.argmax(1)) for o, t in zip(outputs, target, strict=True)]
    assert scores(metric(), outputs, target) == pytest.approx(wanted)
    assert scores(metric(), outputs.movedim(2, 1), target) == pytest.approx(wanted)
    assert scores(metric(class_axis=-1), outputs, target) == pytest.approx(wanted)
    one = torch.randn(4, 7, 1)
    assert scores(metric(), one, target.clamp(max=1)) == pytest.approx(
        [accuracy_score(t.clamp(max=1), (o > 0).long().flatten()) for o, t in zip(one, target, strict=True)]
    )


def test_where_both_axes_fit_the_recipe_has_to_say() -> None:
    outputs, target = torch.randn(4, 3, 3), torch.randint(3, (4, 3))
    with pytest.raises(DataError, match=r"nothing says on which axis.*gate.metric_kwargs.class_axis: 1 or 2"):
        scores(metric(), outputs, target)
    with pytest.raises(DataError, match="class_axis: 1 or 2"):
        scores(metric("agreement"), torch.randn(4, 7, 3), None, torch.randn(4, 7, 3))
    longer = torch.randn(4, 8, 3)
    made = fitted(metric(), [outputs, longer], [target, torch.randint(3, (4, 8))])  # another batch settles it
    assert scores(made, outputs, target) == scores(metric(class_axis=2), outputs, target)
    other = fitted(metric("agreement"), [longer], [torch.randint(3, (4, 8))])
    same = (outputs.argmax(2) == -outputs.argmin(2)).double().mean(1)
    assert scores(other, outputs, None, -outputs) == same.tolist()
    with pytest.raises(DataError, match=r"class_axis: 3 is no axis of the model's outputs \[4, 3, 3\]"):
        scores(metric(class_axis=3), outputs, target)


def test_images_have_their_classes_second() -> None:
    outputs, target = torch.randn(2, 5, 5, 5), torch.randint(5, (2, 5, 5))
    wanted = [accuracy_score(t.flatten(), o.argmax(0).flatten()) for o, t in zip(outputs, target, strict=True)]
    assert scores(metric(), outputs, target) == pytest.approx(wanted)


SEVERAL = torch.tensor([[1, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize("target", [SEVERAL, SEVERAL.float()])
def test_several_labels_a_sample(target: Tensor) -> None:
    outputs, fp32 = torch.tensor([[0.1, -2.0, 1.0], [-1.0, -1.0, 2.0]]), torch.tensor([[-0.1, -2, 0.5], [-1, -1, 3]])
    for name in ("accuracy", "top5_accuracy"):
        with pytest.raises(DataError, match=r"torchmetrics.classification:MultilabelF1Score.*\{num_labels: 3\}"):
            scores(metric(name), outputs, target)
    made = fitted(metric("agreement"), [fp32], [target])
    assert scores(made, outputs, target, fp32) == pytest.approx([2 / 3, 1])
    assert scores(made, outputs[:1], target[:1], fp32[:1]) == pytest.approx([2 / 3])
    shares = fitted(metric("agreement"), [fp32.sigmoid()], [target])
    assert scores(shares, outputs.sigmoid(), target, fp32.sigmoid()) == pytest.approx([2 / 3, 1])


def test_one_hot_and_soft_labels_are_no_several_labels() -> None:
    outputs = torch.tensor([[0.1, -2.0, 1.0], [-1.0, -1.5, -2.0]])
    for target in (torch.tensor([[0, 0, 1], [1, 0, 0]]), torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.4, 0.0]])):
        with pytest.raises(DataError, match=r"one-hot or soft labels.*target.argmax\(\).*shape \[2\]"):
            scores(metric(), outputs, target)
        assert scores(metric("agreement"), outputs, target, -outputs) == [0, 0]
        assert scores(metric("agreement"), outputs, target, outputs * 2) == [1, 1]


def test_real_numbers_are_no_labels() -> None:
    with pytest.raises(DataError, match=r"a label is 0.3, and class labels are whole numbers"):
        scores(metric(), torch.randn(2, 3), torch.tensor([1.0, 0.3]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_class_ids_are_compared(dtype: torch.dtype) -> None:
    outputs, target = torch.tensor([3, 1, 2, 200]), torch.tensor([3, 0, 2, 200])
    assert scores(metric(), outputs.to(dtype), target) == [1, 0, 1, 1]
    assert scores(metric("agreement"), outputs.to(dtype), None, target.to(dtype)) == [1, 0, 1, 1]
    dense = torch.tensor([[[1, 2], [3, 0]]], dtype=dtype)
    assert scores(metric(), dense, torch.tensor([[[1, 2], [0, 255]]])) == pytest.approx([2 / 3])
    with pytest.raises(DataError, match="returns class ids, which need no reading"):
        fitted(metric(class_axis=1), [outputs], [target])


@pytest.mark.parametrize("ignored", [255, -100])
def test_ignored_labels_do_not_count(ignored: int) -> None:
    outputs, target = torch.randn(6, 4, 5, 5), torch.randint(4, (6, 5, 5))
    target[:, 2:] = ignored
    wanted = [accuracy_score(t[:2].flatten(), o.argmax(0)[:2].flatten()) for o, t in zip(outputs, target, strict=True)]
    assert scores(metric(), outputs, target) == pytest.approx(wanted)
    target[3] = ignored
    made = metric()
    assert made.counts(outputs, target, None).tolist() == [True, True, True, False, True, True]
    kept = made.per_sample(outputs, target, None)[made.counts(outputs, target, None)]
    assert kept.tolist() == pytest.approx(wanted[:3] + wanted[4:])
    deep = torch.randn(6, 8, 5, 5)
    assert metric("top5_accuracy").per_sample(deep, target, None)[:3].isfinite().all()


def test_an_ignore_index_of_the_recipe_replaces_the_usual_ones() -> None:
    outputs, target = torch.eye(3), torch.tensor([0, 7, 2])
    made = metric(ignore_index=7)
    assert made.per_sample(outputs, target, None)[made.counts(outputs, target, None)].tolist() == [1, 1]
    zero = metric(ignore_index=0)
    assert zero.counts(outputs, torch.tensor([0, 1, 2]), None).tolist() == [False, True, True]
    with pytest.raises(DataError, match=r"a label is -100.*0 to 2, or 7 for what does not count"):
        scores(made, outputs, torch.tensor([0, -100, 2]))


def test_255_is_a_class_where_there_are_more() -> None:
    outputs = torch.zeros(1, 300)
    outputs[0, 255] = 1
    assert scores(metric(), outputs, torch.tensor([255])) == [1]
    assert metric().counts(outputs, torch.tensor([255]), None).tolist() == [True]
    assert metric().counts(outputs[:, :255], torch.tensor([255]), None).tolist() == [False]


@pytest.mark.parametrize(("label", "classes"), [(3, 3), (-1, 3), (2, 1)])
def test_labels_outside_the_classes_are_told(label: int, classes: int) -> None:
    target = torch.tensor([0, label, 0])
    allowed = max(2, classes) - 1
    said = rf"a label is {label}.*labels are 0 to {allowed}, or -100 or 255.*data.ignore_index: {label}"
    with pytest.raises(DataError, match=said):
        fitted(metric(), [torch.randn(3, classes)], [target])


@given(
    shape=st.lists(st.integers(2, 4), min_size=2, max_size=4),
    axis=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_whichever_axis_the_classes_are_on_decisions_are_the_highest_scores(
    shape: list[int], axis: int, seed: int
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    axis = min(axis, values.dim() - 1)
    assert torch.equal(Reading(axis).decisions(values, None), values.argmax(axis))
    if len({*shape}) == len(shape):  # no two sizes are alike, so that the labels' shape says it
        assert torch.equal(Reading().decisions(values, values.argmax(axis)), values.argmax(axis))


def test_arguments_of_our_metrics_are_checked() -> None:
    with pytest.raises(RecipeError, match=r"gate.metric_kwargs.treshold.*did you mean 'threshold'"):
        metric(treshold=1)
    assert METRICS["sqnr_db"].counts is None


def test_padded_positions_do_not_count() -> None:
    outputs, fp32, target = torch.randn(3, 6, 4), torch.randn(3, 6, 4), torch.randint(4, (3, 6))
    target[0, 0], lengths = -100, [6, 4, 1]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    for made, labels, first in (
        (metric(class_axis=2), target, 1),
        (metric("agreement", class_axis=2), fp32.argmax(2), 0),
    ):
        got = made.scores(outputs, target, fp32, mask).tolist()
        wanted = [
            accuracy_score(labels[0, first:], outputs[0, first:].argmax(1)),
            *(accuracy_score(labels[i, :n], outputs[i, :n].argmax(1)) for i, n in ((1, 4), (2, 1))),
        ]
        assert got == pytest.approx(wanted)
    target[2, 0] = -100
    assert metric(class_axis=2).counts(outputs, target, mask).tolist() == [True, True, False]
    error = METRICS["mean_squared_error"].scores(outputs, fp32, None, mask)
    each = (outputs - fp32).square()
    assert error.tolist() == pytest.approx([float(each[i, :n].double().mean()) for i, n in enumerate(lengths)])
    one = torch.randn(3, 4)
    assert metric().scores(one, one.argmax(1), None, mask).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["sqnr_db", "mean_squared_error"])
def test_a_model_of_class_ids_has_no_real_numbers_to_measure(name: str) -> None:
    batch = Batch((torch.tensor([1, 2]),), {}, torch.tensor([1, 2]), 2)
    evaluator = Evaluator(lambda x: x, lambda: [batch], METRICS[name], torch.device("cpu"))
    with pytest.raises(DataError, match=rf"{name} is of real numbers, and the model returns int64, class ids it seems"):
        evaluator.evaluate(lambda x: x)
