"""Crops of the photographs that scikit-learn, scikit-image and matplotlib ship, as ImageNet models want them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

SIZE = 224

CALIBRATION = (
    "sklearn/datasets/images/china.jpg",
    "skimage/data/coffee.png",
    "skimage/data/chelsea.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/ihc.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/coins.png",
    "skimage/data/brick.png",
    "skimage/data/gravel.png",
)
"""Photographs that calibration crops come from: package and path in it."""
TEST = (
    "sklearn/datasets/images/flower.jpg",
    "skimage/data/astronaut.png",
    "skimage/data/rocket.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    "skimage/data/retina.jpg",
    "skimage/data/camera.png",
    "skimage/data/moon.png",
    "skimage/data/grass.png",
)
"""Photographs that test crops come from."""


@cache
def _photographs() -> list[Tensor]:
    from sklearn.datasets import load_sample_images

    return [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]


@cache
def _photograph(path: str) -> Tensor:
    """Return one photograph, `[3, height, width]`, read from the folder of the installed package that ships it."""
    import numpy as np
    from PIL import Image

    package = path.partition("/")[0]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        message = f"{path} comes with {package}, which is not installed: pip install scikit-image matplotlib"
        raise ModuleNotFoundError(message)
    with Image.open(Path(spec.origin).parent.parent / path) as image:
        return torch.tensor(np.asarray(image.convert("RGB"))).permute(2, 0, 1)


def _crops(photographs: Sequence[Tensor], count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    made = []
    for _ in range(count):
        photograph = photographs[below(len(photographs))]
        height, width = photograph.shape[1:]
        side = 160 + below(min(height, width) - 160)
        top, left = below(height - side + 1), below(width - side + 1)
        crop = photograph[:, top : top + side, left : left + side].float()[None]
        crop = interpolate(crop, (SIZE, SIZE), mode="bilinear", antialias=True)
        made.append(crop.flip(3) if below(2) else crop)
    return (torch.cat(made) - 127) / 128


def crops(count: int, seed: int) -> Tensor:
    """Return random square crops, some of them mirrored; shape `[count, 3, 224, 224]`, values from -1 to 1.

    They come from the two photographs of scikit-learn.
    """
    return _crops(_photographs(), count, seed)


def split_crops(calibration: int, test: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return crops to calibrate with and crops to test on, which come from different photographs.

    Args:
        calibration: how many crops of `CALIBRATION`.
        test: how many crops of `TEST`.
        seed: of both.
    """
    return (
        _crops([_photograph(path) for path in CALIBRATION], calibration, seed),
        _crops([_photograph(path) for path in TEST], test, seed),
    )
