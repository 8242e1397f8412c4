"""A user's package in which one thing is wrong: which, `what` says."""

import os
import random
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SIZES = {"calibration": 32, "validation": 32, "test": 40, "train": 40}


class Net(nn.Module):
    """Reads images, and a second input `extra`."""

    def __init__(self, what: str, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.what = what
        self.conv, self.head, self.extra = nn.Conv2d(1, width, 3), nn.Linear(width, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        features = torch.relu(self.conv(x)).mean((2, 3))
        if self.what == "huge":
            features = features.repeat(1, 2**55)[:, : features.shape[1]]
        return self.head(features) + self.extra(extra)


class Wide(Net):
    """Makes 8 MiB of an image."""

    def __init__(self, what: str, width: int) -> None:
        super().__init__(what, width)
        self.up = nn.Upsample(scale_factor=16)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        return super().forward(self.up(x), extra)


def model(what: str = "", width: int = 4) -> nn.Module:
    if what == "raise":
        raise FileNotFoundError("checkpoints/best.pt")
    return (Wide if what == "wide" else Net)(what, width).eval()


class Samples:
    """Pairs of an image and four numbers, labelled by FP32 itself."""

    def __init__(self, part: str, what: str) -> None:
        self.what = what
        size = 0 if what == "empty" else SIZES[part]
        generator = torch.Generator().manual_seed(list(SIZES).index("test" if what == "shared" else part))
        self.x = torch.randn(64, 1, 8, 8, generator=generator)[:size]
        self.extra = torch.randn(64, 4, generator=generator)[:size]
        with torch.no_grad():
            self.y = model()(self.x, self.extra).argmax(1)

    def __len__(self) -> int:
        return {"long": 50, "negative": -1}.get(self.what, len(self.x))

    def __getitem__(self, index: int) -> Any:
        if index >= len(self.x):
            raise IndexError("no such sample")
        x, extra = self.x[index], self.extra[index]
        if index == 20 and self.what in AT_20:
            x = AT_20[self.what](x)
        if self.what == "random":
            x = x * random.uniform(0.9, 1.1)
        return (x, torch.zeros(4) if self.what == "zero" else extra), self.y[index]


def raises(x: Tensor) -> Tensor:
    raise ValueError("sample 20 is corrupt")


def takes_too_much(x: Tensor) -> Tensor:
    return torch.empty(2**60) + x


def dies(x: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return x


AT_20: dict[str, Callable[[Tensor], Tensor]] = {
    "raise": raises,
    "memory": takes_too_much,
    "die": dies,
    "shape": lambda x: x[:, :4],
    "far": lambda x: x.sign() * 3e38,
    "no_number": lambda x: x * float("nan"),
    "infinite": lambda x: x * float("inf"),
}


def data(**what: str) -> dict[str, Any]:
    return {part: Samples(part, what.get(part, "")) for part in SIZES}


def metric() -> Any:
    def score(outputs: Tensor, target: Tensor, fp32: Tensor) -> Tensor:
        raise ZeroDivisionError("no score")

    return score


def loss() -> Any:
    def of(outputs: Tensor, target: Tensor) -> Tensor:
        raise TypeError("this loss wants weights")

    return of
