"""Capture keeps the function, the names, the gradients and a free batch size."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from qatflow.errors import CaptureError
from qatflow.graph.capture import capture
from qatflow.graph.ops import kind
from tests.networks import TwoInputs, inverted_residuals


def test_same_function_at_other_batch_sizes() -> None:
    model = inverted_residuals()
    graph = capture(model, (torch.randn(2, 3, 8, 8),))
    for size in (1, 2, 5):
        x = torch.randn(size, 3, 8, 8)
        torch.testing.assert_close(graph(x), model(x))


def test_keeps_parameter_names_and_values_but_shares_nothing() -> None:
    model = inverted_residuals()
    graph = capture(model, (torch.randn(2, 3, 8, 8),))
    expected = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    state = graph.state_dict()
    assert expected.keys() <= state.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value)
    graph.get_parameter("head.weight").data.zero_()
    assert model.head.weight.abs().sum() > 0


def test_same_gradients_as_eager() -> None:
    model = inverted_residuals()
    graph = capture(model, (torch.randn(2, 3, 8, 8),))
    x = torch.randn(4, 3, 8, 8)
    model(x).square().sum().backward()
    graph(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(graph.get_parameter(name).grad, parameter.grad)


def test_several_inputs_and_nested_outputs() -> None:
    model = TwoInputs().eval()
    graph = capture(model, (torch.randn(2, 2, 9),), {"y": torch.randn(2, 6)})
    x, y = torch.randn(3, 2, 9), torch.randn(3, 6)
    wanted, got = model(x, y=y), graph(x, y=y)
    assert got.keys() == wanted.keys()
    torch.testing.assert_close(got["sum"], wanted["sum"])
    torch.testing.assert_close(got["parts"][1], wanted["parts"][1])


class InPlace(nn.Module):
    """Reads a tensor again after it was changed in place; once through a view."""

    def __init__(self, through_a_view: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.through_a_view = through_a_view

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.through_a_view:
            x.flatten(1).relu_()
            return x * 2
        functional.relu(x, inplace=True)
        return x + x


@pytest.mark.parametrize("through_a_view", [False, True])
def test_in_place_ops_become_functional(through_a_view: bool) -> None:
    model = InPlace(through_a_view).eval()
    graph = capture(model, (torch.randn(2, 3, 8, 8),))
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(graph(x), model(x))
    mutable = [
        node
        for node in graph.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    ]
    assert not mutable


def test_dropout_is_gone_and_mode_of_the_model_is_left() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    graph = capture(model, (torch.randn(2, 4),))
    assert model.training
    assert [kind(node) for node in graph.graph.nodes if node.op == "call_function"] == ["linear"]


class DependsOnValues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x
        return -x


def test_what_cannot_be_captured_is_named_with_its_line() -> None:
    with pytest.raises(CaptureError, match=r"DependsOnValues cannot be captured at .*test_capture.py:\d+ .*x.sum"):
        capture(DependsOnValues(), (torch.randn(2, 4),))


def test_wrong_number_of_inputs_is_told() -> None:
    with pytest.raises(CaptureError, match=r"forward cannot take the data's inputs"):
        capture(nn.Linear(4, 4), (torch.randn(2, 4), torch.randn(2, 4)))
