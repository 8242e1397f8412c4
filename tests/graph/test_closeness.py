"""Two functions are close to float rounding, and nothing that is not finite hides that they are not."""

import math

import pytest
import torch
from torch import Tensor, nn

from qatflow.errors import CaptureError
from qatflow.graph import capture as capturing
from qatflow.graph.capture import capture
from qatflow.graph.closeness import close, outputs_close
from qatflow.graph.layers import set_tensor, tensor


@pytest.mark.parametrize(
    ("wanted", "got", "expected"),
    [
        ([1.0, 2.0], [1.0005, 2.0], True),
        ([1.0, 2.0], [1.005, 2.0], False),
        ([1.0, -math.inf], [50.0, -math.inf], False),
        ([1.0, -math.inf], [1.0, -math.inf], True),
        ([1.0, -math.inf], [1.0, math.inf], False),
        ([1.0, -math.inf], [1.0, -1e30], False),
        ([1.0, math.nan], [1.0, math.nan], True),
        ([1.0, math.nan], [1.0, 1.0], False),
        ([1.0, 1.0], [1.0, math.nan], False),
        ([1.0, 1.0], [1.0, math.inf], False),
        ([math.nan, math.nan], [math.nan, math.nan], True),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([0.0, 0.0], [0.0, 1e-6], False),
        ([], [], True),
    ],
)
def test_close_by_hand(wanted: list[float], got: list[float], expected: bool) -> None:
    assert close(torch.tensor(wanted), torch.tensor(got), 1e-3) is expected


def test_tensors_of_other_shapes_are_not_close() -> None:
    assert not close(torch.ones(2), torch.ones(2, 1), 1e-3)


class BoxesAndScores(nn.Module):
    """Boxes in pixels and scores in 0 to 1 in one tensor, masked scores, and the best class."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.scores = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores = self.boxes(x) * 640, self.scores(x).sigmoid()
        hidden = torch.where(torch.arange(3) > 1, -math.inf, scores)
        return torch.cat([boxes, scores], 1), hidden, scores.argmax(1)


def test_every_part_of_the_outputs_must_be_close() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 4)
    graph = capture(BoxesAndScores().eval(), (x[:2],))
    both, hidden, best = graph(x)
    assert outputs_close(graph, (both, hidden, best), graph(x), 1e-3)
    apart = both + torch.tensor([0.0] * 4 + [0.3] * 3)
    assert close(both, apart, 1e-3)
    assert not outputs_close(graph, (both, hidden, best), (apart, hidden, best), 1e-3)
    assert not outputs_close(graph, (both, hidden, best), (both, hidden + 1, best), 1e-3)
    other = torch.cat([best[:1] + 1, best[1:]])
    assert not outputs_close(graph, (both, hidden, best), (both, hidden, other), 1e-3)
    assert outputs_close(graph, (both, hidden, best), (both, hidden, other), 1e-3, equal=0.99)
    assert not outputs_close(graph, (both, hidden, best), (both[:50], hidden, best), 1e-3)


def test_capture_notices_a_difference_beside_minus_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    def tamper(graph: torch.fx.GraphModule) -> None:
        set_tensor(graph, "scores.bias", tensor(graph, "scores.bias") + 10)

    monkeypatch.setattr(capturing, "_remove_identities", tamper)
    with pytest.raises(CaptureError, match="does not compute what it does"):
        capture(BoxesAndScores().eval(), (torch.randn(2, 4),))
