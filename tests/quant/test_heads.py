"""A detector's head puts boxes in pixels and scores of 0 to 1 into one tensor: neither may be lost."""

import pytest
import torch
from torch import Tensor, nn

from qatflow import Simulation
from qatflow.quant.design import Design
from qatflow.quant.placement import place
from qatflow.quant.prepare import captured_network
from qatflow.quant.sensitivity import Sensitivity
from qatflow.quant.targets import TARGETS


class Head(nn.Module):
    """Boxes that are decoded, and scores, in one output."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.box, self.cls, self.behind = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 5, 1), behind
        corner = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"))
        self.register_buffer("corner", corner.reshape(1, 2, 64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        boxes, scores = self.box(x).flatten(2), self.cls(x).flatten(2)
        places = (boxes[:, :2].sigmoid() * 2 + self.corner) * 80
        return self.behind(torch.cat([places, boxes[:, 2:].exp() * 80, scores.sigmoid()], 1))


class Moved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def simulated(behind: nn.Module, target: str) -> tuple[Simulation, Tensor]:
    torch.manual_seed(0)
    seen, unseen = torch.randn(32, 3, 16, 16), torch.randn(24, 3, 16, 16)
    simulation = Simulation(captured_network(Head(behind).eval(), (seen,), {}, Design(TARGETS[target])))
    simulation.calibrate([((seen,), {})])
    return simulation, unseen


@pytest.mark.parametrize("behind", [nn.Identity(), Moved()])
@pytest.mark.parametrize("target", TARGETS)
def test_what_only_leaves_keeps_its_own_grids(target: str, behind: nn.Module) -> None:
    simulation, unseen = simulated(behind, target)
    ratios = dict(Sensitivity(simulation).together([((unseen,), {})]).ratios)
    assert len(ratios) == 3
    assert min(ratios.values()) > 40
    assert "cat" in {left.tensor for left in simulation.placement.floats}


@pytest.mark.parametrize("target", ["onnxruntime", "qnn", "xnnpack"])
def test_what_a_layer_reads_has_a_grid(target: str) -> None:
    simulation, _ = simulated(nn.Conv1d(9, 2, 1), target)
    placement = place(simulation.network)
    assert "cat" in {point.tensor for point in placement.points} | set(placement.tied)
