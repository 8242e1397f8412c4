"""A model and data for whole searches: a few hundred points in two classes, learned by nobody."""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn


def model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def part(count: int, seed: int) -> list[tuple[Tensor, int]]:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        labels = model()(x).argmax(1)
    return [(one, int(label)) for one, label in zip(x, labels, strict=True)]


def data() -> dict[str, list[tuple[Tensor, int]]]:
    return {"train": part(96, 1), "validation": part(128, 2), "calibration": part(64, 3), "test": part(128, 4)}


def data_that_spoils_training() -> dict[str, list[tuple[Tensor, int]]]:
    spoiled = [(x * float("nan"), label) for x, label in part(64, 1)]
    return {**data(), "train": spoiled}


def loss() -> object:
    """Return a metric with a score per sample, lower is better."""

    def cross_entropy(outputs: Tensor, target: Tensor, fp32_outputs: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, target, reduction="none")

    return cross_entropy


class Slow:
    """Samples that take their time, so that a run can be caught in the middle of an epoch."""

    def __init__(self, samples: list[tuple[Tensor, int]], seconds: float) -> None:
        self.samples = samples
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(self.seconds)
        return self.samples[index]


def slow_data(seconds: float = 0.01) -> dict[str, object]:
    return {**data(), "train": Slow(part(96, 1), seconds)}


class Breakable:
    """Samples that cannot be read while a file is there."""

    def __init__(self, samples: list[tuple[Tensor, int]], switch: str) -> None:
        self.samples = samples
        self.switch = Path(switch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.switch.exists():
            raise OSError("the disk is gone")
        return self.samples[index]


def breakable_data(switch: str) -> dict[str, object]:
    return {**data(), "train": Breakable(part(96, 1), switch)}


def breakable_loss(switch: str, where: str = "") -> object:
    """Return cross entropy that fails while a file is there, which says how often, in programs of this name."""

    def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
        path = Path(switch)
        if path.exists() and where in sys.argv[0]:
            left = int(path.read_text())
            path.write_text(str(left - 1))
            if left == 1:
                path.unlink()
            raise ValueError("no such class\nin this batch")
        return nn.functional.cross_entropy(outputs, target)

    return cross_entropy


def optimizer(groups: list[dict[str, object]], alpha: float) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, alpha=alpha)


def no_optimizer(groups: list[dict[str, object]]) -> list[dict[str, object]]:
    return groups


def model_with_stale_statistics() -> nn.Module:
    """Return a model whose batch norm follows a ReLU, and was given another mean than the data has."""
    torch.manual_seed(7)
    norm = nn.BatchNorm1d(12)
    norm.running_mean.fill_(0.8)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), norm, nn.ReLU(), nn.Linear(12, 3)).eval()


def labelled_by_mean() -> dict[str, list[tuple[Tensor, int]]]:
    """Return data whose classes a fresh statistic tells better."""
    torch.manual_seed(7)
    sharp = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        for _ in range(50):
            sharp(torch.randn(256, 6))
        sharp.eval()
        return {name: [(x, int(sharp(x[None]).argmax())) for x, _ in samples] for name, samples in data().items()}


def data_without_validation() -> dict[str, list[tuple[Tensor, int]]]:
    return {name: samples for name, samples in data().items() if name != "validation"}


def data_too_small_to_split() -> dict[str, list[tuple[Tensor, int]]]:
    return {**data_without_validation(), "train": part(19, 1)}
