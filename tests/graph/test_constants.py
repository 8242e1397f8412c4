"""Computed weights become parameters, and the function stays."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from qatflow.graph.capture import capture
from qatflow.graph.constants import constant_nodes, store_computed_weights
from qatflow.graph.layers import weighted_layers


class Standardized(nn.Module):
    """A convolution with weight standardisation, and one that cuts its weight out of a larger one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.rand(6, 1, 1, 1))
        self.joint, self.offset = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        x = functional.conv2d(x, (self.weight - mean) / std * self.gain).relu().mean((2, 3))
        return functional.linear(x, self.joint[:4], torch.cat([self.offset[:2], self.offset[2:] * 0]))


@pytest.mark.parametrize(
    ("model", "made"),
    [
        (Standardized(), {"conv2d.effective_weight", "linear.effective_weight", "linear.effective_bias"}),
        (nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3))), {"0.effective_weight"}),
        (nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))), {"0.effective_weight"}),
    ],
)
def test_layers_get_parameters_of_their_own(model: nn.Module, made: set[str]) -> None:
    x = torch.randn(2, 3, 8, 8)
    graph = capture(model.eval(), (x,))
    before = len(weighted_layers(graph))
    assert store_computed_weights(graph) == len(made)
    layers = weighted_layers(graph)
    assert len(layers) > before
    assert {name for name in graph.state_dict() if "effective" in name} == made
    torch.testing.assert_close(graph(x), model(x))


class Dynamic(nn.Module):
    def forward(self, x: Tensor, kernel: Tensor) -> Tensor:
        return functional.linear(x, kernel * 2)


def test_a_weight_from_the_input_is_left_alone() -> None:
    graph = capture(Dynamic(), (torch.randn(2, 4), torch.randn(2, 4)))
    assert store_computed_weights(graph) == 0
    assert weighted_layers(graph) == []


def test_what_depends_on_the_shape_of_an_input_is_not_constant() -> None:
    class Ramp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(9))

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(x.shape[0])[:, None] + self.table.exp()[:4]

    graph = capture(Ramp(), (torch.randn(2, 4),))
    names = {node.name for node in constant_nodes(graph)}
    assert "exp" in names
    assert not names & {"arange", "add", "add_1"}
