"""A user's package, in which something fails or stops the run where `what` says so."""

import signal
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

DATA, MODEL = "tests.users_task:data", "tests.users_task:model"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def model() -> nn.Module:
    return Net().eval()


class Samples:
    """Images, labelled by FP32 itself."""

    def __init__(self, part: str, size: int, what: str) -> None:
        self.what = what.partition(":")[2] if what.startswith(f"{part}:") else ""
        self.x = torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(len(part)))
        with torch.no_grad():
            self.y = model()(self.x).argmax(1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.what == "raise" and index == 20:
            raise ValueError("sample 20 is corrupt")
        if self.what == "exit" and index == 20:
            raise SystemExit("enough")
        if self.what == "hang" and index == 20:
            sys.stderr.write("hangs\n")
            time.sleep(600)
        if self.what.startswith("SIG") and index == 20:
            signal.raise_signal(signal.Signals[self.what])
        return self.x[index, :, :4] if self.what == "shape" and index == 20 else self.x[index], self.y[index]


def data(what: str = "") -> dict[str, Any]:
    sizes = {"calibration": 32, "test": 40, "train": 40, "validation": 32}
    return {part: Samples(part, size, what) for part, size in sizes.items()}


def metric() -> Any:
    def score(outputs: Tensor, target: Tensor, fp32: Tensor) -> Tensor:
        raise ZeroDivisionError("no score")

    return score


class Whole:
    """A metric over all samples that cannot be computed."""

    higher_is_better = True

    def update(self, outputs: Tensor, target: Tensor) -> None:
        """Take a batch."""

    def compute(self) -> float:
        raise RuntimeError("nothing to compute")


def loss() -> Any:
    def of(outputs: Tensor, target: Tensor) -> Tensor:
        raise TypeError("this loss wants weights")

    return of
