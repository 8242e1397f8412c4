"""Pairs are found where a scale per channel can be moved, and nowhere else."""

import torch
from torch import nn

from qatflow.graph.capture import capture
from qatflow.graph.chains import pairs


def found(model: nn.Module, *shape: int) -> list[tuple[str, str]]:
    graph = capture(model.eval(), (torch.randn(2, *shape),))
    return [(pair.first.name, pair.second.name) for pair in pairs(graph)]


def test_conv_relu_conv_pool_linear() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.MaxPool2d(2), nn.ReLU6(), nn.Conv2d(8, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    assert found(model, 3, 12, 12) == [("0", "2"), ("2", "5"), ("5", "8")]


def test_other_activations_batch_norms_and_spatial_flatten_end_a_chain() -> None:
    assert found(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3)), 3, 9, 9) == []
    assert found(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)), 3, 9, 9) == []
    assert found(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 49, 2)), 3, 9, 9) == []
    assert found(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardtanh(), nn.Conv2d(4, 4, 3)), 3, 9, 9) == []


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        return self.b(y) + self.c(y)


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(self.a(x).relu())


def test_branches_and_shared_weights_are_in_no_pair() -> None:
    assert found(Branches(), 4, 5, 5) == []
    assert found(Reused(), 4, 5, 5) == []
