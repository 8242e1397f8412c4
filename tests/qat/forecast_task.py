"""A network that two bits break and a few steps of training mend: many hidden units, few of which are needed."""

import torch
from torch import Tensor, nn

INPUTS, CLASSES = 8, 4


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points `[count, INPUTS]` and their classes: which of four sums is the largest."""
    x = torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(seed))
    return x, x.view(count, CLASSES, -1).sum(2).argmax(1)


def model() -> nn.Module:
    """Return a network that has learned them."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(INPUTS, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, CLASSES))
    x, y = points(2048, 0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval()


def part(count: int, seed: int) -> list[tuple[Tensor, int]]:
    return [(x, int(y)) for x, y in zip(*points(count, seed), strict=True)]


def data() -> dict[str, list[tuple[Tensor, int]]]:
    return {"train": part(1024, 1), "validation": part(256, 2), "calibration": part(64, 3), "test": part(256, 4)}


class Unreadable:
    """Samples on a disk that is gone."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise OSError("the disk is gone")


def unreadable() -> dict[str, object]:
    return {**data(), "train": Unreadable()}


def untrainable() -> dict[str, object]:
    return {name: samples for name, samples in data().items() if name != "train"}
