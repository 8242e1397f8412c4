"""Overrides by layer: what they change, and what they refuse."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from qatflow.errors import PlacementError, RecipeError
from qatflow.quant.design import Design
from qatflow.quant.network import Network
from qatflow.quant.placement import Placement, place
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import LayerPrecision, Precision


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).amax((2, 3)))


@cache
def network() -> Network:
    torch.manual_seed(0)
    return captured_network(Net().eval(), (torch.randn(2, 3, 8, 8),))


def designed(target: str = "qnn", **precision: object) -> Network:
    return network().designed(Design(TARGETS[target], Precision.model_validate(precision)))


def placed(target: str = "qnn", **precision: object) -> Placement:
    return place(designed(target, **precision))


def weights(placement: Placement) -> dict[str, int]:
    return {point.parameter: point.grid.bits for point in placement.points if point.parameter}


def activations(placement: Placement) -> dict[str, int]:
    return {point.tensor: point.grid.bits for point in placement.points if not point.parameter}


def test_the_short_form_and_the_long_one_say_the_same() -> None:
    stated = {
        "w4a16_per_tensor": {"weights": 4, "activations": 16, "per_channel": False},
        "w4": {"weights": 4},
        "a16": {"activations": 16},
        "_per_channel": {"per_channel": True},
        "float": {"quantized": False},
    }
    for short, long in stated.items():
        precision = Precision.model_validate({"overrides": {"x": short}})
        assert precision.overrides["x"] == LayerPrecision.model_validate(long)
        assert Precision.model_validate(precision.model_dump(mode="json")) == precision


def test_a_pattern_takes_a_module_with_all_that_is_inside() -> None:
    found = placed(overrides={"classifier": "w4a16"})
    assert weights(found) == {
        "features.0.weight": 8,
        "features.2.weight": 8,
        "classifier.0.weight": 4,
        "classifier.2.weight": 4,
    }
    assert activations(found) == {"x": 8, "relu": 8, "relu_1": 16, "relu_2": 16, "linear_1": 16}
    assert weights(placed(overrides={"classifier.*": "w4"})) == weights(found)
    assert weights(placed(overrides={"*.0": "w4"}))["classifier.0.weight"] == 4


def test_a_tensor_between_two_layers_gets_the_more_bits() -> None:
    found = activations(placed(overrides={"features.0": "a4", "features.2": "a16"}))
    assert (found["x"], found["relu"], found["relu_1"], found["linear_1"]) == (4, 16, 16, 8)


def test_a_later_pattern_counts_more() -> None:
    assert weights(placed(overrides={"features": "w4", "features.2": "w6"}))["features.2.weight"] == 6
    assert weights(placed(overrides={"features.2": "w6", "features": "w4"}))["features.2.weight"] == 4


def test_first_and_last_layer() -> None:
    found = placed(first_layer="w16", last_layer="float")
    assert weights(found) == {"features.0.weight": 16, "features.2.weight": 8, "classifier.0.weight": 8}
    assert {left.layer: left.reason for left in found.float_layers} == {
        "classifier.2": "precision.last_layer leaves it in float"
    }
    assert weights(placed(first_layer="float", overrides={"features.0": "w4"}))["features.0.weight"] == 4


@pytest.mark.parametrize("target", TARGETS)
def test_a_layer_in_float_computes_in_float(target: str) -> None:
    found = placed(target, overrides={"features.0": "float"})
    assert "features.0.weight" not in weights(found)
    assert "conv2d" not in activations(found)  # the ReLU behind it still ends a chain
    assert "x" not in activations(found) or target == "qnn"
    assert any(left.reason == "precision.overrides['features.0'] leaves it in float" for left in found.floats)
    x = torch.randn(8, 3, 8, 8)
    simulation = Simulation(designed(target, overrides={"features.0": "float"}))
    simulation.calibrate([((x,), {})])
    simulation.model(x)


def test_granularity_and_symmetry() -> None:
    found = placed(overrides={"features.2": "_per_tensor"}, weights_symmetric=False, activations_symmetric=True)
    by_name = {point.parameter or point.tensor: point for point in found.points}
    assert (by_name["features.0.weight"].axis, by_name["features.2.weight"].axis) == (0, None)
    assert not by_name["features.0.weight"].grid.symmetric
    assert by_name["x"].grid.symmetric
    assert by_name["x"].grid.qmin == -128


def test_all_patterns_that_match_nothing_are_told_with_near_matches() -> None:
    with pytest.raises(RecipeError) as caught:
        placed(overrides={"clasifier.*": "w4", "features.9": "float", "classifier.2": "w4"})
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        "precision.overrides['clasifier.*']: matches no layer; did you mean 'classifier'? "
        "the model's parts are classifier, features",
        "precision.overrides['features.9']: matches no layer; did you mean 'features.3'? "
        "the model's parts are classifier, features",
    ]


def test_everything_in_float_is_nothing_to_simulate() -> None:
    with pytest.raises(
        PlacementError, match=r"quantizes no weighted layer.*precision.overrides\['\*'\] leaves it in float"
    ):
        placed(overrides={"*": "float"})


def test_a_target_without_zero_points_refuses_them() -> None:
    with pytest.raises(PlacementError, match="tensorrt has symmetric activations only"):
        placed("tensorrt", activations_symmetric=False)
