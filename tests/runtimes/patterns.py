"""Small nets with one pattern each, as a user writes them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE, SIGNAL, VOLUME, TOKENS = (4, 8, 8), (4, 16), (4, 4, 6, 6), (6, 8)


class Pattern(NamedTuple):
    """A net, and the shape of a sample."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGE


class Between(nn.Module):
    """A function between two convolutions, so that its inputs and results are quantized as in a network."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 4) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(channels, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


class Branches(nn.Module):
    """A function of the results of two convolutions, and a convolution behind it."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], channels: int = 4) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.after = nn.Conv2d(channels, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.left(x), self.right(x)))


class SqueezeExcite(nn.Module):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.before, self.down, self.up = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.after, self.gate = nn.Conv2d(8, 4, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.before(x))
        scale = self.gate(self.up(torch.relu(self.down(functional.adaptive_avg_pool2d(x, 1)))))
        return self.after(x * scale)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.after = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.after(torch.relu(x + self.second(x)))


class Tokens(nn.Module):
    """A function of tokens between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.after, self.function = nn.Linear(8, 8), nn.Linear(8, 8), function

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


class Signal(nn.Module):
    """A function of a signal between convolutions and a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.after, self.function = nn.Conv1d(4, 8, 3), nn.Linear(8, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(torch.relu(self.before(x))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        scores = (self.query(x) @ self.key(x).transpose(1, 2) / 8**0.5).softmax(-1)
        return self.out(scores @ self.value(x))


class Heads(nn.Module):
    """Attention of two heads, by PyTorch's own op."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (one.unflatten(2, (2, 4)).transpose(1, 2) for one in self.inputs(x).chunk(3, 2))
        return self.out(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Words(nn.Module):
    """Tokens that are looked up, with positions added to them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(3, 8), nn.Parameter(torch.randn(6, 8))
        self.before, self.after = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.before(self.words((x[:, :, :2] > 0).sum(2))) + self.places)


def behind(activation: nn.Module) -> Pattern:
    """A convolution with an activation, and another one that reads it."""
    return Pattern(lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), activation, nn.Conv2d(8, 4, 1)))


PATTERNS = {
    "convolution": Pattern(lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 1))),
    "strided and dilated": Pattern(lambda: nn.Sequential(nn.Conv2d(4, 8, 3, 2, 2), nn.Conv2d(8, 4, 3, 1, 2, 2))),
    "depthwise": Pattern(lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1))),
    "grouped": Pattern(lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 4, 1))),
    "depthwise with multiplier": Pattern(lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 4, 1))),
    "batch norm": Pattern(lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))),
    "1-d": Pattern(lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 1)), SIGNAL),
    "3-d": Pattern(lambda: nn.Sequential(nn.Conv3d(4, 8, 3), nn.ReLU(), nn.Conv3d(8, 4, 1)), VOLUME),
    "transposed": Pattern(lambda: nn.Sequential(nn.ConvTranspose2d(4, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 4, 1))),
    "padding beside": Pattern(
        lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 1))
    ),
    "linear": Pattern(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), (8,)),
    "linear without bias": Pattern(lambda: nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 4)), (8,)),
    "linear over tokens": Pattern(lambda: Tokens(torch.relu), TOKENS),
    "linear, relu6": Pattern(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU6(), nn.Linear(8, 4)), (8,)),
    "gelu over tokens": Pattern(lambda: Tokens(nn.GELU()), TOKENS),
    "words and positions": Pattern(Words, TOKENS),
    "relu": behind(nn.ReLU()),
    "relu6": behind(nn.ReLU6()),
    "hardtanh": behind(nn.Hardtanh(-0.5, 0.5)),
    "clip with a bound off the grid": behind(nn.Hardtanh(-0.5, 20.0)),
    "leaky relu": behind(nn.LeakyReLU(0.1)),
    "hard swish": behind(nn.Hardswish()),
    "hard sigmoid": behind(nn.Hardsigmoid()),
    "silu": behind(nn.SiLU()),
    "gelu": behind(nn.GELU()),
    "sigmoid": behind(nn.Sigmoid()),
    "tanh": behind(nn.Tanh()),
    "add": Pattern(lambda: Branches(torch.add)),
    "sub": Pattern(lambda: Branches(torch.sub)),
    "mul": Pattern(lambda: Branches(torch.mul)),
    "division by a number": Pattern(lambda: Between(lambda x: x / 3)),
    "residual sum": Pattern(Residual),
    "concat": Pattern(lambda: Branches(lambda a, b: torch.cat([a, b], 1), 8)),
    "squeeze-excite": Pattern(lambda: SqueezeExcite(nn.Sigmoid())),
    "squeeze-excite, hard": Pattern(lambda: SqueezeExcite(nn.Hardsigmoid())),
    "pad and pool": Pattern(lambda: Between(lambda x: functional.max_pool2d(functional.pad(x, (0, 1, 0, 1)), 3))),
    "max pool": Pattern(lambda: Between(nn.MaxPool2d(2))),
    "average pool": Pattern(lambda: Between(nn.AvgPool2d(2))),
    "global pool": Pattern(lambda: Between(nn.AdaptiveAvgPool2d(1))),
    "mean": Pattern(lambda: nn.Sequential(Between(torch.relu), Mean(), nn.Linear(4, 4))),
    "slice": Pattern(lambda: Between(lambda x: x[:, :, 1:, ::2])),
    "split": Pattern(lambda: Between(lambda x: x.chunk(2, 1)[1], 2)),
    "channel shuffle": Pattern(lambda: Between(nn.ChannelShuffle(2))),
    "resize nearest": Pattern(lambda: Between(lambda x: functional.interpolate(x, scale_factor=2, mode="nearest"))),
    "resize bilinear": Pattern(lambda: Between(lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"))),
    "transpose and reshape": Pattern(lambda: Between(lambda x: x.flatten(2).transpose(1, 2).reshape(-1, 4, 8, 8))),
    "layer norm": Pattern(lambda: Tokens(nn.LayerNorm(8)), TOKENS),
    "group norm": Pattern(lambda: Between(nn.GroupNorm(2, 4))),
    "mean of a signal": Pattern(lambda: Signal(lambda x: x.mean(-1)), SIGNAL),
    "global pool of a signal": Pattern(
        lambda: Signal(lambda x: functional.adaptive_avg_pool1d(x, 1).flatten(1)), SIGNAL
    ),
    "mean of tokens": Pattern(lambda: Tokens(lambda x: x.mean(1)), TOKENS),
    "attention": Pattern(Attention, TOKENS),
    "attention of heads": Pattern(Heads, TOKENS),
    "matmul": Pattern(lambda: Tokens(lambda x: x @ x.transpose(1, 2) @ x), TOKENS),
}


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))
