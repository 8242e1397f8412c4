"""Three small MobileNetV2s for 8x8 digits: easy to quantize, destroyed by per-tensor INT8, too thin for two bits.

Inverted residuals after Sandler et al., "MobileNetV2" (2018), at the size of the data. The second network has ReLU
instead of ReLU6, and after training its channels are stretched: an activation is multiplied by a factor per channel
and the next layer's weights are divided by it. ReLU commutes with positive factors, so that the function stays the
same, but ranges then differ by orders of magnitude between channels, as they do in MobileNets as trained (Nagel et
al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019). Factors are powers of two: not one
bit of a weight is lost. The third has ReLU as well and a quarter of the channels: at two bits it has too few
weights for their rounding errors to cancel, however they are rounded, until it is trained with them.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

STEM, HEAD, CLASSES = 24, 128, 10
BLOCKS = ((1, 16, 1), (4, 16, 1), (4, 24, 2), (4, 24, 1), (4, 40, 1), (4, 40, 1))
"""Expansion, output channels and stride of each inverted residual."""

OCTAVES = 5
"""Stretching factors are from `2**-OCTAVES` to `2**OCTAVES`: three decades."""

THIN = 0.25
"""Share of the channels that the third network has."""

Activation = type[nn.Module]


class ConvNorm(nn.Module):
    """A convolution without bias, a batch norm, and an activation or none; images `[n, channels, h, w]`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, activation: Activation | None, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.activation = nn.Identity() if activation is None else activation()

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations."""
        y: Tensor = self.activation(self.norm(self.conv(x)))
        return y


class InvertedResidual(nn.Module):
    """Expand (1x1), filter (3x3 depthwise), project (1x1, no activation); added to the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, activation: Activation) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden, 1, activation) if expansion > 1 else None
        self.depthwise = ConvNorm(hidden, hidden, 3, activation, stride, groups=hidden)
        self.project = ConvNorm(hidden, outputs, 1, None)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, outputs, h / stride, w / stride]`."""
        hidden = x if self.expand is None else self.expand(x)
        y: Tensor = self.project(self.depthwise(hidden))
        return x + y if self.residual else y


class DigitsMobileNet(nn.Module):
    """Images `[n, 1, 8, 8]` to logits `[n, 10]`.

    Args:
        activation: ReLU6 or ReLU; only with ReLU can channels be stretched.
        width: share of the channels to have, 0 to 1.
    """

    def __init__(self, activation: Activation = nn.ReLU6, width: float = 1.0) -> None:
        super().__init__()
        channels, features = int(width * STEM), int(width * HEAD)
        self.stem = ConvNorm(1, channels, 3, activation)
        blocks = []
        for expansion, outputs, stride in BLOCKS:
            blocks.append(InvertedResidual(channels, int(width * outputs), expansion, stride, activation))
            channels = int(width * outputs)
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(channels, features, 1, activation)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.classifier(self.pool(self.head(self.blocks(self.stem(x)))).flatten(1))
        return logits

    def chains(self) -> list[tuple[ConvNorm, nn.Conv2d | nn.Linear]]:
        """Return the layers whose activations one other layer alone reads, with that layer."""
        found: list[tuple[ConvNorm, nn.Conv2d | nn.Linear]] = []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, InvertedResidual)
            before = self.stem if index == 0 else None
            if block.expand is not None:
                before = block.expand
            if before is not None:
                found.append((before, block.depthwise.conv))
            found.append((block.depthwise, block.project.conv))
        return [*found, (self.head, self.classifier)]


def digits_mobilenet() -> DigitsMobileNet:
    """Return the network with ReLU6, not trained; `load_model` gives it its weights."""
    return DigitsMobileNet(nn.ReLU6)


def digits_mobilenet_skewed() -> DigitsMobileNet:
    """Return the network with ReLU, not trained; `load_model` gives it its weights, which are stretched."""
    return DigitsMobileNet(nn.ReLU)


def digits_mobilenet_thin() -> DigitsMobileNet:
    """Return the thin network with ReLU, not trained; `load_model` gives it its weights."""
    return DigitsMobileNet(nn.ReLU, THIN)


@torch.no_grad()
def skewed(model: DigitsMobileNet, octaves: int = OCTAVES, seed: int = 0) -> DigitsMobileNet:
    """Return a copy that computes the same, with ranges that differ widely between channels.

    Every channel of every activation that one layer alone reads is multiplied by `2**k`, with `k` a whole number drawn
    evenly from `-octaves` to `octaves`. Residual sums stay as they are.

    Args:
        model: a network with ReLU.
        octaves: the largest `k`.
        seed: of the draw.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for layer, reader in model.chains():
        channels = layer.conv.out_channels
        exponents = torch.randint(-octaves, octaves + 1, (channels,), generator=generator)
        factors = torch.ldexp(torch.ones(channels, dtype=torch.float64), exponents)
        layer.norm.weight.mul_(factors)
        layer.norm.bias.mul_(factors)
        depthwise = isinstance(reader, nn.Conv2d) and reader.groups == channels
        shape = [1] * reader.weight.dim()
        shape[0 if depthwise else 1] = channels
        reader.weight.div_(factors.view(shape))
    return model
