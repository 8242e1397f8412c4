"""Hashes of samples: the same however they are read, and another where anything of a sample is another."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import TensorDataset

from qatflow.recipe import Data
from qatflow.tasks.batches import batches
from qatflow.tasks.fingerprint import (
    DIGITS,
    batch_digests,
    calibration_fingerprint,
    digests_of,
    form_of,
    is_random,
    spread,
)

CONFIG = Data(name="digits", batch_size=7)


def pairs(count: int, seed: int = 0) -> list[tuple[Tensor, int]]:
    x = torch.randn(count, 3, 2, generator=torch.Generator().manual_seed(seed))
    return [(one, number % 5) for number, one in enumerate(x)]


def named(count: int) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Keyword inputs, and a target of tensors, numbers and texts."""
    return [
        ({"ids": x.flatten().long(), "mask": x.flatten() > 0}, {"boxes": x, "score": 0.5 * y, "name": f"image {y}"})
        for x, y in pairs(count)
    ]


def recorded(samples: Any, config: Data = CONFIG) -> list[str]:
    return [one for batch in batches(samples, config) for one in batch_digests(batch)]


@pytest.mark.parametrize("make", [pairs, named, lambda n: TensorDataset(torch.randn(n, 3), torch.arange(n))])
def test_a_sample_has_the_same_hash_alone_and_in_a_batch_of_any_size(make: Callable[[int], Any]) -> None:
    samples = make(19)
    every = recorded(samples)
    assert len(set(every)) == 19 and {len(one) for one in every} == {DIGITS}
    assert every == recorded(samples, Data(name="digits", batch_size=64)) == digests_of(samples, range(19), CONFIG)
    assert digests_of(samples, [11, 3], CONFIG) == [every[11], every[3]]
    assert [digests_of(samples, [i], CONFIG)[0] for i in range(19)] == every


def one_label(samples: list[Any]) -> None:
    samples[4] = (samples[4][0], 1 - samples[4][1])


def one_value(samples: list[Any]) -> None:
    samples[4][0][1, 1] += 1e-6


def one_type(samples: list[Any]) -> None:
    samples[:] = [(x.double(), y) for x, y in samples]


def swapped(samples: list[Any]) -> None:
    samples[4], samples[5] = samples[5], samples[4]


@pytest.mark.parametrize(("change", "differing"), [(one_label, {4}), (one_value, {4}), (swapped, {4, 5})])
def test_the_samples_that_changed_have_other_hashes(change: Callable[[list[Any]], None], differing: set[int]) -> None:
    samples = pairs(12)
    before = recorded(samples)
    change(samples)
    assert {i for i, (a, b) in enumerate(zip(before, recorded(samples), strict=True)) if a != b} == differing


def test_labels_may_be_left_out() -> None:
    samples, others = pairs(6), [(x, 9) for x, _ in pairs(6)]
    assert digests_of(samples, range(6), CONFIG) != digests_of(others, range(6), CONFIG)
    assert digests_of(samples, range(6), CONFIG, labels=False) == digests_of(others, range(6), CONFIG, labels=False)


@given(st.integers(1, 3000), st.integers(1, 64))
def test_every_beginning_of_the_order_is_spread(size: int, few: int) -> None:
    order = spread(size)
    assert sorted(order) == list(range(size))
    first = sorted(order[: min(few, size)])
    gaps = [b - a for a, b in zip([-1, *first], [*first, size], strict=True)]
    assert max(gaps) <= 3 * size / len(first) + 1


class Augmented:
    """Samples that are drawn anew whenever they are read."""

    def __init__(self, count: int, draw: Callable[[], float]) -> None:
        self.samples, self.draw = pairs(count), draw

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = self.samples[index]
        return x * self.draw(), y


DRAWS = {
    "python": random.random,
    "numpy": lambda: float(np.random.rand()),
    "torch": lambda: float(torch.rand(())),
    "a coin": lambda: random.choice([-1.0, 1.0]),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_parts_are_found_out_and_keep_their_form(name: str) -> None:
    random.seed(3)
    augmented = Augmented(40, DRAWS[name])
    assert is_random(augmented, CONFIG) and not is_random(pairs(40), CONFIG)
    assert form_of(augmented, CONFIG) == form_of(pairs(40), CONFIG)


@pytest.mark.parametrize(
    "other",
    [
        pairs(41),
        [(x.double(), y) for x, y in pairs(40)],
        [(x[:2], y) for x, y in pairs(40)],
        [(x, float(y)) for x, y in pairs(40)],
        [((x, x), y) for x, y in pairs(40)],
    ],
)
def test_another_form_is_told_apart(other: Any) -> None:
    assert form_of(other, CONFIG) != form_of(pairs(40), CONFIG)


def test_every_calibration_sample_that_is_used_counts_and_no_other() -> None:
    """29 of 64 changed images were not noticed where three were looked at."""
    samples = pairs(100)
    known = calibration_fingerprint(samples, {10, 32}, CONFIG)
    used = {i * 100 // n for n in (10, 32) for i in range(n)}
    for index in range(100):
        changed = list(samples)
        changed[index] = (samples[index][0] + 1e-3, samples[index][1])
        assert (calibration_fingerprint(changed, {10, 32}, CONFIG) != known) == (index in used), index
    relabelled = [(x, 0) for x, _ in samples]
    assert calibration_fingerprint(relabelled, {32, 10}, CONFIG) == known, "calibration takes no labels"
    assert calibration_fingerprint(samples, {10, 33}, CONFIG) != known
    assert calibration_fingerprint(samples, {None}, CONFIG) == calibration_fingerprint(samples, {1000}, CONFIG)
