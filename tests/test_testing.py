"""The conformance suites find what they are for: every way to be wrong is told in a sentence."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from qatflow import testing
from qatflow.graph.layers import set_tensor, tensor, weighted_layers
from qatflow.quant.design import Design
from qatflow.quant.network import Network, with_tensors
from qatflow.quant.placement import LeftInFloat, Placement, place
from qatflow.quant.targets import TARGETS
from qatflow.recipe.steps import StepConfig
from qatflow.recipe.targets import Road
from qatflow.steps.context import StepContext
from tests.outside import Shrink, of_two, shrink, with_nested_notes, without_notes, without_options

Applied = tuple[Network, dict[str, Any]]


@cache
def network() -> Network:
    torch.manual_seed(0)
    return testing.network_of(testing.Convolutions(), testing.images())


def weights(of: Network) -> dict[str, torch.Tensor]:
    return {layer.weight: tensor(of.graph, layer.weight).detach() for layer in weighted_layers(of.graph)}


def test_a_good_step_passes() -> None:
    testing.check_step(shrink, network=network())
    testing.check_step(shrink, Shrink(by=0.001), target=TARGETS["qnn"], least_sqnr=40)


def in_place(given: Network, config: Shrink, context: StepContext) -> Applied:
    result = given.copy()
    for name, value in weights(given).items():
        set_tensor(given.graph, name, value * 0.99)
    return result, {}


def sharing(given: Network, config: Shrink, context: StepContext) -> Applied:
    name = next(iter(weights(given)))
    result = with_tensors(given.graph, {name: weights(given)[name] * 0.99})
    other = next(one for one in weights(given) if one != name)
    owner, _, leaf = other.rpartition(".")
    setattr(result.get_submodule(owner), leaf, given.graph.get_parameter(other))
    return Network(result), {}


def of_its_own_mind(given: Network, config: Shrink, context: StepContext) -> Applied:
    noise = torch.Generator()
    noise.seed()
    return given.fitted(
        {name: one + 1e-3 * torch.randn(one.shape, generator=noise) for name, one in weights(given).items()}
    ), {}


def infinite(given: Network, config: Shrink, context: StepContext) -> Applied:
    return given.fitted({name: one / 0 for name, one in weights(given).items()}), {}


class Unknown(StepConfig):
    not_after = ("prune",)


def with_unknown_order(given: Network, config: Unknown, context: StepContext) -> Applied:
    return given.copy(), {}


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (in_place, "in_place changes the network that it is given"),
        (sharing, "the result of sharing shares tensors with what it was given"),
        (of_its_own_mind, "of_its_own_mind gives another result with the same seed"),
        (infinite, "the result of infinite has outputs that are not finite"),
        (without_options, "without_options changes nothing of this network"),
        (without_notes, "without_notes returns Network, and a step returns a Network and a dict of notes"),
        (with_nested_notes, "with_nested_notes: its note 'layers' is neither a number nor text nor a truth value"),
        (of_two, "'of_two' does not take a network, its options and a context"),
        (with_unknown_order, "not_after of its options names 'prune', which is no step"),
    ],
)
def test_what_is_wrong_with_a_step_is_told(step: Callable[..., Any], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        testing.check_step(step, network=network().copy())


def test_a_step_that_changes_the_float_function_too_much_is_told() -> None:
    with pytest.raises(AssertionError, match=r"shrink leaves \d+\.\d dB of the float outputs, and 60 is the least"):
        testing.check_step(shrink, Shrink(by=0.1), network(), least_sqnr=60)


QNN = TARGETS["qnn"]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (Road(), "a target is a qatflow.quant.target.Target, and not a Road"),
        (replace(QNN, road=Road(runtimes={"onnx": "npu"})), r"names \['npu'\], and there are onnxruntime, openvino, "),
        (replace(QNN, parameters={}), "qnn quantizes no convolution and no linear layer"),
        (replace(QNN, smallest_scale=1.0), r"qnn simulates Convolutions with -?\d+\.\d dB beside FP32, less than 5.0"),
    ],
)
def test_what_is_wrong_with_a_table_is_told(table: Any, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        testing.check_target(table)


def test_a_road_speaks_of_its_own_files_only() -> None:
    with pytest.raises(ValueError, match="a road has pte in written or runtimes, and not in files"):
        Road(runtimes={"pte": "executorch"})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda one: one.floats.append(LeftInFloat("relu", "", "relu", "")), "placed twice: relu"),
        (lambda one: one.points.pop(), "neither quantized nor listed as float: linear"),
        (lambda one: one.tied.update({"linear": "nothing"}), "others have the grid of what has none: nothing"),
    ],
)
def test_what_is_wrong_with_a_placement_is_told(spoil: Callable[[Placement], object], sentence: str) -> None:
    graph = network().graph
    placement = place(network().designed(Design(QNN)))
    testing.check_placement(graph, placement)
    if "grid" in sentence:
        placement.points.pop()
    spoil(placement)
    with pytest.raises(AssertionError, match=sentence):
        testing.check_placement(graph, placement)
