"""A rung read from its files is the one that was stored, to the last bit: so is all that is built on it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qatflow.graph.capture import capture
from qatflow.graph.edits import describe, rebuild
from qatflow.graph.layers import set_tensor, tensor
from qatflow.quant.design import Design
from qatflow.quant.grid import Encoding, Grid
from qatflow.quant.network import Network
from qatflow.quant.prepare import captured_network
from qatflow.quant.saved import StoredEncoding, encoding_from_json, encoding_to_json, load, save
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Calibration, Precision
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.steps import STEPS
from qatflow.steps.context import StepContext
from tests.networks import inverted_residuals

PRECISION = Precision(weights=4)
CALIBRATION = Calibration(samples=24, activations="minmax", weights="minmax")
QUICK = {"adaround": {"samples": 32}, "equalize": {"choose": "all"}}


class PreNorm(nn.Module):
    """One block of a transformer over tokens, `[batch, 5, 8]`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(8, 16, bias=False), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.out((self.q(y) @ self.k(y).transpose(1, 2)).softmax(-1) @ self.v(y))
        return self.head((x + self.down(torch.relu(self.up(self.norm2(x))))).mean(1))


def small(kind: str) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(1)
    if kind == "transformer":
        return PreNorm().eval(), torch.randn(32, 5, 8, generator=generator)
    model, x = inverted_residuals(nn.ReLU6), torch.randn(32, 3, 8, 8, generator=generator)
    if kind == "channels last":
        return model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return model, x


@cache
def base_of(kind: str) -> tuple[Network, Tensor]:
    model, x = small(kind)
    return captured_network(model, (x[:2],), design=Design(precision=PRECISION, calibration=CALIBRATION)), x


def context_of(x: Tensor) -> StepContext:
    return StepContext(lambda limit: [((part,), {}) for part in x[: limit or 32].split(16)])


def measured(network: Network, x: Tensor) -> tuple[Tensor, dict[str, Encoding]]:
    """Return the outputs of a calibrated simulation, one row a sample, and its encodings."""
    simulation = Simulation(network)
    simulation.calibrate(context_of(x).inputs(24))
    with torch.no_grad():
        return simulation.model(x), simulation.encodings()


def state(network: Network) -> dict[str, Tensor]:
    """Return every tensor that the graph reads, in the order it does."""
    graph = network.graph
    return {str(node.target): tensor(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"}


def assert_same(one: Network, other: Network, x: Tensor) -> None:
    """Compare nodes, weights and how they lie in memory, encodings, normals and outputs, bit for bit."""
    assert [node.name for node in one.graph.graph.nodes] == [node.name for node in other.graph.graph.nodes]
    assert [name for name, _ in one.graph.named_parameters()] == [name for name, _ in other.graph.named_parameters()]
    ours, theirs = state(one), state(other)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.stride() == theirs[name].stride(), name
        assert torch.equal(value, theirs[name]), name
    (outputs, encodings), (others, their_encodings) = measured(one, x), measured(other, x)
    for mine, their in ((one.encodings, other.encodings), (encodings, their_encodings)):
        assert list(mine) == list(their)
        for name, encoding in mine.items():
            assert (encoding.grid, encoding.axis) == (their[name].grid, their[name].axis)
            assert torch.equal(encoding.scale, their[name].scale), name
            assert torch.equal(encoding.zero_point, their[name].zero_point), name
    assert one.design == other.design
    assert one.goal.keys() == other.goal.keys()
    for name in one.goal:
        assert torch.equal(one.fp32(name), other.fp32(name)), name
        assert one.fp32(name).stride() == other.fp32(name).stride(), name
    assert list(one.normals) == list(other.normals)
    for name, normal in one.normals.items():
        assert all(map(torch.equal, normal, other.normals[name])), name
    assert torch.equal(outputs, others)


def step(name: str, network: Network, x: Tensor) -> Network:
    torch.manual_seed(0)
    return STEPS[name](network, STEP_CONFIGS[name](**QUICK.get(name, {})), context_of(x))[0]


def stored(network: Network, base: Network, folder: Path, x: Tensor) -> Network:
    """Return a network as a second start reads it, with a capture of its own."""
    save(folder, base.graph, network, measured(network, x)[1])
    return load(folder, base.copy())[0]


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "cnn") for name in STEPS), ("adaround", "channels last"), ("adaround", "transformer")]
)
def test_what_a_step_makes_comes_back_to_the_bit(name: str, kind: str, tmp_path: Path) -> None:
    base, x = base_of(kind)
    fresh = step(name, base, x)
    assert_same(fresh, stored(fresh, base, tmp_path, x), x)


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
@pytest.mark.parametrize("name", STEPS)
def test_every_step_on_a_recalled_rung_makes_what_it_would_have_on_the_fresh_one(
    name: str, kind: str, tmp_path: Path
) -> None:
    base, x = base_of(kind)
    below = base
    fitting = name in ("search_scales", "correct_bias", "adaround", "reestimate_batch_norms")
    for before in ("fold_batch_norms", "equalize", "smooth", *(["adaround"] if fitting else [])):
        below = step(before, below, x)
    assert_same(step(name, below, x), step(name, stored(below, base, tmp_path, x), x), x)


