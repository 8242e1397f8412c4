"""Steps compose: each aims at FP32, whatever was fitted before it."""

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qatflow import STEPS, Network, Simulation
from qatflow.errors import StepError
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.moments import Collector
from qatflow.quant.prepare import captured_network
from qatflow.quant.saved import load, save
from qatflow.recipe import Calibration, LayerPrecision, Precision
from qatflow.recipe.steps import FITTING, STEP_CONFIGS
from qatflow.steps.context import StepContext
from tests.graph.padded import batch, encoder
from tests.networks import inverted_residuals

W4A8 = Design(precision=Precision(weights=4, activations=8), calibration=Calibration(samples=64))


def inputs(seed: int, count: int = 64) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def context() -> StepContext:
    calibration = inputs(1)
    return StepContext(lambda limit: [((part,), {}) for part in calibration[:limit].split(16)])


def base_of(model: nn.Module) -> Network:
    return captured_network(model, (inputs(0, 2),), design=W4A8)


@cache
def folded() -> Network:
    return STEPS["fold_batch_norms"](base_of(inverted_residuals()), STEP_CONFIGS["fold_batch_norms"](), context())[0]


def climbed(network: Network, *names: str) -> Network:
    for name in names:
        network, _ = STEPS[name](network, STEP_CONFIGS[name](), context())
    return network


@cache
def fitted(*names: str) -> Network:
    """Return the folded network with some steps on top; steps leave what they are given as it was."""
    return climbed(fitted(*names[:-1]), names[-1]) if names else folded()


def closeness(network: Network) -> float:
    simulation = Simulation(network)
    simulation.calibrate(context().inputs(None))
    x = inputs(2, 256)
    with torch.no_grad():
        return sqnr_db(folded().graph(x), simulation.model(x))


ORDERS = [
    order
    for length in (1, 2, 3)
    for order in itertools.permutations(("correct_bias", "search_scales", "adaround"), length)
    if all(earlier not in STEP_CONFIGS[name].not_after for at, name in enumerate(order) for earlier in order[:at])
]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_fp32_stays_the_goal_to_the_last_bit(order: tuple[str, ...]) -> None:
    network = folded()
    x = inputs(2, 4)
    with torch.no_grad():
        fp32 = network.graph(x)
        result = fitted(*order)
        assert torch.equal(result.fp32_graph(x), fp32)
        assert torch.equal(result.unfitted().graph(x), fp32)
    assert result.encodings.keys() | result.goal.keys(), "something was fitted"
    assert not result.unfitted().goal


@pytest.mark.parametrize("order", [one for one in ORDERS if len(one) > 1], ids="-".join)
def test_an_order_ends_where_the_best_of_its_steps_ends_alone(order: tuple[str, ...]) -> None:
    alone = max(closeness(fitted(name)) for name in order)
    assert closeness(fitted(*order)) > alone - 0.5


def test_gradient_rounding_aims_at_fp32_as_well() -> None:
    config = STEP_CONFIGS["adaround"](solver="gradient", iterations=200)
    alone, _ = STEPS["adaround"](folded(), config, context())
    after, _ = STEPS["adaround"](fitted("correct_bias"), config, context())
    assert closeness(after) > closeness(alone) - 0.5


@pytest.mark.parametrize("name", ["fold_batch_norms", "equalize", "absorb_bias", "smooth"])
def test_what_keeps_the_function_cannot_come_after_what_was_fitted(name: str) -> None:
    assert set(FITTING) <= set(STEP_CONFIGS[name].not_after)
    with pytest.raises(StepError, match=rf"{name}: weights were fitted .* run it before that"):
        STEPS[name](fitted("correct_bias"), STEP_CONFIGS[name](), context())


def test_scales_are_searched_with_the_bias_that_is_there() -> None:
    """Against the sums by hand: the error of rows beside FP32's, with a bias that was moved before."""
    generator = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(1, 3, 5, generator=generator).double() for _ in range(2))
    x, y = (torch.randn(1, 200, 1, 5, generator=generator).double() + 0.7 for _ in range(2))
    bias = torch.randn(1, 3, generator=generator).double()
    collector = Collector(weight)
    collector.add(x, y)
    got = collector.moments().about_zero(bias).error(rows)
    difference = x[0, :, 0] @ weight[0].T - bias[0] - y[0, :, 0] @ rows[0].T
    torch.testing.assert_close(got[0], difference.square().mean(0), rtol=1e-9, atol=1e-9)


def test_a_network_is_stored_with_its_goal_and_its_design(tmp_path: Path) -> None:
    base, network = base_of(inverted_residuals()), fitted("correct_bias", "adaround")
    overrides = {"head": LayerPrecision(weights=8, activations=16)}
    network = network.designed(W4A8.with_overrides(overrides).found_by(activations="minmax", ranges={"x": "entropy"}))
    simulation = Simulation(network)
    simulation.calibrate(context().inputs(None))
    save(tmp_path, base.graph, network, simulation.encodings())
    again, _ = load(tmp_path, base)
    assert again.design == network.design != base.design
    assert again.goal.keys() == network.goal.keys()
    assert all(torch.equal(again.goal[name], value) for name, value in network.goal.items())
    with torch.no_grad():
        assert torch.equal(again.fp32_graph(inputs(2, 4)), network.fp32_graph(inputs(2, 4)))


def test_reestimated_statistics_are_no_goal() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    base = base_of(model)
    network = climbed(base, "reestimate_batch_norms")
    x = inputs(2, 4)
    with torch.no_grad():
        assert not torch.equal(network.graph(x), base.graph(x))
        assert torch.equal(network.fp32_graph(x), base.graph(x))


def test_what_stands_at_padded_positions_is_not_fitted_to() -> None:
    def rounded(filling: int) -> Network:
        ids, mask = batch(24)
        ids = torch.where(mask != 0, ids, filling)
        base = captured_network(encoder(), (ids[:2], mask[:2]), design=W4A8)
        told = replace(context(), inputs=lambda limit: [((ids, mask), {})])
        return STEPS["adaround"](base, STEP_CONFIGS["adaround"](), told)[0]

    one, other = rounded(0), rounded(3)
    assert one.encodings.keys() == other.encodings.keys()
    for name, encoding in one.encodings.items():
        torch.testing.assert_close(other.encodings[name].scale, encoding.scale, rtol=3e-2, atol=0)
        integers = [encoding.quantize(net.graph.get_parameter(name)) for net in (one, other)]
        assert float((integers[0] != integers[1]).float().mean()) < 0.05
