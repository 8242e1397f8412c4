"""SmoothQuant keeps the function and helps where a few channels are far larger than the rest."""

import pytest
import torch
from torch import Tensor, nn

from qatflow.graph.capture import capture
from qatflow.quant.grid import sqnr_db
from qatflow.quant.network import Network
from qatflow.quant.simulation import Simulation
from qatflow.recipe.steps import Smooth
from qatflow.steps.smooth import smooth


class Block(nn.Module):
    """A pre-norm block; `post` reads the first norm in the residual sum as well."""

    def __init__(self, post: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8, bias=False)
        self.query, self.key, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.post = post
        with torch.no_grad():
            self.first.weight[2], self.first.weight[5] = 60.0, 45.0
            self.second.weight[1] = 80.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        x = (y if self.post else x) + (self.query(y) @ self.key(y).transpose(1, 2)).softmax(-1) @ x
        return x + self.down(self.up(self.second(x)).relu())


def smoothed(model: nn.Module, make_context, strength: float = 0.5):
    x = torch.randn(16, 5, 8, dtype=next(model.parameters()).dtype)
    network = Network(capture(model.eval(), (x[:2],)))
    return network, *smooth(network, Smooth(strength=strength), make_context(x)), x


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_keeps_the_function_in_double_precision(strength: float, make_context) -> None:
    network, result, notes, x = smoothed(Block().double(), make_context, strength)
    assert (notes["groups"], notes["left"]) == (2, 0)
    torch.testing.assert_close(result.graph(x), network.graph(x), rtol=1e-10, atol=1e-10)


def test_scales_are_the_papers(make_context) -> None:
    model = Block()
    _, result, _, x = smoothed(model, make_context, 0.75)
    reach = model.first(x).abs().flatten(0, 1).amax(0)
    columns = torch.maximum(model.query.weight.abs().amax(0), model.key.weight.abs().amax(0))
    scale = reach**0.75 / columns**0.25
    state = result.graph.state_dict()
    torch.testing.assert_close(state["key.weight"], model.key.weight.detach() * scale)
    torch.testing.assert_close(state["first.bias"], model.first.bias.detach() / scale)


def test_a_norm_that_the_residual_sum_reads_is_left_alone(make_context) -> None:
    _, result, notes, _ = smoothed(Block(post=True), make_context)
    assert (notes["groups"], notes["left"]) == (1, 1)
    assert float(result.graph.state_dict()["first.weight"][2]) == 60.0


def test_nothing_to_do_is_said(make_context) -> None:
    network, result, notes, _ = smoothed(nn.Sequential(nn.Linear(8, 8)), make_context)
    assert result is network
    assert notes["reason"] == "no norm whose output linear layers alone read"


def test_outliers_cost_less(make_context) -> None:
    norm, linear = nn.LayerNorm(32), nn.Linear(32, 16)
    with torch.no_grad():
        norm.weight[3], norm.weight[20] = 60.0, 90.0
        linear.weight[:, [3, 20]] /= 60
    network = Network(capture(nn.Sequential(norm, linear).eval(), (torch.randn(2, 32),)))
    x = torch.randn(256, 32)
    result, _ = smooth(network, Smooth(), make_context(x))

    def quality(one: Network) -> float:
        simulation = Simulation(one)
        simulation.calibrate([((x,), {})])
        with torch.no_grad():
            return sqnr_db(network.graph(x), simulation.model(x))

    assert quality(result) > quality(network) + 3
