"""Attention and einsum, opened up, compute what they did."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qatflow.graph.capture import capture
from qatflow.graph.opened import open_attention, open_einsum
from qatflow.graph.ops import kind

SIZES = (1, 2, 5)


class Attention(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, mask, **self.options)


def inputs(size: int) -> tuple[Tensor, ...]:
    return torch.randn(size, 2, 5, 4), torch.randn(size, 2, 7, 4), torch.randn(size, 2, 7, 3)


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_products_and_a_softmax(mask: str, scale: float | None) -> None:
    hidden = torch.arange(7) < torch.tensor([[3], [7], [5], [1], [6]])
    masks = {"none": None, "bool": hidden, "float": torch.where(hidden, 0.0, float("-inf"))}

    def example(size: int) -> tuple[Tensor, ...]:
        chosen = masks[mask]
        return inputs(size) if chosen is None else (*inputs(size), chosen[:size, None, None, :])

    graph = capture(Attention(scale=scale), example(2))
    assert open_attention(graph) == 1
    kinds = [kind(node) for node in graph.graph.nodes if node.op == "call_function"]
    assert kinds.count("matmul") == 2
    assert ("attention_bias" in kinds) == (mask != "none")
    for size in SIZES:
        x = example(size)
        torch.testing.assert_close(graph(*x), functional.scaled_dot_product_attention(*x, scale=scale))


def test_causal_attention_is_left_as_it_is() -> None:
    graph = capture(Attention(is_causal=True), inputs(2))
    assert open_attention(graph) == 0


EINSUMS = {
    "bhid,bhjd->bhij": ((2, 5, 4), (2, 6, 4)),
    "bhij,bhjd->bihd": ((2, 5, 6), (2, 6, 4)),
    "b i d, b d j -> b j i": ((5, 4), (4, 6)),
}


class Einsum(nn.Module):
    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum(self.equation, a, b)


@pytest.mark.parametrize("equation", EINSUMS)
def test_einsum_is_a_product(equation: str) -> None:
    first, second = EINSUMS[equation]
    graph = capture(Einsum(equation), (torch.randn(2, *first), torch.randn(2, *second)))
    assert open_einsum(graph) == 1
    assert "matmul" in [kind(node) for node in graph.graph.nodes]
    for size in SIZES:
        a, b = torch.randn(size, *first), torch.randn(size, *second)
        torch.testing.assert_close(graph(a, b), torch.einsum(equation, a, b))


@pytest.mark.parametrize("equation", ["bij,bij->b", "bij,bjk->b", "bi,bj->bij", "bijk,bjk->bi"])
def test_other_einsums_are_left_as_they_are(equation: str) -> None:
    a, b = equation.partition("->")[0].split(",")
    sizes = {"b": 2, "i": 3, "j": 4, "k": 5}
    graph = capture(Einsum(equation), tuple(torch.randn(*(sizes[one] for one in x)) for x in (a, b)))
    assert open_einsum(graph) == 0
