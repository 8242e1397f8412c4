"""A graph knows which input tells what counts, and which dimension of its outputs counts positions."""

import copy

import pytest
import torch
from torch import Tensor, nn

from qatflow.errors import DataError
from qatflow.graph.capture import capture
from qatflow.graph.edits import describe, rebuild
from qatflow.graph.observe import observe
from qatflow.graph.padding import Padding, mask_of, observe_real, padding_of, real_positions
from qatflow.quant.network import Network, copy_graph
from qatflow.quant.prepare import prepare
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from tests.graph.padded import LENGTH, batch, encoder

POSITIONS = (1, None, 1, 2)
"""Of tokens `[n, T, C]`, pooled `[n, C]`, ends `[n, T]` and turned `[n, 12, T]`; C and T are equal."""


def test_the_mask_is_found_by_name_among_positional_and_keyword_inputs() -> None:
    ids, mask = batch(4)
    for args, kwargs in (
        ((ids, mask), {}),
        ((), {"ids": ids, "attention_mask": mask}),
        ((ids,), {"attention_mask": mask}),
        ((), {"attention_mask": mask, "ids": ids}),
    ):
        graph = capture(encoder(), args, kwargs)
        assert graph.meta["mask"] == "attention_mask"
        assert graph.meta["positions"] == POSITIONS
        assert torch.equal(mask_of(graph, args, kwargs), mask != 0)
        padding = padding_of(graph, args, kwargs)
        assert isinstance(padding, Padding)
        assert padding.real(3, torch.zeros(4, 12, LENGTH)).shape == (4, 1, LENGTH)
        assert padding.real(1, torch.zeros(4, LENGTH)) is None


def test_copies_of_a_graph_know_it_too() -> None:
    ids, mask = batch(2)
    base = capture(encoder(), (ids, mask))
    prepared = Network(prepare(copy_graph(base), TARGETS["onnxruntime"]))
    copies = (
        copy.deepcopy(base),
        copy_graph(base),
        prepared.copy().graph,
        rebuild(base, describe(base, prepared.graph), prepared.graph.state_dict()),
        Simulation(prepared).model,
    )
    for one in copies:
        assert torch.equal(mask_of(one, (ids, mask), {}), mask != 0)
        assert one.meta["positions"] == POSITIONS


class Other(nn.Module):
    """Takes a mask by another name, and one of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, valid: Tensor, attention_mask: Tensor) -> Tensor:
        return self.layer(x) * valid[..., None] + attention_mask[:, 0, :, None]


def test_another_name_must_be_that_of_an_input_of_two_dimensions() -> None:
    inputs = (torch.randn(2, 5, 3), torch.ones(2, 5), torch.zeros(2, 1, 5))
    assert capture(Other().eval(), inputs).meta.get("mask") is None
    assert capture(Other().eval(), inputs, mask="").meta.get("mask") is None
    assert capture(Other().eval(), inputs, mask="valid").meta["mask"] == "valid"
    with pytest.raises(DataError, match=r"data.mask: 'mask' .*: the model has no such input\. .*one of valid"):
        capture(Other().eval(), inputs, mask="mask")
    with pytest.raises(DataError, match=r"data.mask: 'x' cannot say .*: its shape is \[2, 5, 3\]"):
        capture(Other().eval(), inputs, mask="x")


def test_a_model_without_a_mask_has_none() -> None:
    graph = capture(nn.Linear(4, 4), (torch.randn(2, 4),))
    assert mask_of(graph, (torch.randn(2, 4),), {}) is None
    assert padding_of(lambda x: x, (torch.randn(2, 4),), {}) is None


def test_what_a_mask_says() -> None:
    ids, mask = batch(3)
    graph = capture(encoder(), (ids, mask))

    def of(values: object) -> Tensor | None:
        return mask_of(graph, (ids[:2], torch.as_tensor(values)), {})

    ones = [1] * LENGTH
    some = [1] * 3 + [0] * (LENGTH - 3)
    assert of([ones, ones]) is None
    assert of([[0] * LENGTH] * 2) is None
    wanted = torch.tensor([some, ones]).bool()
    assert torch.equal(of([some, ones]), wanted)
    assert torch.equal(of(torch.tensor([some, ones]).bool()), wanted)
    assert torch.equal(of([some, [0] * LENGTH]), wanted)
    additive = torch.where(wanted, 0.0, -torch.inf)
    assert torch.equal(of(additive), wanted)


def test_real_positions_of_tensors_inside_a_model() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    assert real_positions(torch.zeros(2, 2, 7), mask) is mask
    assert real_positions(torch.zeros(2, 2), mask) is None
    assert real_positions(torch.zeros(2, 7, 2), mask) is None
    assert real_positions(torch.zeros(2, 2, 7), None) is None


def test_observing_real_positions_shows_no_others() -> None:
    ids, mask = batch(4)
    graph = capture(encoder(), (ids, mask))
    nodes = {node.name: node for node in graph.graph.nodes}
    chosen = [nodes["layer_norm"], nodes["sum_2"]]
    real: list[Tensor] = []
    every: list[Tensor] = []
    observe_real(graph, chosen, [((ids, mask), {})], lambda node, value: real.append(value))
    observe(graph, chosen, [((ids, mask), {})], lambda node, value: every.append(value))
    assert torch.equal(real[0], every[0][mask != 0][None])
    assert torch.equal(real[1], every[1])
