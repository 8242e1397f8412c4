"""Small networks with one awkward part each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def tensors(*shapes: tuple[int, ...]) -> Callable[[int, int], Inputs]:
    """Return positional inputs of the given shapes, batch first."""

    def make(count: int, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(count, *shape, generator=generator) for shape in shapes), {}

    return make


class ReusedModule(nn.Module):
    """One convolution and one batch norm run twice, with a ReLU that is run three times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Linear(8, 5)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = self.act(self.conv(x))
        return self.head(self.act(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]


class SharedWeights(nn.Module):
    """An autoencoder whose decoder is the transposed encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(16, 8)
        self.head = nn.Linear(16, 16)
        self.head.weight = nn.Parameter(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(x).relu()
        return self.head(functional.linear(hidden, self.encoder.weight.t()))  # type: ignore[no-any-return]


class Functional(nn.Module):
    """Parameters and functions, no layer modules; a product with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
        self.mix = nn.Parameter(torch.randn(8, 6) / 3)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.leaky_relu(functional.conv2d(x, self.kernel, padding=1), 0.1)
        x = functional.max_pool2d(x, 2).mean((2, 3)) @ self.mix
        return functional.normalize(x * self.scale, dim=1)


class Transposed(nn.Module):
    """A segmentation network in small: strided down, transposed up, grouped, with a skip by concat."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.grouped = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4), nn.BatchNorm2d(8), nn.PReLU(8)
        )
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 4, 2, 2, groups=2, bias=False), nn.BatchNorm2d(4), nn.ReLU6())
        self.head = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.up(self.grouped(self.down(x))), x], 1))  # type: ignore[no-any-return]


def one_dimensional() -> nn.Module:
    """Return a network of 1-d convolutions, as for sound."""
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, 2, bias=False),
        nn.BatchNorm1d(8),
        nn.GELU(),
        nn.Conv1d(8, 8, 3, padding="same", groups=8),
        nn.SiLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def three_dimensional() -> nn.Module:
    """Return a network of 3-d convolutions, as for video."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(8, 4, 3),
        nn.Hardswish(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


class Recurrent(nn.Module):
    """Convolution, LSTM, linear: the LSTM stays in float and is listed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.head = nn.Conv1d(3, 8, 3), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.lstm(self.conv(x).relu().transpose(1, 2))
        return self.head(steps[:, -1])  # type: ignore[no-any-return]


class TwoInputs(nn.Module):
    """An image and a vector in, a dict with a tuple in it out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.head = nn.Conv2d(3, 8, 3), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Any]:
        both = self.image(image).relu().mean((2, 3)) + self.vector(vector)
        return {"scores": self.head(both), "parts": (both, both.sigmoid())}


def multi_head_attention() -> nn.Module:
    """Return PyTorch's own encoder layer, whose projections are one parameter."""
    return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu", norm_first=True)


SMALL: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], Inputs]]] = {
    "reused module": (ReusedModule, tensors((3, 16, 16))),
    "shared weights": (SharedWeights, tensors((16,))),
    "functional": (Functional, tensors((3, 16, 16))),
    "transposed and grouped": (Transposed, tensors((3, 16, 16))),
    "1-d": (one_dimensional, tensors((2, 64))),
    "3-d": (three_dimensional, tensors((1, 8, 8, 8))),
    "lstm": (Recurrent, tensors((3, 20))),
    "two inputs, dict output": (TwoInputs, tensors((3, 8, 8), (6,))),
    "TransformerEncoderLayer": (multi_head_attention, tensors((10, 16))),
}
