"""Which tensors are quantized: one text a network, to be read and reviewed.

`QATFLOW_UPDATE_GOLDEN=1 pytest tests/quant/test_placement.py` writes the texts anew.
"""

import os
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from qatflow.errors import PlacementError
from qatflow.graph.capture import capture
from qatflow.quant.network import Network
from qatflow.quant.placement import Placement, place
from qatflow.quant.simulation import Simulation
from qatflow.quant.target import Target
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Calibration, Precision
from tests import captured
from tests.networks import TwoInputs

GOLDEN = Path(__file__).parent / "golden"
TARGET = TARGETS["onnxruntime"]


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


NETWORKS = {
    "inverted_residuals_folded": lambda: captured.folded().graph,
    "inverted_residuals_as_captured": lambda: captured.captured().graph,
    "everything": lambda: capture(Everything().eval(), (torch.randn(2, 3, 8, 8), torch.tensor([1, 2]))),
    "moves": lambda: capture(Moves().eval(), (torch.randn(2, 3, 8, 8),)),
    "two_inputs": lambda: capture(TwoInputs().eval(), (torch.randn(2, 2, 9),), {"y": torch.randn(2, 6)}),
}


@cache
def graph_of(name: str) -> fx.GraphModule:
    return NETWORKS[name]()


def as_text(placement: Placement) -> str:
    lines = ["quantized"]
    for point in placement.points:
        grid = point.grid
        kind = f"{'int' if grid.signed else 'uint'}{grid.bits} {'symmetric' if grid.symmetric else 'asymmetric'}"
        scales = "per tensor" if point.axis is None else f"per channel of axis {point.axis}"
        fixed = f", range {point.fixed_range}" if point.fixed_range else ""
        parameter = f" = {point.parameter}" if point.parameter else ""
        lines.append(f"  {point.tensor}{parameter}: {kind}, {scales}{fixed}, in {point.layer}")
    lines += ["moved"] + [f"  {name}: as {source}" for name, source in placement.tied.items()]
    lines += ["float"] + [f"  {left.tensor} in {left.layer}: {left.reason}" for left in placement.floats]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", NETWORKS)
def test_placements(name: str) -> None:
    got = as_text(place(graph_of(name), TARGET, Precision()))
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("QATFLOW_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(got)
    assert got == path.read_text()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_float_result_is_quantized_moved_listed_or_inside_a_chain(name: str) -> None:
    graph = graph_of(name)
    placement = place(graph, TARGET, Precision())
    told = [point.tensor for point in placement.points] + list(placement.tied)
    told += [left.tensor for left in placement.floats]
    assert len(told) == len(set(told))
    assert set(placement.tied.values()) <= {point.tensor for point in placement.points}
    assert set(told) <= {node.name for node in graph.graph.nodes}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_placement_can_be_simulated(name: str) -> None:
    graph = graph_of(name)
    inputs = {
        "everything": ((torch.randn(4, 3, 8, 8), torch.tensor([1, 2, 9, 0])), {}),
        "two_inputs": ((torch.randn(4, 2, 9),), {"y": torch.randn(4, 6)}),
    }.get(name, ((torch.randn(4, 3, 8, 8),), {}))
    simulation = Simulation(Network(graph), TARGET, Precision())
    simulation.calibrate([inputs], Calibration())
    simulation.model(*inputs[0], **inputs[1])


def test_nothing_is_quantized_inside_a_fused_chain() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3))
    placement = place(capture(model.eval(), (torch.randn(2, 3, 9, 9),)), TARGET, Precision())
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
    placement = place(capture(ReadTwice().eval(), (torch.randn(2, 3, 9, 9),)), TARGET, Precision())
    assert {"conv2d", "relu"} <= {point.tensor for point in placement.points}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).relu())


def test_a_weight_that_two_layers_share_has_one_quantizer() -> None:
    network = Network(capture(Shared().eval(), (torch.randn(2, 4),)))
    placement = place(network.graph, TARGET, Precision())
    assert [point.parameter for point in placement.points if point.parameter] == ["layer.weight"]
    simulation = Simulation(network, TARGET, Precision())
    simulation.calibrate([((torch.randn(8, 4),), {})], Calibration())
    assert list(simulation.to_network().encodings) == ["layer.weight"]


def test_precision_sets_bits_and_granularity() -> None:
    precision = Precision(weights=4, activations=16, per_channel=False)
    placement = place(captured.folded().graph, TARGET, precision)
    assert {point.grid.bits for point in placement.points if point.parameter} == {4}
    assert {point.grid.bits for point in placement.points if not point.parameter} == {16}
    assert {point.axis for point in placement.points} == {None}


class NoLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) + 1


def test_a_model_without_a_weighted_layer_is_refused() -> None:
    with pytest.raises(PlacementError, match=r"quantizes no weighted layer of this model .*found: none"):
        place(capture(NoLayer(), (torch.randn(2, 4),)), TARGET, Precision())


def test_a_target_that_quantizes_no_layer_of_the_model_names_what_it_found() -> None:
    target = Target(
        name="nothing",
        activations_signed=False,
        activations_symmetric=False,
        weight_axis={},
        quantized=frozenset({"add"}),
        preserving=frozenset(),
        fused=frozenset(),
    )
    with pytest.raises(PlacementError, match=r"target nothing .*found: conv, linear"):
        place(captured.folded().graph, target, Precision())
