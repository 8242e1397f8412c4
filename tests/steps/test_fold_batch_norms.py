"""Folding keeps the function, in double precision, for every kind of layer."""

import pytest
import torch
from torch import nn

from qatflow.graph.capture import capture
from qatflow.graph.ops import kind
from qatflow.quant.network import Network
from qatflow.recipe.steps import FoldBatchNorms
from qatflow.steps.fold_batch_norms import fold_batch_norms
from tests.networks import give_statistics, inverted_residuals


class OverTokens(nn.Module):
    """A batch norm over the features of tokens, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return self.norm(y.flatten(0, 1)).reshape_as(y)


LAYERS = {
    "conv1d": (nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (4, 9)),
    "conv2d_no_bias": (nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)), (4, 9, 9)),
    "conv3d": (nn.Sequential(nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6)), (2, 5, 5, 5)),
    "grouped": (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 9, 9)),
    "same_padding": (nn.Sequential(nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6)), (4, 9, 9)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6)), (4, 9, 9)),
    "transposed_grouped": (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 9, 9)),
    "linear": (nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), (4,)),
    "not_affine": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)), (4, 9, 9)),
    "over_tokens": (OverTokens(), (5, 4)),
    "inverted_residuals": (inverted_residuals(), (3, 9, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_keeps_the_function_in_double_precision(name: str, make_context) -> None:
    model, shape = LAYERS[name]
    model = give_statistics(model).double()
    x = torch.randn(4, *shape, dtype=torch.float64)
    network = Network(capture(model, (x[:2],)))
    before = {key: value.clone() for key, value in network.graph.state_dict().items()}
    folded, notes = fold_batch_norms(network, FoldBatchNorms(), make_context(x))
    torch.testing.assert_close(folded.graph(x), model(x), rtol=0, atol=1e-12)
    assert notes["left"] == 0
    assert not [node for node in folded.graph.graph.nodes if kind(node) == "batch_norm"]
    after = network.graph.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_batch_norm_with_no_layer_before_it_is_left_and_counted(make_context) -> None:
    model = give_statistics(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)))
    x = torch.randn(4, 3, 9, 9)
    network = Network(capture(model, (x[:2],)))
    folded, notes = fold_batch_norms(network, FoldBatchNorms(), make_context(x))
    assert folded is network
    assert (notes["folded"], notes["left"]) == (0, 2)
    assert "no batch norm follows a layer" in str(notes["reason"])


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_a_layer_that_others_read_keeps_its_batch_norm(make_context) -> None:
    model = give_statistics(TwoReaders())
    network = Network(capture(model, (torch.randn(2, 3, 9, 9),)))
    assert fold_batch_norms(network, FoldBatchNorms(), make_context())[1]["left"] == 1
