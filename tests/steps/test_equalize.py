"""Equalization evens out weight ranges and keeps the function in double precision."""

import pytest
import torch
from torch import nn

from qatflow.graph.capture import capture
from qatflow.graph.layers import tensor, weighted_layers
from qatflow.quant.network import Network
from qatflow.recipe.steps import Equalize, FoldBatchNorms
from qatflow.steps.equalize import equalize
from qatflow.steps.fold_batch_norms import fold_batch_norms
from tests.networks import inverted_residuals

CHAINS = {
    "depthwise_relu6": (inverted_residuals(nn.ReLU6), (3, 9, 9)),
    "depthwise_relu": (inverted_residuals(nn.ReLU), (3, 9, 9)),
    "grouped": (nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2)), (4, 9, 9)),
    "transposed": (
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU6(), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.Conv2d(6, 3, 1)),
        (4, 9, 9),
    ),
    "linear": (nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(), nn.Linear(8, 4)), (6,)),
    "linear_relu6": (nn.Sequential(nn.Linear(6, 8), nn.ReLU6(), nn.Linear(8, 4)), (6,)),
    "tokens": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (5, 6)),
    "conv1d": (nn.Sequential(nn.Conv1d(4, 8, 3), nn.PReLU(8), nn.Conv1d(8, 4, 3, padding=1)), (4, 12)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_keeps_the_function_in_double_precision(name: str, make_context) -> None:
    model, shape = CHAINS[name]
    model = model.double().eval()
    x = 4 * torch.randn(64, *shape, dtype=torch.float64)
    network, _ = fold_batch_norms(Network(capture(model, (x[:2],))), FoldBatchNorms(), make_context(x))
    equalized, notes = equalize(network, Equalize(choose="all"), make_context(x))
    assert notes["pairs"] > 0
    unseen = 4 * torch.randn(64, *shape, dtype=torch.float64)
    torch.testing.assert_close(equalized.graph(unseen), model(unseen), rtol=0, atol=1e-10)


def test_neighbours_reach_equally_far(make_context) -> None:
    first, second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
    with torch.no_grad():
        first.weight.mul_(torch.logspace(-2, 2, 6).view(-1, 1, 1, 1))
    x = torch.randn(4, 3, 9, 9)
    network = Network(capture(nn.Sequential(first, nn.ReLU(), second), (x[:2],)))
    equalized, _ = equalize(network, Equalize(choose="all", absorb_bias=False), make_context(x))
    out_reach = tensor(equalized.graph, "0.weight").abs().amax((1, 2, 3))
    in_reach = tensor(equalized.graph, "2.weight").abs().amax((0, 2, 3))
    torch.testing.assert_close(out_reach, in_reach)
    expected = (first.weight.abs().amax((1, 2, 3)) * second.weight.abs().amax((0, 2, 3))).sqrt()
    torch.testing.assert_close(out_reach, expected)


@pytest.mark.parametrize("left", [0.0, 1e-12, 1e-7])
def test_a_dead_channel_is_left_alone(left: float, make_context) -> None:
    first, second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
    with torch.no_grad():
        first.weight[2] *= left
    x = torch.randn(4, 3, 9, 9)
    network = Network(capture(nn.Sequential(first, nn.ReLU(), second), (x[:2],)))
    equalized, _ = equalize(network, Equalize(choose="all"), make_context(x))
    torch.testing.assert_close(tensor(equalized.graph, "2.weight")[:, 2], second.weight[:, 2])


def relu6_network(shift: float) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 4, 1))
    with torch.no_grad():
        model[0].bias.fill_(shift)
    return model


@pytest.mark.parametrize(("shift", "swapped"), [(0.0, 1), (6.0, 0)])
def test_relu6_is_swapped_only_where_it_hardly_clips(shift: float, swapped: int, make_context) -> None:
    x = torch.randn(16, 3, 9, 9)
    network = Network(capture(relu6_network(shift), (x[:2],)))
    equalized, notes = equalize(network, Equalize(choose="all", relu6="swap_if_idle"), make_context(x))
    if swapped:
        assert (notes["relu6_swapped"], notes["pairs"]) == (1, 1)
        torch.testing.assert_close(equalized.graph(x), network.graph(x))
    else:
        assert equalized is network
        assert "no two layers" in str(notes["reason"])


def test_skip_leaves_pairs_with_relu6_alone(make_context) -> None:
    x = torch.randn(4, 3, 9, 9)
    network = Network(capture(relu6_network(0.0), (x[:2],)))
    assert equalize(network, Equalize(relu6="skip"), make_context(x))[0] is network


def test_a_high_bias_is_absorbed_and_the_function_kept(make_context) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False)).double()
    with torch.no_grad():
        model[0].bias[:3] = 50
    x = torch.randn(64, 3, 9, 9, dtype=torch.float64)
    network = Network(capture(model, (x[:2],)))
    equalized, notes = equalize(network, Equalize(choose="all"), make_context(x))
    assert notes["absorbed_channels"] == 3
    assert float(tensor(equalized.graph, "0.bias").detach().abs().max()) < 0.7 * 50
    unseen = torch.randn(64, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(equalized.graph(unseen), model(unseen), rtol=0, atol=1e-10)
    assert equalize(network, Equalize(choose="all", absorb_bias=False), make_context(x))[1]["absorbed_channels"] == 0


def test_nothing_is_absorbed_into_a_layer_that_pads(make_context) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).double()
    with torch.no_grad():
        model[0].bias.fill_(50)
    x = torch.randn(64, 3, 9, 9, dtype=torch.float64)
    network = Network(capture(model, (x[:2],)))
    assert equalize(network, Equalize(choose="all"), make_context(x))[1]["absorbed_channels"] == 0


def test_chains_through_a_depthwise_layer_settle(make_context) -> None:
    x = torch.randn(4, 3, 9, 9)
    network, _ = fold_batch_norms(
        Network(capture(inverted_residuals(nn.ReLU), (x[:2],))), FoldBatchNorms(), make_context(x)
    )
    equalized, _ = equalize(network, Equalize(choose="all", iterations=100), make_context(x))
    layers = {layer.name: tensor(equalized.graph, layer.weight) for layer in weighted_layers(equalized.graph)}
    expand, depthwise, project = (layers[f"block2.{index}"] for index in (0, 3, 6))
    reaches = [expand.abs().amax((1, 2, 3)), depthwise.abs().amax((1, 2, 3)), project.abs().amax((0, 2, 3))]
    torch.testing.assert_close(reaches[0], reaches[1], rtol=0.05, atol=0)
    torch.testing.assert_close(reaches[1], reaches[2], rtol=0.05, atol=0)
