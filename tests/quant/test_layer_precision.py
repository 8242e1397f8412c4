"""Overrides by layer: what they change, and what they refuse."""

from functools import cache

import pytest
import torch
import yaml
from torch import Tensor, nn

from qatflow.errors import PlacementError, RecipeError
from qatflow.quant.design import Design
from qatflow.quant.network import Network
from qatflow.quant.placement import Placement, place
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import LayerPrecision, Precision
from qatflow.recipe.precision import written
from tests.networks import Classifier


@cache
def network() -> Network:
    torch.manual_seed(0)
    return captured_network(Classifier().eval(), (torch.randn(2, 3, 8, 8),))


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


class Joined(nn.Module):
    """Two branches that are joined, a reshape, and a layer behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.mix, self.head = nn.Conv2d(8, 4, 1), nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x).relu(), self.right(x).relu()], 1)
        return self.head(self.mix(both).relu().flatten(1))


@cache
def joined(target: str) -> Network:
    torch.manual_seed(0)
    return captured_network(Joined().eval(), (torch.randn(2, 3, 4, 4),), design=Design(TARGETS[target]))


def placed_joined(target: str, **overrides: str) -> Placement:
    named = {name.replace("__", "."): bits for name, bits in overrides.items()}
    precision = Precision.model_validate({"overrides": named})
    return place(joined(target).designed(Design(TARGETS[target], precision)))


def bits(placement: Placement) -> dict[str, int]:
    """Return the bits of all tensors, with those that only move the values of another."""
    found = activations(placement)
    return found | {name: found[source] for name, source in placement.tied.items()}


ON_ONE_GRID = dict.fromkeys(TARGETS, ("relu", "relu_1", "cat")) | {"onnxruntime": ()}
"""What a concat joins, and gives, where the target wants one grid for it."""


@pytest.mark.parametrize("target", TARGETS)
def test_a_tensor_by_its_name_takes_along_what_is_on_its_grid(target: str) -> None:
    plain = bits(placed_joined(target))
    assert plain.keys() - {"linear"} == {"x", "relu", "relu_1", "cat", "relu_2", "flatten"}
    assert set(plain.values()) == {8}
    for name in ("x", "relu", "relu_1", "cat", "relu_2", "flatten"):
        partners = next((group for group in (ON_ONE_GRID[target], ("relu_2", "flatten")) if name in group), (name,))
        found = placed_joined(target, **{name: "a4"})
        assert bits(found) == plain | dict.fromkeys(partners, 4), name
        assert weights(found) == weights(placed_joined(target))


@pytest.mark.parametrize("target", TARGETS)
def test_on_one_grid_the_more_bits_win_and_what_is_said_of_tensors_wins_over_layers(target: str) -> None:
    found = bits(placed_joined(target, relu="a4", relu_1="a6"))
    one_grid = bool(ON_ONE_GRID[target])
    assert (found["relu"], found["relu_1"], found["cat"]) == ((6, 6, 6) if one_grid else (4, 6, 8))
    found = bits(placed_joined(target, left="a16", right="a16", relu_2="a6", head="a16"))
    assert (found["relu"], found["relu_1"], found["x"]) == (16, 16, 16)
    assert (found["relu_2"], found["flatten"]) == (6, 6)
    assert bits(placed_joined(target, relu_2="a6", head="a16")) == bits(placed_joined(target, head="a16", relu_2="a6"))


@pytest.mark.parametrize("target", TARGETS)
def test_a_tensor_in_float_takes_its_grid_along_and_no_layer(target: str) -> None:
    plain = bits(placed_joined(target))
    for name, partners in (("relu_1", ON_ONE_GRID[target] or ("relu_1",)), ("flatten", ("relu_2", "flatten"))):
        found = placed_joined(target, **{name: "float"})
        assert bits(found) == {tensor: number for tensor, number in plain.items() if tensor not in partners}
        told = {left.tensor: left.reason for left in found.floats}
        assert told[name] == f"precision.overrides[{name!r}] leaves it in float"
        assert told.keys() >= set(partners)
        assert found.float_layers == []
        simulation = Simulation(joined(target).designed(Design(TARGETS[target], overridden(name, "float"))))
        simulation.calibrate([((torch.randn(8, 3, 4, 4),), {})])
        assert simulation.encodings().keys() & set(partners) == set()


def overridden(name: str, bits: str) -> Precision:
    return Precision.model_validate({"overrides": {name: bits}})


@pytest.mark.parametrize("target", TARGETS)
def test_a_weight_by_its_name(target: str) -> None:
    eight = dict.fromkeys(("left.weight", "right.weight", "mix.weight", "head.weight"), 8)
    assert weights(placed_joined(target)) == eight
    found = placed_joined(target, mix__weight="w4_per_tensor")
    assert weights(found) == {**eight, "mix.weight": 4}
    assert {point.parameter for point in found.points if point.parameter and point.axis is None} == {"mix.weight"}
    assert bits(found) == bits(placed_joined(target))
    assert weights(placed_joined(target, mix="w6", mix__weight="w4"))["mix.weight"] == 4
    assert weights(placed_joined(target, mix__weight="w4", mix="w6"))["mix.weight"] == 4
    left = placed_joined(target, mix__weight="float")
    assert [(one.layer, one.reason) for one in left.float_layers] == [
        ("mix", "precision.overrides['mix.weight'] leaves it in float")
    ]
    assert bits(left) == bits(placed_joined(target))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "bits"), [("conv2d", "a16"), ("relu", "w4"), ("mix.weight", "a4")])
def test_a_tensor_that_it_does_not_change_is_a_mistake(target: str, name: str, bits: str) -> None:
    with pytest.raises(RecipeError, match=rf"\['{name}'\]: changes nothing: target {target} does not quantize it"):
        place(joined(target).designed(Design(TARGETS[target], overridden(name, bits))))


def test_a_layer_whose_tensors_are_named_as_well_is_no_mistake() -> None:
    found = placed("onnxruntime", overrides={"features": "w4", "relu_1": "a16"})
    assert (weights(found)["features.2.weight"], activations(found)["relu_1"]) == (4, 16)


def test_all_patterns_that_match_nothing_are_told_with_near_matches() -> None:
    with pytest.raises(RecipeError) as caught:
        placed(overrides={"clasifier.*": "w4", "features.9": "float", "classifier.2": "w4"})
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        "precision.overrides['clasifier.*']: matches no layer and no tensor; did you mean 'classifier'? "
        "the model's parts are classifier, features; `python -m qatflow.inspect` lists tensors",
        "precision.overrides['features.9']: matches no layer and no tensor; did you mean 'features.3'? "
        "the model's parts are classifier, features; `python -m qatflow.inspect` lists tensors",
    ]


def test_everything_in_float_is_nothing_to_simulate() -> None:
    with pytest.raises(
        PlacementError, match=r"quantizes no weighted layer.*precision.overrides\['\*'\] leaves it in float"
    ):
        placed(overrides={"*": "float"})


def test_a_target_without_zero_points_refuses_them() -> None:
    with pytest.raises(PlacementError, match="tensorrt has symmetric activations only"):
        placed("tensorrt", activations_symmetric=False)


@pytest.mark.parametrize("text", ["float", "w8", "a16", "w4a8", "w8_per_tensor", "w4a8_per_channel"])
def test_overrides_are_written_as_they_are_read(text: str) -> None:
    overrides = Precision(overrides={"a.b": text}).overrides
    assert written(overrides) == f"{{a.b: {text}}}"
    assert Precision(overrides=yaml.safe_load(written(overrides))).overrides == overrides
