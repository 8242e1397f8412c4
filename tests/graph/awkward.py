"""Models that cannot be captured, or hardly: one habit each."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Linear4(nn.Module):
    """What the others have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)


class DecidesByValues(Linear4):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.layer(x)
        return -x


class LoopsUntil(Linear4):
    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x / 2
        return self.layer(x)


class TakesANumber(Linear4):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * float(x.abs().max())


class UsesNumPy(Linear4):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.detach().numpy().mean()
        return self.layer(x) + torch.tensor(mean)


class ViewsTwoSamples(Linear4):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(2, 4))


class AddsAParameterPerSample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.per_sample = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.per_sample


class LoopsOverSamples(Linear4):
    def forward(self, x: Tensor) -> Tensor:
        for i in range(int(x.shape[0])):
            x = x + i
        return self.layer(x)


class IsRandom(Linear4):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + torch.rand_like(x)


class Counts(Linear4):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * self.calls


@dataclass
class Answer:
    scores: Tensor


class ReturnsADataclass(Linear4):
    def forward(self, x: Tensor) -> Answer:
        return Answer(self.layer(x))


class HasAScriptedPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = torch.jit.script(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


class WantsFiveColumns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class ChangesItsInput(Linear4):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return self.layer(x)


class TakesAnything(Linear4):
    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.layer(args[0])


class PicksRows(Linear4):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[x[:, 0] > 0])


class ReturnsText(Linear4):
    def forward(self, x: Tensor) -> dict[str, object]:
        return {"scores": self.layer(x), "kind": "scores", "count": 4, "nothing": None}


class FillsACache(Linear4):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "ramp" not in self.cache:
            self.cache["ramp"] = torch.arange(4.0)
        return self.layer(x) + self.cache["ramp"]


class TransformsComplexNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.fft.rfft(x).abs())
