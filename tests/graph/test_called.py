"""A captured model that cannot take a batch is told of with the user's line, or with the sizes that differ."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qatflow.errors import DataError, UserCodeError
from qatflow.graph.called import called
from qatflow.graph.capture import capture


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids).mean(1))


class Squeezes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3), keepdim=True).squeeze())


def line_of(text: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


def test_a_node_that_fails_is_told_with_the_line_it_was_captured_from(capsys: pytest.CaptureFixture[str]) -> None:
    graph = capture(Words().eval(), (torch.ones(2, 5, dtype=torch.long),))
    place = re.escape(f"{__file__}:{line_of('self.words(ids)')}, in forward: ")
    with pytest.raises(UserCodeError, match=rf"^{place}IndexError: .*\(the model, given \[3, 5\]\)$"):
        called(graph, (torch.full((3, 5), 99),), {})
    assert capsys.readouterr() == ("", "")


def test_other_sizes_than_those_captured_are_told() -> None:
    graph = capture(Squeezes().eval(), (torch.randn(2, 6, 4, 4),))
    with pytest.raises(DataError, match="x has the size 6 x 5 x 4 a sample, and the model was captured with 6 x 4 x 4"):
        called(graph, (torch.randn(3, 6, 5, 4),), {})


def test_a_model_that_drops_the_dimension_of_one_sample_is_told_of() -> None:
    model = Squeezes().eval()
    graph, x = capture(model, (torch.randn(2, 6, 4, 4),)), torch.randn(3, 6, 4, 4)
    assert torch.equal(called(graph, (x,), {}), model(x))
    place = re.escape(f"{__file__}:{line_of('keepdim=True')}, in forward: ")
    with pytest.raises(UserCodeError, match=rf"^{place}squeeze drops the dimension of a batch of one sample; write"):
        called(graph, (x[:1],), {})


def test_any_other_callable_is_only_called() -> None:
    assert called(lambda x: x + 1, (1,), {}) == 2
