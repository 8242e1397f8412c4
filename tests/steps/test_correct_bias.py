"""Biases that keep the means: measured, and from what batch norms tell."""

import math

import pytest
import torch
from torch import nn

from qatflow.graph.layers import tensor
from qatflow.quant.design import Design
from qatflow.quant.network import Network
from qatflow.quant.prepare import captured_network
from qatflow.quant.saved import load, save
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Precision
from qatflow.recipe.steps import CorrectBias, Equalize, FoldBatchNorms
from qatflow.steps import STEPS
from qatflow.steps.correct_bias import clipped_normal_mean, correct_bias


def network_of(model: nn.Module, x: torch.Tensor) -> Network:
    return captured_network(model, (x[:2],), design=Design(precision=Precision(weights=3)))


def test_the_mean_of_every_output_is_the_float_one(make_context) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)).eval()
    x = torch.rand(3, 3, 8, 8)  # three samples: none is held out
    network = network_of(model, x)
    corrected, notes = correct_bias(network, CorrectBias(), make_context(x))
    assert notes == {"corrected": 2, "left": 0}
    wanted = model(x).mean(0)

    def distance(one: Network) -> float:
        simulation = Simulation(one)
        simulation.calibrate([((x,), {})])
        return float((simulation.model(x).mean(0) - wanted).detach().abs().max())

    assert distance(corrected) < 0.1 * distance(network)
    assert torch.equal(tensor(corrected.graph, "0.weight"), tensor(network.graph, "0.weight"))


@pytest.mark.parametrize("low, high", [(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0), (-1.0, 0.5)])
def test_the_mean_of_a_clipped_normal_is_that_of_its_samples(low: float, high: float) -> None:
    mean = torch.tensor([-3.0, -0.5, 0.0, 1.0, 5.5], dtype=torch.float64)
    deviation = torch.tensor([1.0, 0.3, 2.0, 1e-12, 4.0], dtype=torch.float64)
    bounds = (torch.full_like(mean, one) for one in (low, high))
    found = clipped_normal_mean(mean, deviation, *bounds)
    quantiles = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    samples = mean + deviation * torch.special.ndtri(quantiles)[:, None]
    torch.testing.assert_close(found, samples.clamp(low, high).mean(0), rtol=1e-4, atol=1e-4)


def normal_model() -> tuple[nn.Module, torch.Tensor]:
    """Return a network whose batch norms' inputs really have the statistics that those hold."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8)
    )
    x = torch.randn(256, 3, 6, 6)
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 3)
        model[1].bias.uniform_(-1, 4)
        model.train()
        for norm in (model[1], model[4]):
            norm.momentum = None
        model(x)
    return model.eval(), x


@pytest.mark.parametrize("equalized", [False, True])
def test_batch_norms_tell_the_means_without_data(equalized: bool, make_context) -> None:
    model, x = normal_model()
    context = make_context(x)
    network = STEPS["fold_batch_norms"](network_of(model, x), FoldBatchNorms(), context)[0]
    if equalized:
        network = STEPS["equalize"](network, Equalize(choose="all"), context)[0]
    corrected, notes = correct_bias(network, CorrectBias(method="analytic"), context)
    assert notes == {"corrected": 1, "left": 1}
    wanted = model(x).mean((0, 2, 3))

    def distance(one: Network) -> float:
        simulation = Simulation(one)
        simulation.calibrate([((x,), {})])
        for point in simulation.placement.points:  # the second weight alone, on float inputs
            simulation.quantizer(point.tensor).enabled = point.parameter == "3.weight"
        return float((simulation.model(x).mean((0, 2, 3)) - wanted).detach().norm())

    assert distance(corrected) < 0.3 * distance(network)


def test_without_batch_norms_the_analytic_way_says_so(make_context) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(8, 3, 6, 6)
    network = network_of(model, x)
    result, notes = correct_bias(network, CorrectBias(method="analytic"), make_context(x))
    assert result is network
    assert "method: empirical" in str(notes["reason"])


def test_a_stored_candidate_still_knows_the_means(tmp_path, make_context) -> None:
    model, x = normal_model()
    base = network_of(model, x)
    network = STEPS["fold_batch_norms"](base, FoldBatchNorms(), make_context(x))[0]
    assert len(network.normals) == 2
    save(tmp_path, base.graph, network, {})
    again, _ = load(tmp_path, base)
    assert again.normals.keys() == network.normals.keys()
    for name, normal in network.normals.items():
        assert all(torch.equal(a, b) for a, b in zip(normal, again.normals[name], strict=True))
