"""Noise of single quantizers at the outputs: the estimate of one pass beside what they really cost."""

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from qatflow import Simulation
from qatflow.graph.layers import tensor
from qatflow.quant.design import Design
from qatflow.quant.prepare import captured_network
from qatflow.quant.sensitivity import Sensitivity
from qatflow.quant.simulation import Inputs
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Precision
from qatflow.recipe.steps import AdaRound
from qatflow.steps.adaround import adaround
from qatflow.steps.context import StepContext
from tests.networks import Classifier


def inputs(count: int = 64) -> list[Inputs]:
    x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return [((part,), {}) for part in x.split(16)]


def simulated(precision: Precision | None = None, target: str = "onnxruntime") -> Simulation:
    torch.manual_seed(0)
    design = Design(TARGETS[target], precision or Precision())
    simulation = Simulation(captured_network(Classifier().eval(), *inputs()[0], design))
    simulation.calibrate(inputs())
    return simulation


@pytest.mark.parametrize("target", ["onnxruntime", "qnn", "openvino"])
def test_the_estimate_is_what_each_costs(target: str) -> None:
    sensitivity = Sensitivity(simulated(target=target))
    estimated = sensitivity.estimate(inputs(), draws=16)
    exact = {point.tensor: sensitivity.alone(point.tensor, inputs()).noise for point in sensitivity.points}
    assert estimated.keys() == exact.keys()
    assert spearmanr([estimated[name] for name in exact], list(exact.values())).statistic > 0.8
    assert sum(estimated.values()) == pytest.approx(sum(exact.values()), rel=0.35)
    assert sum(exact.values()) == pytest.approx(sensitivity.together(inputs()).noise, rel=0.5)


def test_an_inputs_noise_by_hand() -> None:
    model = nn.Linear(6, 3)
    x = torch.randn(64, 6)
    simulation = Simulation(captured_network(model, (x,)))
    simulation.calibrate([((x,), {})])
    sensitivity = Sensitivity(simulation)
    name = next(point.tensor for point in sensitivity.points if point.parameter is None)
    encoding = simulation.encodings()[name]
    wrong = (encoding.dequantize(encoding.quantize(x)) - x).double() @ model.weight.detach().double().T
    signal = model(x).detach().double()
    by_hand = float(wrong.square().sum() / signal.square().sum())
    assert sensitivity.alone(name, [((x,), {})]).noise == pytest.approx(by_hand, rel=1e-3)
    assert sensitivity.estimate([((x,), {})], draws=200)[name] == pytest.approx(by_hand, rel=0.2)


def test_the_simulation_is_left_as_it_is() -> None:
    simulation = simulated(Precision(weights=4))
    before, weights = simulation.model(*inputs()[0][0]), tensor(simulation.model, "features.0.weight").clone()
    sensitivity = Sensitivity(simulation)
    all_of_it = sensitivity.together(inputs()).noise
    sensitivity.estimate(inputs())
    for point in sensitivity.points:
        sensitivity.alone(point.tensor, inputs())
        assert sensitivity.without(point.tensor, inputs()).noise < 2 * all_of_it
    assert torch.equal(simulation.model(*inputs()[0][0]), before)
    assert torch.equal(tensor(simulation.model, "features.0.weight"), weights)


def test_a_fitted_weights_noise_is_that_to_fp32() -> None:
    """Its rounding is in the network already: what it costs is its difference from FP32's weight."""
    start = simulated(Precision(weights=3))
    network, _ = adaround(start.network, AdaRound(samples=64), StepContext(lambda limit: inputs()))
    simulation = Simulation(network)
    simulation.calibrate(inputs())
    sensitivity = Sensitivity(simulation)
    estimated = sensitivity.estimate(inputs(), draws=16)
    weights = [point.tensor for point in sensitivity.points if point.parameter]
    assert all(estimated[name] > 0 for name in weights)
    assert all(sensitivity.alone(name, inputs()).noise > 0 for name in weights)


def test_padded_positions_do_not_count() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x))) * attention_mask.unsqueeze(-1).clamp(min=0.5)

    mask = torch.ones(8, 5, dtype=torch.long)
    mask[:, 3:] = 0
    x = torch.randn(8, 5, 4)
    batches: list[Inputs] = [((x,), {"attention_mask": mask})]
    simulation = Simulation(captured_network(Tokens().eval(), *batches[0]))
    simulation.calibrate(batches)
    wild = [((torch.where(mask.bool().unsqueeze(-1), x, 1e3),), {"attention_mask": mask})]
    estimates = [Sensitivity(simulation).estimate(one, draws=4) for one in (batches, wild)]
    assert estimates[0] == pytest.approx(estimates[1], rel=1e-4)
