"""Graphs that once got a quantizer where none may stand, lost one, or crashed."""

import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qatflow.errors import CaptureError, RecipeError
from qatflow.graph.capture import capture
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.network import Network
from qatflow.quant.placement import place
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Precision
from qatflow.recipe.steps import FoldBatchNorms, Smooth
from qatflow.steps.fold_batch_norms import fold_batch_norms
from qatflow.steps.smooth import smooth
from tests.networks import give_statistics

SIXTEEN = Precision(weights=16, activations=16)


def quality(model: nn.Module, target: str, *args: Tensor, precision: Precision = SIXTEEN) -> float:
    """Return the SQNR in dB of a simulation on the inputs it was calibrated with."""
    network = captured_network(model.eval(), args, design=Design(TARGETS[target], precision))
    simulation = Simulation(network)
    simulation.calibrate([(args, {})])
    with torch.no_grad():
        return sqnr_db(network.graph(*args), simulation.model(*args))


class Masked(nn.Module):
    """Attention whose scores are masked and then moved, scaled or cut off before their softmax."""

    def __init__(self, between: str) -> None:
        super().__init__()
        self.query, self.key, self.value, self.between = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), between

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(5, device=x.device)
        mask[3:] = torch.finfo(x.dtype).min / 4
        scores = self.query(x) @ self.key(x).transpose(1, 2) + mask + 0 * x[:, :1, :1]
        if self.between == "view":
            weights = scores.view(-1, 5).softmax(-1).view(-1, 5, 5)
        elif self.between == "transpose":
            weights = scores.transpose(1, 2).softmax(1).transpose(1, 2)
        elif self.between == "scale":
            weights = (scores / 2).softmax(-1)
        else:
            weights = torch.maximum(scores, torch.tensor(torch.finfo(x.dtype).min)).softmax(-1)
        return weights @ self.value(x)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("between", ["view", "transpose", "scale", "maximum"])
def test_masks_reach_no_grid(between: str, target: str) -> None:
    assert quality(Masked(between), target, torch.randn(16, 5, 6)) > 40


class SoftmaxOverChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) + torch.linspace(0, 100, 8)).softmax(1))


@pytest.mark.parametrize("target", TARGETS)
def test_a_softmax_over_another_dimension(target: str) -> None:
    assert quality(SoftmaxOverChannels(), target, torch.randn(8, 3, 8, 8)) > 40


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("mask", torch.full((5, 5), float("-inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), self.mask)


@pytest.mark.parametrize("target", TARGETS)
def test_a_stored_mask_of_minus_infinity(target: str) -> None:
    assert quality(Causal(), target, torch.randn(16, 5, 6)) > 40


class Normalised(nn.Module):
    """Divides by a number that is tiny for some rows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        d = self.a(x) * x[:, :1]
        return self.b(d / torch.sqrt((d * d).mean(-1, keepdim=True) + 1e-7))


@pytest.mark.parametrize("target", TARGETS)
def test_a_divisor_does_not_become_zero(target: str) -> None:
    x = torch.randn(32, 6)
    x[:4] *= 1e-4
    assert quality(Normalised(), target, x, precision=Precision()) > 5


class WithAnEmptyCache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([x.new_zeros(x.shape[0], 0), self.layer(x)], 1))


@pytest.mark.parametrize("target", TARGETS)
def test_an_empty_tensor_has_no_quantizer(target: str) -> None:
    assert quality(WithAnEmptyCache(), target, torch.randn(16, 6)) > 40


class Addmm(nn.Module):
    """A linear layer as GPT-2 spells it, a product with a transposed parameter, and a module called `quantizers`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias, self.mix = (nn.Parameter(torch.randn(*s)) for s in ((6, 4), (4,), (5, 4)))
        self.quantizers = nn.ModuleList([nn.Linear(6, 6)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, self.quantizers[0](x).relu(), self.weight) @ self.mix.t()


@pytest.mark.parametrize("target", TARGETS)
def test_other_spellings_of_a_layer(target: str) -> None:
    x = torch.randn(16, 6)
    assert quality(Addmm(), target, x) > 40
    network = captured_network(Addmm().eval(), (x,), design=Design(TARGETS[target]))
    weights = [point for point in place(network).points if point.parameter]
    assert len(weights) == (2 if target == "xnnpack" else 3)


class Tied(nn.Module):
    """A head whose weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer, self.norm, self.head = (
            nn.Embedding(9, 6),
            nn.Linear(6, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 9),
        )
        self.head.weight = self.words.weight
        with torch.no_grad():
            self.norm.weight.uniform_(1, 30)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(self.words(words))))


def test_a_weight_that_an_embedding_shares_is_not_smoothed(make_context) -> None:
    words = torch.randint(0, 9, (4, 5))
    network = Network(capture(Tied().eval(), (words,)))
    result, notes = smooth(network, Smooth(), make_context(words))
    assert result is network
    assert notes["left"] == 1


class TwoWeightsInOneModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(4, 3, 1, 1)), nn.Parameter(torch.randn(4, 4, 1, 1))
        self.b1, self.b2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b1(functional.conv2d(x, self.w1)).relu()
        return self.b2(functional.conv2d(x, self.w2))


def test_layers_of_one_module_get_a_bias_each(make_context) -> None:
    model = nn.Sequential(give_statistics(TwoWeightsInOneModule()))
    x = torch.randn(4, 3, 5, 5)
    network = Network(capture(model, (x,)))
    folded, notes = fold_batch_norms(network, FoldBatchNorms(), make_context(x))
    assert notes["folded"] == 2
    torch.testing.assert_close(folded.graph(x), model(x))


def test_an_override_that_changes_nothing_is_a_mistake() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    precision = Precision.model_validate({"overrides": {"1": "w4"}})
    network = Network(capture(model.eval(), (torch.randn(2, 4),)), Design(TARGETS["qnn"], precision))
    with pytest.raises(RecipeError, match=r"overrides\['1'\]: changes nothing: target qnn quantizes no weight of it"):
        place(network)


def test_half_precision_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"Linear's weight is bfloat16: give the FP32 model"):
        capture(nn.Linear(4, 4).bfloat16(), (torch.randn(2, 4).bfloat16(),))


def test_an_encoder_with_padding_is_captured() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    graph = capture(encoder, (torch.randn(2, 5, 8),), {"src_key_padding_mask": padding})
    assert graph is not None


class Shuffled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(16):
            x = torch.cat([x[:, ::2], x[:, 1::2]], 1)
        return functional.linear(x, torch.eye(4))


def test_placing_does_not_grow_exponentially_with_what_is_joined_again_and_again() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.shuffled = nn.Linear(4, 4), nn.Linear(4, 4), Shuffled()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.shuffled(self.a(x)))

    network = Network(capture(Whole().eval(), (torch.randn(2, 4),)), Design(TARGETS["qnn"]))
    start = time.perf_counter()
    place(network)
    assert time.perf_counter() - start < 20  # it took minutes
