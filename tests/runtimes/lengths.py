"""A network whose length is free, for several runtimes."""

import torch
from torch import Tensor, nn

LENGTH = {"signal": {2: "length"}}


class Lengths(nn.Module):
    """Two convolutions of one dimension with a residual sum, pooled over the length."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 3)

    def forward(self, signal: Tensor) -> Tensor:
        x = torch.relu(self.stem(signal))
        return self.head((x + self.depthwise(x)).mean(-1))


def signals(count: int, length: int) -> Tensor:
    """Return samples of one length, always the same."""
    return torch.randn(count, 2, length, generator=torch.Generator().manual_seed(length))
