"""A layer as a matrix product gives what the layer itself gives, in double precision."""

import pytest
import torch
from torch import nn

from qatflow.graph.capture import capture
from qatflow.graph.columns import columns, patches, per_row, weight_from_rows, weight_rows
from qatflow.graph.layers import tensor, weighted_layers

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

CASES = {
    "strided, grouped": (nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False), (4, 9, 8)),
    "depthwise, same, dilated": (nn.Conv2d(4, 4, (3, 5), 1, "same", dilation=(1, 2), groups=4, bias=False), (4, 9, 8)),
    "even kernel, same": (nn.Conv2d(3, 4, 4, padding="same", bias=False), (3, 7, 6)),
    "valid": (nn.Conv2d(3, 4, 2, padding="valid", bias=False), (3, 5, 5)),
    "padding per dimension": (nn.Conv2d(3, 4, 3, padding=(0, 2), bias=False), (3, 5, 6)),
    "1-d": (nn.Conv1d(3, 5, 4, 3, bias=False), (3, 20)),
    "3-d": (nn.Conv3d(2, 4, 2, 1, 1, bias=False), (2, 4, 5, 4)),
    "transposed, grouped": (
        nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, bias=False),
        (4, 5, 6),
    ),
    "transposed, no overlap": (nn.ConvTranspose2d(4, 6, 2, 2, bias=False), (4, 5, 6)),
    "transposed, dilated, 1-d": (nn.ConvTranspose1d(4, 6, 5, 3, 2, dilation=2, groups=2, bias=False), (4, 9)),
    "linear": (nn.Linear(5, 7, bias=False), (5,)),
    "linear over tokens": (nn.Linear(5, 7, bias=False), (3, 4, 5)),
}


def parts(name: str):
    model, shape = CASES[name]
    model = model.double().eval()
    x = torch.randn(3, *shape, dtype=torch.float64)
    graph = capture(model, (x,))
    (layer,) = weighted_layers(graph)
    return model, x, layer, tensor(graph, layer.weight).detach()


@pytest.mark.parametrize("name", CASES)
def test_rows_times_columns_is_the_layer(name: str) -> None:
    model, x, layer, weight = parts(name)
    found = columns(x, patches(layer, weight))
    got = torch.einsum("gok,gnpk->ngop", weight_rows(weight, layer), found).flatten(1, 2)
    wanted = model(x).detach()
    wanted = wanted.reshape(3, -1, 7).mT if layer.kind == "linear" else wanted.flatten(2)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_rows_become_the_weight_again(name: str) -> None:
    _, _, layer, weight = parts(name)
    assert torch.equal(weight_from_rows(weight_rows(weight, layer), weight, layer), weight)


@pytest.mark.parametrize("name", CASES)
def test_a_scale_per_channel_reaches_the_rows_of_that_channel(name: str) -> None:
    _, _, layer, weight = parts(name)
    axis = 1 if layer.kind == "conv_transpose" else 0
    scale = torch.rand(weight.shape[axis], dtype=torch.float64) + 0.5
    shape = [1] * weight.dim()
    shape[axis] = -1
    wanted = weight_rows(weight * scale.view(shape), layer)
    torch.testing.assert_close(weight_rows(weight, layer) * per_row(scale, layer, axis), wanted)
    assert per_row(torch.tensor(2.0), layer, None).shape == (1, 1, 1)


def test_chosen_positions_are_some_of_all_and_repeat() -> None:
    _, x, layer, weight = parts("strided, grouped")
    how = patches(layer, weight)
    every, some, again = columns(x, how), columns(x, how, 7, seed=3), columns(x, how, 7, seed=3)
    assert torch.equal(some, again)
    assert some.shape[2] == 7 < every.shape[2]
    assert all(bool((every[0, 0] == one).all(1).any()) for one in some[0, 0])
    assert columns(x, how, 10_000).shape == every.shape
