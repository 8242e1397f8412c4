"""`calibrate: auto` keeps what is nearest to FP32, by measurement."""

import pytest
import torch
from torch import nn

from qatflow.graph.capture import capture
from qatflow.quant.grid import sqnr_db
from qatflow.quant.network import Network
from qatflow.quant.simulation import METHODS, Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Calibration, Precision


def simulated(network: Network, x: torch.Tensor, method: str) -> Simulation:
    simulation = Simulation(network, TARGETS["onnxruntime"], Precision(weights=16, activations=4))
    simulation.calibrate([((part,), {}) for part in x.split(16)], Calibration(activations=method))
    return simulation


@pytest.mark.parametrize("outlier", [0.0, 300.0])
def test_the_best_way_is_kept(outlier: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(48, 3, 10, 10)
    x[0, 0, 0, 0] += outlier
    network = Network(capture(model, (x[:2],)))
    wanted = model(x)
    scores = {one: sqnr_db(wanted, simulated(network, x, one).model(x)) for one in METHODS}
    auto = simulated(network, x, "auto")
    assert auto.calibrated_by == max(scores, key=scores.__getitem__)
    assert sqnr_db(wanted, auto.model(x)) == pytest.approx(max(scores.values()), abs=0.05)
    assert max(scores.values()) > min(scores.values()) + 0.5


def test_weights_in_float_leave_only_the_activations_rounded() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(16, 3, 8, 8)
    network = Network(capture(model, (x[:2],)))
    simulation = Simulation(network, TARGETS["onnxruntime"], Precision(weights=2, activations=16))
    simulation.calibrate([((x,), {})], Calibration(activations="minmax"))
    coarse = sqnr_db(model(x), simulation.model(x))
    simulation.quantize_weights(False)
    assert sqnr_db(model(x), simulation.model(x)) > 70 > coarse
    simulation.quantize_weights(True)
    assert sqnr_db(model(x), simulation.model(x)) == pytest.approx(coarse)


@pytest.mark.parametrize(("outlier_is_used", "expected"), [(True, "minmax"), (False, "sqnr")])
def test_scales_of_weights_are_tried_too(outlier_is_used: bool, expected: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(512, 8)).eval(), torch.rand(32, 512)
    with torch.no_grad():
        model[0].weight.uniform_(-1, 1)
        model[0].weight[:, 0] += 3
        x[:, 1:] *= not outlier_is_used
        x[:, :1] *= outlier_is_used
    network = Network(capture(model, (x[:2],)))

    def simulated_with(weights: str) -> Simulation:
        simulation = Simulation(network, TARGETS["onnxruntime"], Precision(weights=3, activations=16))
        simulation.calibrate([((x,), {})], Calibration(activations="minmax", weights=weights))
        return simulation

    auto = simulated_with("auto")
    scores = {one: sqnr_db(model(x), simulated_with(one).model(x)) for one in ("minmax", "sqnr")}
    assert auto.weights_by == max(scores, key=scores.__getitem__) == expected
    assert sqnr_db(model(x), auto.model(x)) == pytest.approx(max(scores.values()), abs=0.01)
