"""A classifier whose test part needs what four bits lose, and whose validation part does not."""

import torch
from torch import Tensor, nn

SMALL = 0.04
"""A weight below half a step of a grid that has to reach 1."""


def classifier() -> nn.Module:
    """Return a linear layer: the second class where `x0 + SMALL * x1` is positive."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, SMALL]]))
    return model.eval()


def easy(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return samples that the first weight alone decides."""
    generator = torch.Generator().manual_seed(seed)
    signs = (torch.rand(count, 2, generator=generator) < 0.5).float() * 2 - 1
    x = signs * (0.5 + torch.rand(count, 2, generator=generator) / 2)
    return list(zip(x, (x[:, 0] > 0).long(), strict=True))


def hard(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return samples of which every second one needs the small weight as well."""
    samples = easy(count, seed)
    for index in range(0, count, 2):
        sign = 1.0 if index % 4 else -1.0
        samples[index] = torch.tensor([-0.02 * sign, sign]), torch.tensor(int(sign > 0))
    return samples


def parts(validation: bool = True, count: int = 200) -> dict[str, object]:
    """Return the data; without a validation part if that is not wanted."""
    found: dict[str, object] = {"calibration": easy(64, 0), "test": hard(count, 1)}
    return {**found, "validation": easy(100, 2)} if validation else found


def trainable(count: int = 200) -> dict[str, object]:
    """Return data to train with."""
    return {**parts(count=count), "train": hard(64, 3)}


def raising_loss() -> nn.Module:
    """Return a loss that works once and then fails, as a user's may on some sample."""

    class Loss(nn.Module):
        calls = 0

        def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("boxes without an area")
            return nn.functional.cross_entropy(outputs, target)

    return Loss()


class Unreadable:
    """Training samples on a disk that is gone."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> object:
        raise OSError("the disk is gone")


def unreadable() -> dict[str, object]:
    """Return data whose training part cannot be read."""
    return {**parts(), "train": Unreadable()}
