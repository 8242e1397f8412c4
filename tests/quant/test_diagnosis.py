"""What helps against a quantizer's noise is something that a recipe can say."""

import pytest
import torch
import yaml
from torch import Tensor, nn

from qatflow.quant.design import Design
from qatflow.quant.diagnosis import diagnose, estimated
from qatflow.quant.placement import place
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Precision


class Functional(nn.Module):
    """A parameter of the model itself, whose path is its own name, and outliers everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.layer = nn.Linear(8, 4)
        with torch.no_grad():
            self.weight[0, 0] = self.layer.weight[0, 0] = 300.0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(nn.functional.linear(x, self.weight)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("weights", [4, 8])
def test_every_override_that_is_advised_changes_that_tensor(target: str, weights: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    x[0, 0] = 500.0
    precision = Precision(weights=weights, per_channel=False)
    network = captured_network(Functional().eval(), (x,), design=Design(TARGETS[target], precision))
    simulation = Simulation(network)
    simulation.calibrate([((x,), {})])
    found = diagnose(simulation, [((x,), {})])
    advised = 0
    for name, one in found.items():
        _, told, text = one.helps.partition("precision.overrides=")
        if told:
            advised += 1
            overrides = Precision(overrides=yaml.safe_load(text)).overrides
            changed = place(network.designed(network.design.with_overrides(overrides)))
            after = {point.tensor: point.grid for point in changed.points}
            assert after.get(name) != one.point.grid
    assert advised
    assert {*estimated(simulation, [((x,), {})])} == {*found}


def test_steps_that_were_taken_are_no_advice() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    simulation = Simulation(captured_network(Functional().eval(), (x,), design=Design(precision=Precision(weights=4))))
    simulation.calibrate([((x,), {})])
    for done in ((), ("adaround", "search_scales")):
        told = " ".join(one.helps for one in diagnose(simulation, [((x,), {})], done).values())
        assert ("adaround" in told or "search_scales" in told) is (not done)
