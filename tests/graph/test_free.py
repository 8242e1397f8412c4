"""Dimensions besides the batch are free where the model lets them be, and told of where it does not."""

import re
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from qatflow.errors import CaptureError, DataError
from qatflow.graph.called import called
from qatflow.graph.capture import capture
from qatflow.graph.fingerprint import graph_fingerprint
from qatflow.graph.free import batch_axis
from qatflow.graph.tree import tree_leaves
from qatflow.quant.softmax_view import softmax_view
from tests.networks import inverted_residuals

FREE = {"x": {2: "length"}}


class Signal(nn.Module):
    """A network of one dimension; `how` is what it does with the length."""

    def __init__(self, how: str = "pools", length: int = 16) -> None:
        super().__init__()
        self.how = how
        self.conv, self.line = nn.Conv1d(2, 4, 3, padding=1), nn.Linear(4 * length, 3)
        self.position = nn.Parameter(torch.randn(1, 4, length))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        if self.how == "adds positions":
            y = y + self.position
        elif self.how == "reshapes":
            y = y.reshape(x.shape[0], 64)
        elif self.how == "counts":
            y = y * 2 if x.shape[2] > 12 else y
        elif self.how == "halves and flattens":
            return self.line(torch.cat([nn.functional.avg_pool1d(y, 2)] * 2, 2).flatten(1))
        return y.mean(-1)


class Named(nn.Module):
    """Keyword and nested inputs, and others by any name."""

    def forward(self, pair: tuple[Tensor, Tensor], *, mask: Tensor, **more: Tensor) -> dict[str, Tensor]:
        first, second = pair
        return {"sum": first * mask + more["last"], "second": second.relu()}


def test_the_graph_takes_other_sizes_and_knows_what_they_are_called() -> None:
    model = inverted_residuals()
    graph = capture(model, (torch.randn(2, 3, 8, 12),), free={"x": {2: "height", 3: "width"}})
    assert graph.meta["free"] == {"x": {2: "height", 3: "width"}}
    for shape in ((1, 3, 8, 8), (2, 3, 15, 7), (5, 3, 4, 31)):
        x = torch.randn(shape)
        torch.testing.assert_close(graph(x), model(x))


def test_inputs_are_called_as_in_forward() -> None:
    def inputs(count: int, length: int) -> tuple[tuple[tuple[Tensor, Tensor]], dict[str, Tensor]]:
        pair = torch.randn(count, length), torch.randn(count, 4)
        return (pair,), {"last": torch.randn(count, length), "mask": torch.ones(count, length)}

    free = {name: {1: "tokens"} for name in ("pair_0", "mask", "last")}
    args, kwargs = inputs(2, 6)
    graph = capture(Named(), args, kwargs, free=free)
    args, kwargs = inputs(3, 5)
    wanted, got = Named()(*args, **kwargs), graph(*args, **kwargs)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(wanted), tree_leaves(got), strict=True))


@pytest.mark.parametrize(
    ("free", "said"),
    [
        ({"y": {2: "length"}}, "data.free.y: 'y' is no input of the model; allowed: x"),
        (
            {"x": {0: "many"}},
            "data.free.x.0: the shape is [2, 2, 16], so that 1 to 2 can be named; the batch is",
        ),
        (
            {"x": {3: "many"}},
            "data.free.x.3: the shape is [2, 2, 16], so that 1 to 2 can be named; the batch is",
        ),
        (
            {"x": {2: "batch"}},
            "data.free.x.2: 'batch' is no name for it: take a word of letters",
        ),
        (
            {"x": {1: "size", 2: "size"}},
            "data.free.x.2: size is 16 here and 2 in x: give what differs",
        ),
    ],
)
def test_dimensions_that_are_not_there_are_told(free: Mapping[str, Mapping[int, str]], said: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(said)}"):
        capture(Signal(), (torch.randn(2, 2, 16),), free=free)


def test_a_size_of_one_cannot_be_freed() -> None:
    with pytest.raises(DataError, match=r"^data.free.x.2: the samples have size 1 there, and capture needs 2 or more$"):
        capture(Signal(), (torch.randn(2, 2, 1),), free=FREE)


