"""Rounding learned by gradient: better than nearest, on the grid, reproducible, and close to the best there is."""

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

FAST = AdaRound(solver="gradient", iterations=300, samples=64, batch_size=16, learning_rate=0.05)


def context(*inputs: Tensor, **options: object) -> StepContext:
    return StepContext(lambda limit: [((x,), {}) for x in inputs], **options)


def bits_of(weights: int) -> Design:
    return Design(precision=Precision(weights=weights, activations=8))


def folded(weights: int = 3) -> Network:
    return captured.folded(nn.ReLU).designed(bits_of(weights))


def opened(model: nn.Module, x: Tensor, weights: int = 3) -> Network:
    return captured_network(model.eval(), (x[:2],), design=bits_of(weights))


def batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(16, *captured.SHAPE, generator=generator) for _ in range(count)]


def simulated(network: Network, inputs: list[Tensor]) -> Simulation:
    simulation = Simulation(network)
    simulation.calibrate([((x,), {}) for x in inputs])
    return simulation


@pytest.fixture(scope="module")
def rounded() -> dict[int, tuple[Network, Network, dict[str, object]]]:
    found = {}
    for bits in (3, 4):
        network = folded(bits)
        found[bits] = (network, *adaround(network, FAST, context(*batches())))
    return found


@pytest.mark.parametrize("bits", [3, 4])
def test_outputs_are_closer_to_fp32_than_with_nearest_rounding(rounded, bits: int) -> None:
    network, learned, notes = rounded[bits]
    inputs = batches()
    unseen = torch.randn(64, *captured.SHAPE)
    ratios = [
        sqnr_db(network.graph(x), simulated(one, inputs).model(x))
        for x in (torch.cat(inputs), unseen)
        for one in (network, learned)
    ]
    assert ratios[1] > ratios[0] + 1
    assert ratios[3] > ratios[2] + 1
    assert notes["layers"] == len(weighted_layers(network.graph)) == 8
    assert 0 < notes["error_share"] < 0.9
    assert 0 <= notes["kept_nearest"] <= 8


@pytest.mark.parametrize("bits", [3, 4])
def test_every_weight_is_one_of_its_two_neighbours_on_the_grid(rounded, bits: int) -> None:
    network, learned, _ = rounded[bits]
    moved = 0
    for layer in weighted_layers(network.graph):
        old, new = tensor(network.graph, layer.weight), tensor(learned.graph, layer.weight)
        encoding = learned.encodings[layer.weight]
        scale = along(encoding.scale, old, encoding.axis)
        steps = (new / scale).round()
        torch.testing.assert_close(steps * scale, new, rtol=1e-6, atol=0)
        grid = encoding.grid
        floor = (old / scale).floor()
        below, above = floor.clamp(grid.qmin, grid.qmax), (floor + 1).clamp(grid.qmin, grid.qmax)
        assert bool(((steps == below) | (steps == above)).all())
        moved += int((steps != (old / scale).round().clamp(grid.qmin, grid.qmax)).sum())
    assert moved > 50


@pytest.mark.parametrize("bits", [3, 4])
def test_the_grids_are_fixed_and_rounding_again_changes_nothing(rounded, bits: int) -> None:
    _, learned, _ = rounded[bits]
    simulation = simulated(learned, batches())
    for point in simulation.placement.points:
        if point.parameter is not None:
            encoding = simulation.encodings()[point.tensor]
            assert torch.equal(encoding.scale, learned.encodings[point.parameter].scale)
            weight = tensor(simulation.model, point.parameter)
            torch.testing.assert_close(simulation.quantizer(point.tensor)(weight), weight, rtol=1e-6, atol=0)


def test_biases_and_everything_else_stay(rounded) -> None:
    network, learned, _ = rounded[3]
    weights = {layer.weight for layer in weighted_layers(network.graph)}
    before, after = network.graph.state_dict(), learned.graph.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - weights)
    assert learned.encodings.keys() == weights


