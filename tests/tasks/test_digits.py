"""The parts of the digits: disjoint, the same for ever, and alike in their classes."""

import hashlib
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from qatflow.errors import DataError
from qatflow.tasks.digits import LEVELS, MEAN, STD, digits, split_indices

PINNED = {  # count, and hash of the indices as little-endian int64
    "train": (1001, "556f331351eaffc4"),
    "validation": (150, "c1ce6a91c8d82bb6"),
    "calibration": (149, "e592dea429d0e57d"),
    "test": (497, "34dd821c63bad618"),
}


def hash_of(data):
    return hashlib.sha256(data).hexdigest()[:16]


@pytest.fixture(scope="module")
def labels():
    return load_digits(return_X_y=True)[1]


def test_parts_are_fixed(labels):
    found = {part: (len(i), hash_of(i.astype("<i8").tobytes())) for part, i in split_indices(labels).items()}
    assert found == PINNED


def test_images_are_the_ones_that_the_parts_were_cut_from(labels):
    pixels = load_digits(return_X_y=True)[0]
    assert hash_of(pixels.astype(np.uint8).tobytes() + labels.astype(np.uint8).tobytes()) == "87ff0c9e40dc7e2c"


def test_parts_are_disjoint_and_leave_nothing_out(labels):
    together = np.concatenate(list(split_indices(labels).values()))
    assert sorted(together) == list(range(len(labels)))


@pytest.mark.parametrize("part", PINNED)
def test_parts_have_the_same_share_of_each_class(labels, part):
    shares = np.bincount(labels[split_indices(labels)[part]], minlength=10) / np.bincount(labels)
    assert np.ptp(shares) < 0.02


def test_a_sample_is_an_image_and_its_label(labels):
    pixels = load_digits(return_X_y=True)[0]
    image, label = digits().test[0]
    index = split_indices(labels)["test"][0]
    assert (image.shape, image.dtype, label.shape, label.dtype) == ((1, 8, 8), torch.float32, (), torch.int64)
    assert label == labels[index]
    torch.testing.assert_close(
        (image.double() * STD + MEAN).flatten() * LEVELS, torch.tensor(pixels[index]), rtol=0, atol=1e-5
    )


def test_images_have_mean_zero_and_deviation_one():
    splits = digits()
    pixels = torch.cat([part.tensors[0] for part in (splits.train, splits.validation, splits.calibration, splits.test)])
    assert abs(float(pixels.mean())) < 0.01
    assert abs(float(pixels.std()) - 1) < 0.01


def test_missing_scikit_learn_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match=r'scikit-learn.*pip install "qatflow\[quickstart\]"'):
        digits()
