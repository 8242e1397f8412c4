"""Multiply-accumulates of one sample, beside PyTorch's own counter of operations."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from qatflow.graph.work import multiply_accumulates
from qatflow.quant.design import Design
from qatflow.quant.prepare import captured_network
from qatflow.quant.targets import TARGETS


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.out = nn.Linear(8, 24), nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.inputs(x).chunk(3, 2)
        return self.out((query @ key.transpose(1, 2)).softmax(-1) @ value)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x * 2, x + 1)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 9, 7)),
        (nn.Conv2d(4, 8, 3, groups=4), (4, 9, 7)),
        (nn.Conv1d(4, 8, 3, groups=2), (4, 9)),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5)),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (3, 4)),
        (Products(), (6, 8)),
    ],
)
def test_they_are_half_of_pytorchs_operations(model: nn.Module, shape: tuple[int, ...]) -> None:
    model = model.eval()
    x = torch.randn(4, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    graph = captured_network(model, (x,)).graph
    found = multiply_accumulates(graph, ((x,), {}))
    assert sum(found.values()) == counter.get_total_flops() / 2 / len(x)
    assert all(count > 0 for count in found.values())


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_attention_multiplies_queries_with_keys_and_scores_with_values(target: str) -> None:
    """As products or as one op; PyTorch's counter knows it on a GPU only."""
    x = torch.randn(4, 2, 6, 8)
    graph = captured_network(Attention().eval(), (x,), design=Design(TARGETS[target])).graph
    assert sum(multiply_accumulates(graph, ((x,), {})).values()) == 2 * (6 * 6 * 8) * 2
