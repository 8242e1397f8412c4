"""`set_precision` changes the design of some layers and tensors, and undoes what was fitted to the old one."""

from functools import cache

import pytest
import torch
from torch import Tensor

from qatflow import STEPS, Network, Simulation
from qatflow.errors import RecipeError
from qatflow.graph.layers import tensor
from qatflow.quant.placement import Placement, place
from qatflow.quant.prepare import captured_network
from qatflow.recipe.steps import STEP_CONFIGS, SetPrecision
from qatflow.results.result import Note
from qatflow.steps.context import StepContext
from qatflow.steps.set_precision import set_precision
from tests.networks import Classifier


def inputs(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@cache
def base() -> Network:
    torch.manual_seed(0)
    return captured_network(Classifier().eval(), (inputs(2),))


@cache
def fitted() -> Network:
    """Return the network with biases corrected and weights rounded."""
    network = base()
    for name in ("correct_bias", "adaround"):
        network, _ = STEPS[name](network, STEP_CONFIGS[name](samples=32), context())
    return network


def context() -> StepContext:
    return StepContext(lambda limit: [((inputs(32),), {})])


def applied(network: Network, **layers: str) -> tuple[Network, dict[str, Note]]:
    named = {name.replace("__", "."): bits for name, bits in layers.items()}
    return set_precision(network, SetPrecision(layers=named), context())


def bits_of(network: Network) -> dict[str, int]:
    return {point.parameter or point.tensor: point.grid.bits for point in place(network).points}


EIGHT = {
    "features.0.weight": 8,
    "features.2.weight": 8,
    "classifier.0.weight": 8,
    "classifier.2.weight": 8,
    "x": 8,
    "relu": 8,
    "relu_1": 8,
    "relu_2": 8,
}


@pytest.mark.parametrize(
    ("layers", "changed", "weights", "activations"),
    [
        ({"classifier.2": "w4a16"}, {"classifier.2.weight": 4, "relu_2": 16}, 1, 1),
        ({"features.*": "w6"}, {"features.0.weight": 6, "features.2.weight": 6}, 2, 0),
        ({"*.2": "a4"}, {"relu": 4, "relu_1": 4, "relu_2": 4}, 0, 3),
        ({"relu_1": "a16"}, {"relu_1": 16}, 0, 1),
        ({"x": "a4"}, {"x": 4}, 0, 1),
        ({"classifier.0.weight": "w4"}, {"classifier.0.weight": 4}, 1, 0),
        ({"features": "w4", "features.2.weight": "w6"}, {"features.0.weight": 4, "features.2.weight": 6}, 2, 0),
    ],
)  # fmt: skip
def test_layers_by_module_or_pattern_and_tensors_by_name(
    layers: dict[str, str], changed: dict[str, int], weights: int, activations: int
) -> None:
    assert bits_of(base()) == EIGHT
    result, notes = set_precision(base(), SetPrecision(layers=layers), context())
    assert bits_of(result) == {**EIGHT, **changed}
    assert notes == {"weights": weights, "activations": activations, "layers": ", ".join(layers)}
    assert bits_of(base()) == EIGHT
    assert result.design.target is base().design.target
    assert list(result.design.precision.overrides) == list(layers)


def test_it_counts_more_than_what_the_design_said_before() -> None:
    once, _ = applied(base(), features="w4")
    twice, notes = applied(once, features__0="w8")
    assert bits_of(twice) == {**EIGHT, "features.2.weight": 4}
    assert notes == {"weights": 1, "activations": 0, "layers": "features.0"}


def reasons(placement: Placement) -> dict[str, str]:
    return {left.tensor: left.reason for left in placement.floats}


def test_one_tensor_in_float_leaves_its_layer_on_integers() -> None:
    result, notes = applied(base(), relu_1="float")
    placement = place(result)
    assert bits_of(result) == {name: bits for name, bits in EIGHT.items() if name != "relu_1"}
    assert reasons(placement)["relu_1"] == "precision.overrides['relu_1'] leaves it in float"
    assert placement.float_layers == []
    assert notes == {"weights": 0, "activations": 1, "layers": "relu_1"}
    simulation = Simulation(result)
    simulation.calibrate([((inputs(32),), {})])
    seen: list[Tensor] = []
    simulation.quantizer("relu").register_forward_hook(lambda module, args, output: seen.append(output))
    simulation.model(inputs(8))
    assert len(seen[0].unique()) <= 256


def test_a_layer_in_float_takes_its_weight_and_what_only_it_reads_along() -> None:
    result, notes = applied(base(), classifier__2="float")
    assert bits_of(result).keys() == EIGHT.keys() - {"classifier.2.weight", "relu_2"}
    assert [left.layer for left in place(result).float_layers] == ["classifier.2"]
    assert notes == {"weights": 1, "activations": 1, "layers": "classifier.2"}


def test_one_weight_in_float_is_told_as_a_layer_in_float() -> None:
    result, _ = applied(base(), classifier__0__weight="float")
    (left,) = place(result).float_layers
    assert (left.layer, left.reason) == (
        "classifier.0",
        "precision.overrides['classifier.0.weight'] leaves it in float",
    )


@pytest.mark.parametrize("name", ["classifier.0", "classifier.0.weight"])
@pytest.mark.parametrize("bits", ["w4", "float"])
def test_weights_that_were_fitted_go_back_to_those_of_fp32(name: str, bits: str) -> None:
    before = fitted()
    own = {"classifier.0.weight", "classifier.0.bias"}
    assert own <= before.goal.keys()
    result, _ = set_precision(before, SetPrecision(layers={name: bits}), context())
    for parameter in own:
        assert not torch.equal(tensor(before.graph, parameter), tensor(base().graph, parameter))
        assert torch.equal(tensor(result.graph, parameter), tensor(base().graph, parameter))
    assert result.goal.keys() == before.goal.keys() - own
    assert result.encodings.keys() == before.encodings.keys() - {"classifier.0.weight"}
    for parameter in before.goal.keys() - own:
        assert torch.equal(tensor(result.graph, parameter), tensor(before.graph, parameter))
    x = inputs(4)
    with torch.no_grad():
        assert torch.equal(result.fp32_graph(x), base().graph(x))


def test_more_bits_for_an_activation_leave_what_was_fitted() -> None:
    result, notes = applied(fitted(), classifier="a16")
    assert notes["weights"] == 0
    assert result.graph is fitted().graph
    assert (result.goal, result.encodings) == (fitted().goal, fitted().encodings)


def test_another_granularity_is_another_grid_as_well() -> None:
    result, notes = applied(fitted(), classifier__0="_per_tensor")
    assert notes == {"weights": 1, "activations": 0, "layers": "classifier.0"}
    assert "classifier.0.weight" not in result.encodings


def mistakes(**layers: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        applied(base(), **layers)
    return [str(one) for one in caught.value.mistakes]


def test_names_that_nothing_has_are_told_at_once_with_near_matches() -> None:
    first, second = mistakes(clasifier="w4", features__7="float")
    assert "'clasifier'" in first and "matches no layer and no tensor; did you mean 'classifier'?" in first
    assert "'features.7'" in second and "the model's parts are classifier, features" in second
    assert "`python -m qatflow.inspect` lists tensors" in first


@pytest.mark.parametrize(
    ("name", "bits", "told"),
    [
        ("relu_1", "w4", "does not quantize it as a weight (write a and the bits)"),
        ("x", "_per_tensor", "does not quantize it as a weight (write a and the bits)"),
        ("classifier.0.weight", "a16", "does not quantize it as an activation (write w and the bits)"),
        ("conv2d", "a16", "does not quantize it"),
    ],
)
def test_the_wrong_letter_for_a_tensor_is_told(name: str, bits: str, told: str) -> None:
    (mistake,) = mistakes(**{name: bits})
    assert mistake.endswith(f"['{name}']: changes nothing: target onnxruntime {told}; remove it")


def test_where_there_is_nothing_to_do_the_network_is_left_as_it_is() -> None:
    result, notes = applied(base())
    assert result is base()
    assert notes == {"weights": 0, "activations": 0, "reason": "it names no layer"}
    result, notes = applied(base(), features="w8a8", relu_2="a8")
    assert result is base()
    assert notes == {"weights": 0, "activations": 0, "reason": "all that it names is so already"}