def test_the_network_that_went_in_is_as_it_was() -> None:
    network = folded()
    before = {name: value.clone() for name, value in network.graph.state_dict().items()}
    adaround(network, AdaRound(solver="gradient", iterations=5, samples=16), context(*batches(1)))
    assert all(torch.equal(network.graph.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in network.graph.parameters())
    assert network.encodings == {}


def test_a_seed_gives_the_same_rounding_and_another_one_another() -> None:
    network = folded()
    config = AdaRound(solver="gradient", iterations=30, samples=64, batch_size=8, learning_rate=0.1)
    states = [
        torch.cat(
            [one.flatten() for one in adaround(network, config, context(*batches(), seed=seed))[0].graph.parameters()]
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("act", [False, True])
def test_it_is_among_the_best_of_all_roundings(seed: int, act: bool) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 1, bias=False), *([nn.ReLU()] if act else [])).eval()
    x = torch.randn(256, 8) @ torch.randn(8, 8)
    network = opened(model, x)
    learned, _ = adaround(network, FAST.model_copy(update={"iterations": 1000}), context(x))
    encoding = learned.encodings["0.weight"]
    weight, grid = model[0].weight.detach(), encoding.grid
    simulation = simulated(network, [x])
    quantized_x = next(simulation.quantizer(p.tensor) for p in simulation.placement.points if not p.parameter)(x)
    activation = torch.relu if act else torch.nn.Identity()
    scale = encoding.scale.view(-1, 1)
    floor = (weight / scale).floor()

    def error(rounded: Tensor) -> float:
        return float((activation(quantized_x @ rounded.T) - activation(x @ weight.T)).square().sum().detach())

    every = [
        error((floor + torch.tensor([up])).clamp(grid.qmin, grid.qmax) * scale)
        for up in itertools.product((0.0, 1.0), repeat=8)
    ]
    best, worst = min(every), max(every)
    got = error(tensor(learned.graph, "0.weight").detach())
    assert min(abs(got - one) for one in every) < 1e-4 * worst
    assert got <= 1.4 * best
    assert sum(one < got * (1 - 1e-6) for one in every) <= 0.02 * len(every)
    nearest = error(encoding.dequantize(encoding.quantize(weight)))
    assert got <= nearest
    assert best < 0.1 * worst


def test_a_weight_that_two_layers_share_is_rounded_once() -> None:
    layer = nn.Linear(6, 6)
    x = torch.randn(32, 6)
    network = opened(nn.Sequential(layer, nn.ReLU(), layer), x)
    learned, notes = adaround(network, AdaRound(solver="gradient", iterations=20), context(x))
    assert notes["layers"] == 1
    assert len(learned.encodings) == 1


class Queries(nn.Module):
    """A layer whose input is a parameter, as the queries of a detector are (its output is constant), and one over
    tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 6))
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.queries) @ self.b(x).transpose(1, 2)


def test_a_layer_over_tokens_beside_one_over_parameters() -> None:
    x = torch.randn(32, 5, 6) @ torch.randn(6, 6)
    network = opened(Queries(), x, 4)
    learned, notes = adaround(network, FAST, context(x))
    assert notes["layers"] == 1
    assert math.isfinite(notes["error_share"])
    nearest, best = (sqnr_db(network.graph(x), simulated(one, [x]).model(x)) for one in (network, learned))
    assert best > nearest


def test_where_nearest_rounding_cannot_be_beaten_it_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[127.0, 3.0, -5.0, 0.0], [127.0, 0.0, 1.0, 2.0]]) / 128)
    x = torch.randn(32, 4)
    network = opened(model, x, 8)
    learned, notes = adaround(network, AdaRound(solver="gradient", iterations=20), context(x))
    assert (notes["kept_nearest"], notes["error_share"]) == (1, 1.0)
    torch.testing.assert_close(tensor(learned.graph, "0.weight"), tensor(network.graph, "0.weight"), rtol=1e-6, atol=0)
