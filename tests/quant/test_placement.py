"""Which tensors are quantized: one text a network, to be read and reviewed.

`QATFLOW_UPDATE_GOLDEN=1 pytest tests/quant/test_placement.py` writes the texts anew.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from qatflow.errors import PlacementError
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.network import Network
from qatflow.quant.placement import Placement, place
from qatflow.quant.placement_rows import placement_rows
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.target import Parameter, Target
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Precision
from qatflow.recipe.steps import FoldBatchNorms
from qatflow.steps.context import StepContext
from qatflow.steps.fold_batch_norms import fold_batch_norms
from qatflow.testing import check_placement
from tests import captured
from tests.networks import TwoInputs, inverted_residuals

GOLDEN = Path(__file__).parent / "golden"


class Everything(nn.Module):
    """Concat, max-pool, residual sum, reshapes, softmax, normalisation and a table looked up with integers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.pool = nn.MaxPool2d(2)
        self.mix = nn.Conv2d(8, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.query, self.key = nn.Linear(8, 4), nn.Linear(8, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        both = torch.cat([self.left(image).relu(), functional.relu6(self.right(image))], 1)
        small = self.pool(both)
        mixed = (self.mix(small) + small).relu()
        tokens = self.norm(mixed.flatten(2).transpose(1, 2))
        scores = self.query(tokens) @ self.key(tokens).transpose(1, 2)
        weights = scores.softmax(-1)
        looked_up = self.table(words)
        return torch.sigmoid(self.head((weights @ self.query(tokens)).mean(1) + looked_up))


class Moves(nn.Module):
    """Values that are only moved, several times over, and one tensor cut into parts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 4, 3), nn.Linear(18, 3), nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.max_pool2d(self.conv(x).relu(), 2).permute(0, 2, 3, 1).flatten(1)
        left, right = y.chunk(2, 1)
        best, _ = self.b(right).max(1, keepdim=True)
        return self.a(left) * best


class Residual(nn.Module):
    """A residual block with an identity skip, and one with a convolution on the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.b1, self.b2, self.skip = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(4, 6, 1, 2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.a2(self.a1(x).relu())).relu()
        x = (self.b2(self.b1(x).relu()) + self.skip(x)).relu()
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Fire(nn.Module):
    """Two branches joined by a concat that convolutions, a pool and a residual sum read."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 4, 1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.next, self.last = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        both = torch.cat([self.left(x).relu(), self.right(x).relu()], 1)
        return self.last(torch.max_pool2d(both, 2)) + torch.max_pool2d(self.next(both), 2)


class Mobile(nn.Module):
    """Depthwise convolutions with ReLU6 and hard swish, squeeze and excite, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down, self.up, self.project = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 1)
        self.deconv = nn.ConvTranspose2d(4, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.depthwise(functional.relu6(self.expand(x))))
        gate = torch.sigmoid(self.up(self.down(x.mean((2, 3), keepdim=True)).relu()))
        x = self.project(x * gate)
        return self.deconv(functional.interpolate(x, scale_factor=2.0, mode="bilinear"))


class Encoder(nn.Module):
    """A transformer block on embedded words, with a mask: layer norm, attention, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(20, 8), nn.Parameter(torch.randn(6, 8))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        x = self.words(words) + self.positions
        y = self.norm1(x)
        q, k, v = (one(y).unflatten(-1, (2, 4)).transpose(1, 2) for one in (self.query, self.key, self.value))
        y = functional.scaled_dot_product_attention(q, k, v, mask[:, None, None, :])
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


IMAGES = (torch.randn(2, 3, 8, 8),)
MASK = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], dict[str, Tensor]]] = {
    "residual": (Residual, IMAGES, {}),
    "fire": (Fire, IMAGES, {}),
    "mobile": (Mobile, IMAGES, {}),
    "encoder": (Encoder, (torch.randint(0, 20, (2, 6)), MASK), {}),
    "everything": (Everything, (*IMAGES, torch.tensor([1, 2])), {}),
    "moves": (Moves, IMAGES, {}),
    "two_inputs": (TwoInputs, (torch.randn(2, 2, 9),), {"y": torch.randn(2, 6)}),
    "inverted_residuals": (inverted_residuals, IMAGES, {}),
}
CASES = [(model, target) for model in MODELS for target in TARGETS]


@cache
def network_of(name: str, target: str) -> Network:
    build, args, kwargs = MODELS[name]
    torch.manual_seed(0)
    network = captured_network(build().eval(), args, kwargs, Design(TARGETS[target]))
    if name == "inverted_residuals":
        return fold_batch_norms(network, FoldBatchNorms(), StepContext(lambda limit: []))[0]
    return network


def as_text(graph: fx.GraphModule, placement: Placement) -> str:
    rows = placement_rows(graph, placement)
    widths = [max(len(row.tensor) for row in rows), max(len(row.op) for row in rows)]
    return "".join(f"{row.tensor:<{widths[0]}}  {row.op:<{widths[1]}}  {row.how}\n" for row in rows)


@pytest.mark.parametrize(("name", "target"), CASES)
def test_placements(name: str, target: str) -> None:
    network = network_of(name, target)
    got = as_text(network.graph, place(network))
    path = GOLDEN / target / f"{name}.txt"
    if os.environ.get("QATFLOW_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(got)
    assert got == path.read_text()


@pytest.mark.parametrize(("name", "target"), CASES)
def test_every_float_result_is_quantized_moved_fused_or_listed_once(name: str, target: str) -> None:
    network = network_of(name, target)
    check_placement(network.graph, place(network))


@pytest.mark.parametrize(("name", "target"), CASES)
def test_every_placement_can_be_simulated(name: str, target: str) -> None:
    _, args, kwargs = MODELS[name]
    network = network_of(name, target)
    simulation = Simulation(network)
    simulation.calibrate([(args, kwargs)])
    wanted, got = (pytree.tree_leaves(run(*args, **kwargs)) for run in (network.graph, simulation.model))
    assert all(sqnr_db(a, b) > 15 for a, b in zip(wanted, got, strict=True))


def test_nothing_is_quantized_inside_a_fused_chain() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3))
    placement = place(captured_network(model.eval(), (torch.randn(2, 3, 9, 9),)))
    assert [point.tensor for point in placement.points if point.parameter is None] == [
        "input_1",
        "relu",
        "hardtanh",
        "conv2d_2",
    ]
    assert placement.floats == []


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.relu() + y


def test_a_chain_ends_where_something_else_reads_it() -> None:
    placement = place(captured_network(ReadTwice().eval(), (torch.randn(2, 3, 9, 9),)))
    assert {"conv2d", "relu"} <= {point.tensor for point in placement.points}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).relu())


def test_a_weight_that_two_layers_share_has_one_quantizer() -> None:
    network = captured_network(Shared().eval(), (torch.randn(2, 4),))
    placement = place(network)
    assert [point.parameter for point in placement.points if point.parameter] == ["layer.weight"]
    simulation = Simulation(network)
    simulation.calibrate([((torch.randn(8, 4),), {})])
    assert list(simulation.to_network().encodings) == ["layer.weight"]


def test_precision_sets_bits_and_granularity() -> None:
    precision = Precision(weights=4, activations=16, per_channel=False)
    placement = place(captured.folded().designed(Design(precision=precision)))
    assert {point.grid.bits for point in placement.points if point.parameter} == {4}
    assert {point.grid.bits for point in placement.points if not point.parameter} == {16}
    assert {point.axis for point in placement.points} == {None}


class NoLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) + 1


def test_a_model_without_a_weighted_layer_is_refused() -> None:
    with pytest.raises(PlacementError, match=r"quantizes no weighted layer of this model .*found: none"):
        place(captured_network(NoLayer(), (torch.randn(2, 4),)))


def test_a_target_that_quantizes_no_layer_of_the_model_names_what_it_found() -> None:
    target = Target(
        name="nothing",
        activations_signed=False,
        activations_symmetric=False,
        parameters={"matmul": Parameter(operand=1)},
        bias="float",
        at="producer",
        inputs=frozenset({"add"}),
        attention="closed",
    )
    with pytest.raises(PlacementError, match=r"target nothing .*found: conv, linear"):
        place(captured.folded().designed(Design(target)))
