"""Crops of the two photographs that scikit-learn ships, as ImageNet models want them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

SIZE = 224


@cache
def _photographs() -> list[Tensor]:
    from sklearn.datasets import load_sample_images

    return [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]


def crops(count: int, seed: int) -> Tensor:
    """Return random square crops, some of them mirrored; shape `[count, 3, 224, 224]`, values from -1 to 1."""
    generator = torch.Generator().manual_seed(seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    made = []
    for _ in range(count):
        photograph = _photographs()[below(2)]
        height, width = photograph.shape[1:]
        side = 160 + below(min(height, width) - 160)
        top, left = below(height - side + 1), below(width - side + 1)
        crop = photograph[:, top : top + side, left : left + side].float()[None]
        crop = interpolate(crop, (SIZE, SIZE), mode="bilinear", antialias=True)
        made.append(crop.flip(3) if below(2) else crop)
    return (torch.cat(made) - 127) / 128
