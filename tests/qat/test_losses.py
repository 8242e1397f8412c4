"""Losses by hand, and which one is taken."""

import math

import pytest
import torch

from qatflow.errors import DataError
from qatflow.qat.losses import LOSSES, choose_loss, cross_entropy, distillation, mean_squared_error
from qatflow.recipe import Recipe


def recipe(loss: str = "auto", labels: bool = True) -> Recipe:
    return Recipe(model={"name": "digits_mobilenet"}, data={"name": "digits", "labels": labels}, qat={"loss": loss})


def test_cross_entropy_by_hand() -> None:
    outputs, target = {"logits": torch.tensor([[1.0, 2.0], [0.5, -0.5]])}, torch.tensor([1, 1])
    wanted = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2
    assert float(cross_entropy(outputs, target, None)) == pytest.approx(wanted)


def test_mean_squared_error_by_hand_with_a_dimension_more_or_less() -> None:
    target = torch.tensor([1.0, 3.0, 5.0])
    for outputs in (torch.tensor([1.0, 2.0, 7.0]), torch.tensor([[1.0], [2.0], [7.0]])):
        assert float(mean_squared_error(outputs, target, None)) == pytest.approx(5 / 3)


def test_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \[3, 2\].*\[3\]"):
        mean_squared_error(torch.zeros(3, 2), torch.zeros(3), None)


def test_distillation_weighs_every_output_by_its_own_size() -> None:
    wanted = {"big": torch.tensor([100.0, -100.0]), "small": (torch.tensor([0.1, 0.1]), torch.tensor([3, 4]))}
    got = {"big": torch.tensor([110.0, -100.0]), "small": (torch.tensor([0.1, 0.12]), torch.tensor([3, 5]))}
    loss = 50 / 10_000 + 0.0002 / 0.01
    assert float(distillation(got, None, wanted)) == pytest.approx(loss, rel=1e-4)
    assert float(distillation(wanted, None, wanted)) == 0
    assert math.isfinite(float(distillation(torch.zeros(2), None, torch.zeros(2))))


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
    assert choose_loss(recipe(labels=labels), target) == (name, LOSSES[name])


@pytest.mark.parametrize("name", LOSSES)
def test_a_named_loss_is_taken(name: str) -> None:
    assert choose_loss(recipe(name), torch.tensor([1])) == (name, LOSSES[name])