@pytest.mark.parametrize("order", [("adaround", "correct_bias"), ("correct_bias", "search_scales", "adaround")])
def test_a_ladder_recalled_after_every_rung_ends_where_an_undisturbed_one_does(
    order: tuple[str, ...], tmp_path: Path
) -> None:
    base, x = base_of("cnn")
    undisturbed = recalled = base
    for number, name in enumerate(("fold_batch_norms", *order)):
        undisturbed = step(name, undisturbed, x)
        recalled = stored(step(name, recalled, x), base, tmp_path / str(number), x)
    assert_same(undisturbed, recalled, x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_new_value_lies_in_memory_as_the_old_one_did(layout: torch.memory_format) -> None:
    graph = torch.fx.symbolic_trace(nn.Conv2d(3, 4, 2).to(memory_format=layout))
    before = graph.weight.stride()
    value = torch.randn(2, 3, 2, 4).permute(3, 1, 0, 2)
    set_tensor(graph, "weight", value)
    assert torch.equal(graph.weight, value)
    assert graph.weight.stride() == before != value.stride()
    set_tensor(graph, "weight", value[:2])
    assert graph.weight.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_encodings_keep_every_bit(dtype: torch.dtype) -> None:
    grid = Grid(4, True, False, smallest_scale=1e-7)
    encoding = Encoding(grid, torch.rand(5).to(dtype) / 3, torch.tensor([0.0, -8, 7, 1, 2], dtype=dtype), 1)
    stored = StoredEncoding.taken(json.loads(json.dumps(encoding_to_json(encoding))))
    back = encoding_from_json(stored, torch.device("cpu"))
    assert back.grid == grid and back.grid.smallest_scale == 1e-7 and back.axis == 1
    assert back.scale.dtype == dtype
    assert torch.equal(back.scale, encoding.scale) and torch.equal(back.zero_point, encoding.zero_point)


def minus_infinity(graph: torch.fx.Graph, x: torch.fx.Node) -> torch.fx.Node:
    return graph.call_function(torch.ops.aten.constant_pad_nd.default, (x, [1, 1], -math.inf))


def another_type(graph: torch.fx.Graph, x: torch.fx.Node) -> torch.fx.Node:
    return graph.call_function(torch.ops.aten._to_copy.default, (x,), {"dtype": torch.float64})


@pytest.mark.parametrize("added", [minus_infinity, another_type])
def test_arguments_that_json_has_no_word_for_come_back(added: Callable[..., torch.fx.Node], tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    base = capture(nn.Sequential(nn.Linear(6, 6), nn.ReLU()).eval(), (x,))
    changed = Network(base).copy().graph
    (output,) = (node for node in changed.graph.nodes if node.op == "output")
    with changed.graph.inserting_before(output):
        (last,) = output.all_input_nodes
        output.replace_input_with(last, added(changed.graph, last))
    changed.recompile()
    again = rebuild(base, json.loads(json.dumps(describe(base, changed), allow_nan=False)), changed.state_dict())
    assert torch.equal(again(x), changed(x)) and again(x).dtype == changed(x).dtype
