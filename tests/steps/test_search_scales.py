"""Scales by the layer's output: no candidate is better, and the float weights stay."""

import pytest
import torch
from torch import nn

from qatflow.graph.layers import tensor
from qatflow.quant.design import Design
from qatflow.quant.grid import Encoding, channel_range, encoding_of_range, sqnr_db
from qatflow.quant.network import Network
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Precision
from qatflow.recipe.steps import SearchScales
from qatflow.steps.search_scales import search_scales


def heavy_tailed(layer: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight).pow(3) / 5)
    return layer


LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 8, 8)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 8, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (4, 6, 6)),
    "tokens": (lambda: nn.Linear(4, 6), (7, 4)),
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_no_candidate_changes_the_output_less(name: str, per_channel: bool, make_context) -> None:
    make, shape = LAYERS[name]
    model = nn.Sequential(heavy_tailed(make())).eval()
    x = torch.randn(3, *shape)  # three samples are not divided into fitted and held out
    precision = Precision(weights=3, activations=16, per_channel=per_channel)
    network = captured_network(model, (x[:2],), design=Design(precision=precision))
    result, notes = search_scales(network, SearchScales(candidates=20), make_context(x))
    assert torch.equal(tensor(result.graph, "0.weight"), tensor(network.graph, "0.weight"))
    assert notes["layers"] == 1
    assert notes["kept"] + (notes["error_share"] < 1) == 1
    found = result.encodings["0.weight"]
    weight, doubled = model[0].weight.detach(), model.double()
    wanted = doubled(x.double()).detach()

    def error(encoding: Encoding) -> float:
        rounded = nn.Parameter(encoding.dequantize(encoding.quantize(weight)).double())
        model[0].weight = rounded
        return float((model(x.double()) - wanted).square().sum().detach())

    full = encoding_of_range(found.grid, *channel_range(weight, found.axis), found.axis)
    every = [
        error(Encoding(found.grid, full.scale * share, full.zero_point, found.axis))
        for share in torch.linspace(0.3, 1, 20).tolist()
    ]
    assert error(found) <= min(every) * 1.01
    assert per_channel or min(every) < every[-1]


def test_a_network_of_many_layers_is_nearer_to_fp32(make_context) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        heavy_tailed(nn.Conv2d(3, 8, 3)), nn.ReLU(), heavy_tailed(nn.Conv2d(8, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 3)
    ).eval()
    x, unseen = torch.randn(64, 3, 12, 12), torch.randn(64, 3, 12, 12)
    network = captured_network(model, (x[:2],), design=Design(precision=Precision(weights=4)))
    context = make_context(*x.split(16))
    result, notes = search_scales(network, SearchScales(), context)
    assert notes["layers"] == 3

    def closeness(one: Network) -> float:
        simulation = Simulation(one)
        simulation.calibrate(context.inputs(None))
        with torch.no_grad():
            return sqnr_db(model(unseen), simulation.model(unseen))

    assert closeness(result) > closeness(network)