@pytest.mark.parametrize(
    ("how", "line"), [("adds positions", "y = y + self"), ("reshapes", "y = y.reshape(x.shape[0], 64)")]
)
def test_a_dimension_that_becomes_a_number_is_told_with_its_line(how: str, line: str) -> None:
    said = rf"Signal cannot be captured at .*test_free.py:\d+ \(`{re.escape(line)}.*`\): dimension 2 of x \(length\)"
    with pytest.raises(CaptureError, match=rf"^{said} is taken for a fixed number; .*, or leave it out of data.free$"):
        capture(Signal(how), (torch.randn(2, 2, 16),), free=FREE)


def test_the_batch_is_to_blame_where_it_is() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu().reshape(2, -1)

    with pytest.raises(CaptureError, match=r"test_free.py:\d+ \(`return x.relu.*`\): the batch size is taken for"):
        capture(Fixed(), (torch.randn(2, 2, 16),), free=FREE)


def test_what_depends_on_the_size_and_became_a_constant_is_found_by_another_size() -> None:
    said = "data.free: the graph of Signal, captured with length 16, does not compute what the model does with 8"
    with pytest.raises(CaptureError, match=f"^{said}"):
        capture(Signal("counts"), (torch.randn(2, 2, 16),), free=FREE)


def test_a_model_that_takes_one_size_only_is_told_with_what_it_says_at_another() -> None:
    said = r"data.free: Signal itself takes no other length than 16 \(with 8: .*test_free.py:\d+, in forward"
    with pytest.raises(CaptureError, match=rf"^{said}: RuntimeError: mat1 and mat2 .*\); leave it out of data.free$"):
        capture(Signal("halves and flattens"), (torch.randn(2, 2, 16),), free=FREE)


def test_two_names_of_one_size_are_told() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x

    said = "^data.free: the model takes height and width in one size only: give both one name$"
    with pytest.raises(CaptureError, match=said):
        capture(Square(), (torch.randn(2, 5, 5),), free={"x": {1: "height", 2: "width"}})
    graph = capture(Square(), (torch.randn(2, 5, 5),), free={"x": {1: "side", 2: "side"}})
    assert graph(torch.ones(1, 3, 3)).tolist() == [[[3.0] * 3] * 3]


def test_other_fixed_sizes_are_told_when_a_batch_comes() -> None:
    graph = capture(inverted_residuals(), (torch.randn(2, 3, 8, 8),), free={"x": {3: "width"}})
    assert called(graph, (torch.randn(1, 3, 8, 9),), {}).shape == (1, 5)
    said = r"x has the size 3 x 9 x 9 a sample, and the model was captured with 3 x 8 x free, .* or name it there$"
    with pytest.raises(DataError, match=said):
        called(graph, (torch.randn(1, 3, 9, 9), 1), {})


class Scores(nn.Module):
    """Products of positions first, `[T, n, C]`, and a softmax behind a reshape."""

    def forward(self, x: Tensor) -> Tensor:
        turned = x.transpose(0, 1).relu()
        product = turned.transpose(0, 1) @ x.transpose(1, 2)
        length = x.shape[1]
        return product.reshape(x.shape[0], 1, length, length).softmax(-1) + turned.sum()


def test_samples_and_rows_are_found_where_positions_are_free_as_well() -> None:
    example = (torch.randn(2, 6, 4),)
    for free in ({}, {"x": {1: "tokens"}}):
        graph = capture(Scores(), example, free=free)
        nodes = {node.name: node for node in graph.graph.nodes}
        assert batch_axis(nodes["relu"]) == 1
        assert batch_axis(nodes["matmul"]) == 0
        assert batch_axis(nodes["sum_1"]) is None
        view = softmax_view(nodes["matmul"])
        assert view is not None
        assert view.dim == -1


def test_what_is_free_counts_for_the_fingerprint_and_its_symbols_do_not() -> None:
    x = torch.randn(2, 2, 16)
    model = Signal()
    first, again, fixed, other = (
        graph_fingerprint(capture(model, (x,), free=free)) for free in (FREE, FREE, {}, {"x": {2: "time"}})
    )
    assert first == again
    assert len({first, fixed, other}) == 3
