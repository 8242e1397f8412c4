"""The exact solver: on the grid, better than nearest on unseen data, near the best there is, and at home everywhere."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from qatflow.graph.layers import tensor, weighted_layers
from qatflow.quant.design import Design
from qatflow.quant.grid import along, sqnr_db
from qatflow.quant.network import Network
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Precision
from qatflow.recipe.steps import AdaRound
from qatflow.steps.adaround import adaround
from qatflow.steps.context import StepContext
from tests import captured
from tests.steps.test_adaround import Queries


def design_of(bits: int = 3, per_channel: bool = True) -> Design:
    return Design(precision=Precision(weights=bits, per_channel=per_channel))


def folded(bits: int = 3, per_channel: bool = True) -> Network:
    return captured.folded(nn.ReLU).designed(design_of(bits, per_channel))


def opened(model: nn.Module, x: Tensor, bits: int = 3) -> Network:
    return captured_network(model.eval(), (x[:2],), design=design_of(bits))


def closeness(network: Network, wanted: nn.Module | torch.fx.GraphModule, x: Tensor, context: StepContext) -> float:
    simulation = Simulation(network)
    simulation.calibrate(context.inputs(None))
    with torch.no_grad():
        return sqnr_db(wanted(x), simulation.model(x))


@pytest.mark.parametrize("bits, per_channel", [(3, True), (4, True), (3, False), (4, False)])
def test_unseen_outputs_are_much_closer_than_with_nearest_rounding(bits: int, per_channel: bool, make_context) -> None:
    generator = torch.Generator().manual_seed(11)
    batches = [torch.randn(16, *captured.SHAPE, generator=generator) for _ in range(4)]
    unseen = torch.randn(64, *captured.SHAPE, generator=generator)
    network = folded(bits, per_channel)
    context = make_context(*batches)
    solved, notes = adaround(network, AdaRound(), context)
    assert notes["layers"] == len(weighted_layers(network.graph))
    assert 0 < notes["error_share"] < 0.9
    before, after = (closeness(one, network.graph, unseen, context) for one in (network, solved))
    assert after > before + 3


@pytest.mark.parametrize("rounding", ["free", "adjacent"])
def test_weights_are_integers_of_the_grid(rounding: str, make_context) -> None:
    network = folded()
    context = make_context(torch.randn(64, *captured.SHAPE))
    solved, _ = adaround(network, AdaRound(rounding=rounding, refit_scales=rounding == "free"), context)
    for layer in weighted_layers(network.graph):
        old, new = tensor(network.graph, layer.weight), tensor(solved.graph, layer.weight)
        encoding = solved.encodings[layer.weight]
        scale = along(encoding.scale, new, encoding.axis)
        steps = (new / scale).round()
        torch.testing.assert_close(steps * scale, new, rtol=1e-5, atol=1e-7)
        assert bool(((steps >= encoding.grid.qmin) & (steps <= encoding.grid.qmax)).all())
        if rounding == "adjacent":
            floor = (old / scale).floor().clamp(encoding.grid.qmin, encoding.grid.qmax)
            assert bool(((steps == floor) | (steps == (floor + 1).clamp(max=encoding.grid.qmax))).all())


@pytest.mark.parametrize("seed", range(6))
def test_it_is_among_the_best_of_all_roundings(seed: int, make_context) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(7, 1, bias=False)).eval()
    x = torch.randn(400, 7) @ torch.randn(7, 7)
    network = opened(model, x)
    context = make_context(x)
    config = AdaRound(rounding="adjacent", refit_scales=False, move_biases=False)
    solved, _ = adaround(network, config, context)
    encoding, weight = solved.encodings["0.weight"], model[0].weight.detach()
    simulation = Simulation(network)
    simulation.calibrate([((x,), {})])
    source = next(point.tensor for point in simulation.placement.points if point.parameter is None)
    quantized = simulation.quantizer(source)(x).detach()
    scale = encoding.scale.view(-1, 1)
    floor = (weight / scale).floor()

    def error(rounded: Tensor) -> float:
        return float((quantized @ rounded.mT - x @ weight.mT).square().sum())

    grid = encoding.grid
    every = [
        error((floor + torch.tensor([up])).clamp(grid.qmin, grid.qmax) * scale)
        for up in itertools.product((0.0, 1.0), repeat=7)
    ]
    got = error(tensor(solved.graph, "0.weight").detach())
    assert sum(one < got * (1 - 1e-5) for one in every) <= 6
    assert got <= error(encoding.dequantize(encoding.quantize(weight))) * 1.02


class Everything(nn.Module):
    """Grouped, depthwise, dilated, transposed and token-wise layers, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.grouped, self.depth = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4), nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2, groups=2, bias=False)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.grouped(self.stem(x).relu()).relu()).relu()
        x = self.up(x).flatten(2).transpose(1, 2)
        return self.head(self.mix(self.mix(x).relu()).mean(1))


def test_every_kind_of_layer_is_solved(make_context) -> None:
    torch.manual_seed(0)
    model, x = Everything().eval(), torch.randn(64, 3, 12, 12)
    network = opened(model, x, 4)
    context = make_context(*x.split(16))
    solved, notes = adaround(network, AdaRound(), context)
    assert notes["layers"] == 6
    unseen = torch.randn(32, 3, 12, 12)
    assert closeness(solved, model, unseen, context) > closeness(network, model, unseen, context) + 1


def test_a_layer_over_parameters(make_context) -> None:
    x = torch.randn(32, 5, 6) @ torch.randn(6, 6)
    _, notes = adaround(opened(Queries(), x, 4), AdaRound(), make_context(x))
    assert notes["layers"] == 1
    assert math.isfinite(notes["error_share"])


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
def test_dead_and_constant_channels_and_few_samples_do_no_harm(samples: int, make_context) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 3, 1)).eval()
    x = torch.randn(samples, 4, 7, 7)
    x[:, 0], x[:, 3] = 0.0, 2.5
    x = torch.cat([x, x])[: max(samples, 1)]
    network = opened(model, torch.cat([x, x]))
    context = make_context(x)
    solved, _ = adaround(network, AdaRound(), context)
    assert all(bool(torch.isfinite(value).all()) for value in solved.graph.state_dict().values())
    assert closeness(solved, model, x, context) >= closeness(network, model, x, context)


def test_the_same_again_gives_the_same_and_nothing_that_went_in_changes(make_context) -> None:
    network = folded()
    before = {name: value.clone() for name, value in network.graph.state_dict().items()}
    context = make_context(torch.randn(32, *captured.SHAPE))
    first, second = (adaround(network, AdaRound(), context)[0].graph.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(value, before[name]) for name, value in network.graph.state_dict().items())


def test_where_nearest_rounding_cannot_be_beaten_it_is_kept(make_context) -> None:
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[127.0, 3.0, -5.0, 0.0], [127.0, 0.0, 1.0, 2.0]]) / 128)
    x = torch.randn(32, 4).sign()  # inputs that are on their grid too
    network = opened(model, x, 8)
    config = AdaRound(refit_scales=False, move_biases=False)
    solved, notes = adaround(network, config, make_context(x))
    assert notes["kept_nearest"] + (notes["error_share"] < 1) == 1
    torch.testing.assert_close(
        tensor(solved.graph, "0.weight"), tensor(network.graph, "0.weight"), rtol=1e-5, atol=1e-7
    )
