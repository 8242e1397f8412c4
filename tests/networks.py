"""Small networks that the tests share, with batch-norm statistics that do something."""

import torch
from torch import nn


def give_statistics(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every batch norm with statistics and weights that are not the identity."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(uniform(module.running_mean, -1, 1))
            module.running_var.copy_(uniform(module.running_var, 0.5, 2))
            if module.affine:
                module.weight.data.copy_(uniform(module.weight, 0.5, 1.5))
                module.bias.data.copy_(uniform(module.bias, -0.5, 0.5))
    return model.eval()


class InvertedResiduals(nn.Module):
    """Stem, two inverted residual blocks (one with a residual sum), head: MobileNetV2 in small."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU6) -> None:
        super().__init__()

        def unit(i: int, o: int, kernel: int, groups: int = 1, act: bool = True) -> list[nn.Module]:
            conv = nn.Conv2d(i, o, kernel, padding=kernel // 2, groups=groups, bias=False)
            return [conv, nn.BatchNorm2d(o)] + ([activation()] if act else [])

        self.stem = nn.Sequential(*unit(3, 8, 3))
        self.block1 = nn.Sequential(*unit(8, 16, 1), *unit(16, 16, 3, groups=16), *unit(16, 8, 1, act=False))
        self.block2 = nn.Sequential(*unit(8, 16, 1), *unit(16, 16, 3, groups=16), *unit(16, 12, 1, act=False))
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.block1(x)
        x = self.block2(x)
        return self.head(x.mean((2, 3)))


def inverted_residuals(activation: type[nn.Module] = nn.ReLU6, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return give_statistics(InvertedResiduals(activation), seed)


class TwoInputs(nn.Module):
    """A positional and a keyword input, and a dict of outputs with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv1d(2, 4, 3, padding=1)
        self.right = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, *, y: torch.Tensor) -> dict[str, object]:
        pooled = torch.relu(self.left(x)).mean(-1)
        total = pooled + self.right(y)
        return {"sum": total, "parts": (pooled, total.softmax(-1))}


class Classifier(nn.Module):
    """Two convolutions and two linear layers, in parts of those names."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).amax((2, 3)))
