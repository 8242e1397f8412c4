"""Equalize only where it helps: chains are told apart by what quantization does to their own output."""

import torch
from torch import nn

from qatflow.graph.capture import capture
from qatflow.graph.chains import chains, pairs
from qatflow.graph.layers import tensor
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.network import Network
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Precision
from qatflow.recipe.steps import Equalize
from qatflow.steps.equalize import equalize


def two_chains() -> Network:
    """Return two chains with a sum between them: the channels of the first differ widely, those of the second little.

    The second one's weights are even already; equalizing them would only make their activations uneven.
    """

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)
            self.c, self.d = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.b(self.a(x).relu())
            return x + self.d(self.c(x).relu())

    torch.manual_seed(1)
    model = Model().eval()
    factors = torch.logspace(-2, 2, 8)
    with torch.no_grad():
        for layer, scale in ((model.a, factors),):
            layer.weight.mul_(scale.view(-1, 1, 1, 1))
            layer.bias.mul_(scale)
        model.b.weight.div_(factors.view(1, -1, 1, 1))
        rows = model.d.weight.abs().amax((0, 2, 3)) / model.c.weight.abs().amax((1, 2, 3))
        model.c.bias.copy_(-2 * rows)
    return Network(capture(model, (torch.randn(2, 4, 6, 6),)))


def test_the_pairs_of_a_chain_belong_together() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, 1)).eval()
    found = pairs(capture(model, (torch.randn(2, 3, 4, 4),)))
    assert [len(chain) for chain in chains(found)] == [2]
    assert [len(chain) for chain in chains(pairs(two_chains().graph))] == [1, 1]


def test_the_uneven_chain_is_equalized_and_the_function_kept(make_context) -> None:
    network = two_chains().designed(Design(precision=Precision(per_channel=False)))
    x = torch.randn(32, 4, 6, 6)
    context = make_context(x)
    equalized, notes = equalize(network, Equalize(), context)
    assert notes["pairs"] >= 1
    assert notes["pairs"] + notes["left_as_they_were"] == 2
    torch.testing.assert_close(equalized.graph(x), network.graph(x), rtol=1e-4, atol=1e-4)
    assert not torch.equal(tensor(equalized.graph, "a.weight"), tensor(network.graph, "a.weight"))

    def closeness(one: Network) -> float:
        simulation = Simulation(one)
        simulation.calibrate([((x,), {})])
        return sqnr_db(network.graph(x), simulation.model(x))

    every, _ = equalize(network, Equalize(choose="all"), context)
    assert closeness(equalized) > closeness(network) + 10
    assert closeness(equalized) >= closeness(every) - 0.5


def test_where_nothing_is_gained_the_network_is_left_alone(make_context) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1)).eval()
    factors = torch.tensor([8.0, 1.0, 1.0, 1.0])
    with torch.no_grad():  # weights of a scale each do not mind, activations of one scale would
        model[0].weight.copy_(torch.eye(4)[:, :3].view(4, 3, 1, 1) + 1)
        model[2].weight.copy_(torch.ones(5, 4, 1, 1) / factors.view(1, 4, 1, 1))
    x = torch.rand(32, 3, 6, 6)
    network = Network(capture(model, (x[:2],)))
    result, notes = equalize(network, Equalize(), make_context(x))
    assert result is network
    assert notes["left_as_they_were"] == 1
    assert "helps no chain" in str(notes["reason"])
