"""Losses on labels: shapes and dtypes that fit, labels that do not count, class weights, tokens, one score."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qatflow.errors import DataError
from qatflow.qat.losses import Objective, SoftTargets, choose_objective
from qatflow.recipe import Recipe
from qatflow.tasks.classes import Reading


def objective(
    loss: str, target: Tensor, outputs: Tensor | None = None, ignore_index: int | None = None, **kwargs: object
) -> Objective:
    source = {"name": "digits", "ignore_index": ignore_index}
    made = Recipe(model={"name": "digits_mobilenet"}, data=source, qat={"loss": loss, "loss_kwargs": kwargs})
    return choose_objective(made, target, (), outputs)


def value(loss: str, outputs: Tensor, target: Tensor, ignore_index: int | None = None, **kwargs: object) -> float:
    made = objective(loss, target, outputs, ignore_index, **kwargs)
    found = made.loss(outputs.requires_grad_(), target, None, 0.0)
    found.backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    return float(found.detach())


def test_class_weights_are_written_as_a_list() -> None:
    outputs, target = torch.randn(9, 2), torch.randint(2, (9,))
    wanted = functional.cross_entropy(outputs, target, torch.tensor([0.2, 1.8]))
    assert value("torch.nn:CrossEntropyLoss", outputs, target, weight=[0.2, 1.8]) == pytest.approx(float(wanted))
    double = outputs.detach().double()
    assert value("torch.nn:CrossEntropyLoss", double, target, weight=[0.2, 1.8]) == pytest.approx(float(wanted))
    log = outputs.detach().log_softmax(1)
    assert value("torch.nn:NLLLoss", log, target, weight=[0.2, 1.8]) == pytest.approx(float(wanted))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64, torch.bool])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_a_binary_loss_takes_labels_as_they_come(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    outputs, target = torch.randn(6, 1), torch.tensor([0, 1, 1, 0, 1, 0])
    wanted = functional.binary_cross_entropy_with_logits(outputs[:, 0], target.float(), pos_weight=torch.tensor([5.0]))
    got = value("torch.nn:BCEWithLogitsLoss", outputs, target.to(dtype).view(shape), pos_weight=[5.0])
    assert got == pytest.approx(float(wanted))


@pytest.mark.parametrize(("name", "of"), [("MSELoss", "mse_loss"), ("L1Loss", "l1_loss"), ("HuberLoss", "huber_loss")])
def test_real_targets_are_made_to_fit(name: str, of: str) -> None:
    outputs, target = torch.randn(6, 1), torch.arange(6)
    wanted = getattr(functional, of)(outputs[:, 0], target.float())
    assert value(f"torch.nn:{name}", outputs, target) == pytest.approx(float(wanted))
    with pytest.raises(DataError, match="make them fit"):
        value(f"torch.nn:{name}", torch.randn(6, 2), target)


@pytest.mark.parametrize("loss", ["cross_entropy", "torch.nn:CrossEntropyLoss"])
@pytest.mark.parametrize("ignored", [255, -100])
def test_ignored_pixels_teach_nothing(loss: str, ignored: int) -> None:
    outputs, target = torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))
    target[:, 1:] = ignored
    wanted = functional.cross_entropy(outputs[:, :, :1], target[:, :1])
    assert value(loss, outputs, target) == pytest.approx(float(wanted))
    assert value(loss, outputs.detach(), torch.full_like(target, ignored)) == 0


def test_another_loss_of_torch_gets_scores_and_targets() -> None:
    outputs, target = {"logits": torch.randn(5, 3)}, torch.tensor([0, 1, 2, 1, 0])
    wanted = functional.multi_margin_loss(outputs["logits"], target, weight=torch.tensor([1.0, 2, 3]))
    made = objective("torch.nn:MultiMarginLoss", target, weight=[1, 2, 3])
    assert float(made.loss(outputs, target, None, 0.0)) == pytest.approx(float(wanted))


def test_an_ignore_index_of_recipe_and_of_loss() -> None:
    outputs, target = torch.randn(3, 4), torch.tensor([0, 9, 2])
    wanted = float(functional.cross_entropy(outputs[[0, 2]], target[[0, 2]]))
    assert value("cross_entropy", outputs, target, ignore_index=9) == pytest.approx(wanted)
    assert value("torch.nn:CrossEntropyLoss", outputs.detach(), target, ignore_index=9) == pytest.approx(wanted)
    own = objective("torch.nn:CrossEntropyLoss", target)
    with pytest.raises(DataError, match=r"a label is 9.*0 to 3.*data.ignore_index: 9"):
        own.loss(outputs, target, None, 0.0)


def test_ignored_labels_of_a_binary_loss() -> None:
    outputs, target = torch.randn(2, 3), torch.tensor([[1, 0, -100], [255, 1, 1]])
    keep = (target == 0) | (target == 1)
    weight = torch.tensor([1.0, 2.0, 3.0])
    each = functional.binary_cross_entropy_with_logits(
        outputs, target.clamp(0, 1).float(), pos_weight=weight, reduction="none"
    )
    got = value("torch.nn:BCEWithLogitsLoss", outputs, target, pos_weight=[1, 2, 3])
    assert got == pytest.approx(float(each[keep].mean()))
    with pytest.raises(DataError, match=r"a label is 2, and a binary cross entropy takes 0 to 1, or -100 or 255"):
        value("torch.nn:BCEWithLogitsLoss", outputs.detach(), target.clamp(min=2))


@pytest.mark.parametrize("loss", ["cross_entropy", "torch.nn:CrossEntropyLoss"])
def test_tokens_have_their_classes_last(loss: str) -> None:
    outputs, target = torch.randn(2, 5, 3), torch.randint(3, (2, 5))
    target[0, 3:] = -100
    wanted = functional.cross_entropy(outputs.flatten(0, 1), target.flatten())
    assert value(loss, outputs, target) == pytest.approx(float(wanted))


def test_soft_labels_are_shares_of_the_classes() -> None:
    outputs, shares = torch.randn(4, 3), torch.rand(4, 3).softmax(1)
    wanted = functional.cross_entropy(outputs, shares)
    assert value("cross_entropy", outputs, shares) == pytest.approx(float(wanted))


@pytest.mark.parametrize("loss", ["auto", "cross_entropy", "torch.nn:CrossEntropyLoss"])
@pytest.mark.parametrize("shape", [(8, 1), (8,), (8, 1, 2, 2)])
def test_cross_entropy_of_one_score_is_refused(loss: str, shape: tuple[int, ...]) -> None:
    outputs = torch.randn(shape)
    with pytest.raises(DataError, match=r"is always 0: write qat.loss: torch.nn:BCEWithLogitsLoss"):
        value(loss, outputs, (outputs > 0).long())


def test_auto_cannot_tell_labels_from_values() -> None:
    target = torch.tensor([0.0, 1] * 8)
    with pytest.raises(DataError, match=r"only 0 and 1.*BCEWithLogitsLoss.*or qat.loss: mean_squared_error"):
        objective("auto", target)
    assert objective("mean_squared_error", target).name == "mean_squared_error"


def test_several_labels_are_no_classes() -> None:
    outputs = torch.randn(2, 3)
    with pytest.raises(DataError, match=r"a label for every output.*BCEWithLogitsLoss"):
        value("auto", outputs, torch.tensor([[1, 0, 1], [1, 1, 1]]))
    with pytest.raises(DataError, match="cross entropy takes class ids, or shares"):
        value("auto", outputs, torch.tensor([[1, 0, 0], [0, 1, 0]]))


def test_class_ids_have_no_loss() -> None:
    ids = torch.tensor([1, 2])
    for loss in ("cross_entropy", "mean_squared_error", "torch.nn:BCEWithLogitsLoss"):
        with pytest.raises(DataError, match="a loss needs scores"):
            objective(loss, ids).loss(ids, ids, None, 0.0)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_soft_targets_of_one_score_are_those_of_two_classes(shape: tuple[int, ...]) -> None:
    got, wanted = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    p, q = (torch.sigmoid(one / 2) for one in (wanted, got))
    by_hand = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert float(SoftTargets(2.0)(got.view(shape), wanted.view(shape))) == pytest.approx(float(by_hand))


def test_soft_targets_of_tokens_and_of_several_labels() -> None:
    got, wanted = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    flat = SoftTargets()(got.flatten(0, 1), wanted.flatten(0, 1))
    made = objective("torch.nn:CrossEntropyLoss", torch.randint(3, (2, 5)), wanted)
    assert float(made.from_teacher(got, wanted)) == pytest.approx(float(flat))
    with pytest.raises(DataError, match="on which axis the classes are"):
        SoftTargets()(got, wanted)
    several = objective("torch.nn:BCEWithLogitsLoss", torch.tensor([[1, 0, 1], [1, 1, 1]]), wanted[:, 0])
    column = SoftTargets()(got[:, 0].reshape(-1, 1), wanted[:, 0].reshape(-1, 1))
    assert float(several.from_teacher(got[:, 0], wanted[:, 0])) == pytest.approx(float(column))
    assert several.from_teacher == SoftTargets(4.0, Reading(None, 0.0))


def own_cross_entropy(weight: list[float]) -> nn.Module:
    return nn.CrossEntropyLoss(torch.tensor(weight, dtype=torch.float32))


def test_a_factory_that_returns_a_loss_of_torch() -> None:
    outputs, target = {"logits": torch.randn(5, 3)}, torch.tensor([0, 1, 2, 255, 0])
    source = {"model": {"name": "digits_mobilenet"}, "data": {"name": "digits"}}
    qat = {"loss": "tests.qat.test_label_losses:own_cross_entropy", "loss_kwargs": {"weight": [1, 2, 3]}}
    made = choose_objective(Recipe(**source, qat=qat), target, ("tests",))
    keep = target != 255
    wanted = functional.cross_entropy(outputs["logits"][keep], target[keep], torch.tensor([1.0, 2, 3]))
    assert float(made.loss(outputs, target, None, 0.0)) == pytest.approx(float(wanted))
