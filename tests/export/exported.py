"""Small networks, quantized and exported once for several tests."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor, nn

from qatflow.export.onnx_export import Exported, export_onnx
from qatflow.quant.design import Design
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Calibration, Export, Precision

MINMAX = Calibration(activations="minmax", weights="minmax")


class Net(nn.Module):
    """A padded strided convolution, a depthwise one, a residual sum, pooling, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 16, 1, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.stem(nn.functional.pad(image, (0, 1, 0, 1))))
        x = x + self.project(nn.functional.relu6(self.depthwise(x)))
        features = x.mean((2, 3))
        return {"logits": self.head(features), "features": features}


class Attention(nn.Module):
    """Products of three dimensions and of two activations, with a mask as a keyword input."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, tokens: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.mix(tokens).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1)
        mixed = self.out(weights @ v)
        return mixed, mixed.mean(1) * scale


def inputs_of(model: type[nn.Module], count: int, seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    if model is Net:
        return (torch.randn(count, 3, 15, 15, generator=generator),), {}
    tokens = torch.randn(count, 6, 8, generator=generator)
    return (tokens,), {"scale": torch.rand(count, 1, generator=generator)}


def simulated(model: type[nn.Module], target: str, precision: Precision) -> Simulation:
    torch.manual_seed(0)
    design = Design(TARGETS[target], precision, MINMAX)
    simulation = Simulation(captured_network(model().eval(), *inputs_of(model, 2), design))
    simulation.calibrate([inputs_of(model, 16)])
    return simulation


@cache
def exported(
    model: type[nn.Module],
    target: str = "onnxruntime",
    weights: int = 8,
    activations: int = 8,
    config: Export | None = None,
    per_channel: bool = True,
) -> Exported:
    precision = Precision(weights=weights, activations=activations, per_channel=per_channel)
    path = Path(mkdtemp()) / "model.onnx"
    return export_onnx(simulated(model, target, precision), inputs_of(model, 2), path, config)
