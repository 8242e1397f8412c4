"""Handwritten digits: real data that comes with scikit-learn, so that a first run needs no download.

1797 images of 8x8 pixels with 17 grey levels, by 13 writers (Alpaydin and Kaynak, "Optical Recognition of Handwritten
Digits", UCI 1998). The parts are cut by a fixed rule, class by class, and not by a library's random numbers: figures
measured today and in ten years are about the same samples. Test is large because the gate is a matter of statistics:
with 500 samples one point is five digits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from qatflow.errors import DataError
from qatflow.tasks.splits import Splits

CLASSES = 10
LEVELS = 16
"""Brightest pixel."""
MEAN, STD = 0.305, 0.376
"""Of the pixels of all parts, after division by `LEVELS`."""

CYCLE = "rtrvrtrcrtrr" + "rtrvrtrcrtrr" + "rtrvrtrcrtrt"
"""Part of the first, second, ... image of a class, and then over again."""
LETTERS = {"train": "r", "validation": "v", "calibration": "c", "test": "t"}


def digits() -> Splits:
    """Return the digits as four disjoint parts with the same share of each class.

    A sample is an image, float32 `[1, 8, 8]`, mean 0 and standard deviation 1 over the data, and its label, int64 `[]`.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        message = (
            "the data 'digits' comes with scikit-learn, which is not installed; run pip install \"qatflow[quickstart]\""
        )
        raise DataError(message) from error
    pixels, labels = load_digits(return_X_y=True)
    images, targets = images_from(pixels), torch.from_numpy(labels.astype(np.int64))
    chosen = {part: torch.from_numpy(indices) for part, indices in split_indices(labels).items()}
    return Splits(**{part: TensorDataset(images[index], targets[index]) for part, index in chosen.items()})


def images_from(pixels: NDArray[np.floating]) -> Tensor:
    """Return images as the models take them, float32 `[count, 1, 8, 8]`, from grey levels `[count, 64]`, 0 to 16."""
    scaled = (pixels.reshape(-1, 1, 8, 8) / LEVELS - MEAN) / STD
    return torch.from_numpy(scaled.astype(np.float32))


def split_indices(labels: NDArray[np.integer]) -> dict[str, NDArray[np.int64]]:
    """Return the indices of every part, in rising order, from all labels `[count]`."""
    letters = np.empty(len(labels), dtype="<U1")
    for label in range(CLASSES):
        of_class = np.flatnonzero(labels == label)
        letters[of_class] = [CYCLE[rank % len(CYCLE)] for rank in range(len(of_class))]
    return {part: np.flatnonzero(letters == letter).astype(np.int64) for part, letter in LETTERS.items()}
