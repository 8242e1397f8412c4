"""Losses by hand, and which one is taken."""

import math

import pytest
import torch

from qatflow.errors import DataError, RecipeError
from qatflow.graph.padding import Padding
from qatflow.qat.losses import ON_LABELS, SoftTargets, choose_objective, distillation
from qatflow.recipe import Recipe, names
from qatflow.tasks.classes import Reading

cross_entropy, mean_squared_error = ON_LABELS["cross_entropy"], ON_LABELS["mean_squared_error"]


def recipe(loss: str = "auto", labels: bool = True, **qat: object) -> Recipe:
    source = {"model": {"name": "digits_mobilenet"}, "data": {"name": "digits", "labels": labels}}
    return Recipe(**source, qat={"loss": loss, **qat})


def user_loss(power: int = 2):
    def loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (outputs.sum(1) - target).abs().pow(power).mean()

    return loss


def no_loss() -> int:
    return 3


def test_cross_entropy_by_hand() -> None:
    outputs, target = {"logits": torch.tensor([[1.0, 2.0], [0.5, -0.5]])}, torch.tensor([1, 1])
    wanted = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2
    assert float(cross_entropy(outputs, target)) == pytest.approx(wanted)


def test_mean_squared_error_by_hand_with_a_dimension_more_or_less() -> None:
    target = torch.tensor([1.0, 3.0, 5.0])
    for outputs in (torch.tensor([1.0, 2.0, 7.0]), torch.tensor([[1.0], [2.0], [7.0]])):
        assert float(mean_squared_error(outputs, target)) == pytest.approx(5 / 3)


def test_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \[3, 2\].*\[3\]"):
        mean_squared_error(torch.zeros(3, 2), torch.zeros(3))


def test_distillation_weighs_every_output_by_its_own_size() -> None:
    wanted = {"big": torch.tensor([100.0, -100.0]), "small": (torch.tensor([0.1, 0.1]), torch.tensor([3, 4]))}
    got = {"big": torch.tensor([110.0, -100.0]), "small": (torch.tensor([0.1, 0.12]), torch.tensor([3, 5]))}
    loss = 50 / 10_000 + 0.0002 / 0.01
    assert float(distillation(got, wanted)) == pytest.approx(loss, rel=1e-4)
    assert float(distillation(wanted, wanted)) == 0
    assert math.isfinite(float(distillation(torch.zeros(2), torch.zeros(2))))


@pytest.mark.parametrize(
    ("target", "labels", "name"),
    [
        (torch.tensor([1, 2]), True, "cross_entropy"),
        (torch.tensor([1.0, 2.0]), True, "mean_squared_error"),
        ([torch.tensor([1])], True, "distillation"),
        (None, False, "distillation"),
    ],
)
def test_auto_looks_at_the_targets(target: object, labels: bool, name: str) -> None:
    objective = choose_objective(recipe(labels=labels), target)
    assert objective.name == name
    assert objective.on_labels == ON_LABELS.get(name)


@pytest.mark.parametrize("name", names.LOSSES)
def test_a_named_loss_is_taken(name: str) -> None:
    objective = choose_objective(recipe(name), torch.tensor([1]))
    assert objective.name == name
    assert objective.on_labels == ON_LABELS.get(name)
    assert objective.needs_fp32(0.0) == (name not in ON_LABELS)


def test_soft_targets_by_hand() -> None:
    got, wanted = torch.tensor([[1.0, -1.0, 0.0]]), torch.tensor([[2.0, 0.0, 1.5]])
    p, q = (torch.softmax(one.double() / 2, 1) for one in (wanted, got))
    assert float(SoftTargets(2.0)(got, wanted)) == pytest.approx(4 * float((p * (p / q).log()).sum()), rel=1e-4)
    assert float(SoftTargets()(wanted, wanted)) == pytest.approx(0, abs=1e-6)


def test_the_mixture_weighs_labels_and_teacher() -> None:
    objective = choose_objective(recipe(temperature=2.0), torch.tensor([1, 0]))
    outputs, fp32, target = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([1, 0])
    labels, teacher = float(cross_entropy(outputs, target)), float(SoftTargets(2.0)(outputs, fp32))
    for weight in (0.0, 0.25, 1.0):
        wanted = (1 - weight) * labels + weight * teacher
        assert float(objective.loss(outputs, target, fp32, weight)) == pytest.approx(wanted, rel=1e-6)
        assert objective.needs_fp32(weight) == (weight > 0)
    real = choose_objective(recipe(), torch.tensor([1.0, 0.0]))
    assert float(real.loss(outputs[:, 0], fp32[:, 0], fp32[:, 0], 1.0)) == pytest.approx(
        float(distillation(outputs[:, 0], fp32[:, 0]))
    )


def test_a_loss_of_the_users() -> None:
    target = torch.tensor([1.0, 2.0])
    objective = choose_objective(recipe(f"{__name__}:user_loss", loss_kwargs={"power": 1}), target, ("tests",))
    assert float(objective.loss(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), target, None, 0.0)) == pytest.approx(1.5)
    smooth = choose_objective(
        recipe("torch.nn:CrossEntropyLoss", loss_kwargs={"label_smoothing": 0.1}), torch.tensor([1])
    )
    outputs, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    wanted = torch.nn.functional.cross_entropy(outputs, labels, label_smoothing=0.1)
    assert float(smooth.loss(outputs, labels, None, 0.0)) == pytest.approx(float(wanted))


@pytest.mark.parametrize(
    ("loss", "kwargs", "error", "said"),
    [
        (f"{__name__}:user_loss", {"power": 1, "colour": 2}, RecipeError, "no such argument"),
        (f"{__name__}:user_lost", {}, RecipeError, "did you mean 'user_loss'"),
        (f"{__name__}:no_loss", {}, DataError, "returned a int"),
        ("torch.hub:load", {"repo_or_dir": "evil"}, RecipeError, "'torch.hub:load' is not open to every recipe"),
    ],
)
def test_losses_that_cannot_be_used(loss: str, kwargs: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        choose_objective(recipe(loss, loss_kwargs=kwargs), torch.tensor([1]), ("tests",))


def test_padded_positions_teach_nothing() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    torch.manual_seed(0)
    wanted = {"tokens": torch.randn(2, 3, 4), "pooled": torch.randn(2, 3)}
    got = {name: (value + torch.randn_like(value)).requires_grad_() for name, value in wanted.items()}
    loss = distillation(got, wanted, Padding(mask, (1, None)))
    real, off = wanted["tokens"][mask], (got["tokens"] - wanted["tokens"])[mask]
    pooled = (got["pooled"] - wanted["pooled"]).square().mean() / wanted["pooled"].square().mean()
    assert float(loss.detach()) == pytest.approx(float((off.square().mean() / real.square().mean() + pooled).detach()))
    loss.backward()
    assert bool((got["tokens"].grad[~mask] == 0).all())
    assert bool((got["pooled"].grad != 0).all())


def test_soft_targets_leave_out_padded_positions() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    torch.manual_seed(0)
    got, wanted = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    flat = [one.movedim(1, 2)[mask] for one in (got, wanted)]
    second = SoftTargets(reading=Reading(class_axis=1))
    assert float(second(got, wanted, padding=Padding(mask, (2,)))) == pytest.approx(float(SoftTargets()(*flat)))
