"""Outputs that are kept for a sweep: whole, bounded, and compared as by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from qatflow.results import outputs
from qatflow.results.outputs import FILE, agreement, keep_outputs, kept_outputs


def scores(count: int, classes: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, classes)).astype(np.float32)


def test_batches_are_kept_in_their_order(tmp_path: Path) -> None:
    assert keep_outputs(tmp_path, [scores(4), scores(2, seed=1)]) == FILE
    kept = kept_outputs(tmp_path)
    assert kept is not None
    assert np.array_equal(kept, np.concatenate([scores(4), scores(2, seed=1)]))


def test_no_more_than_fits_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MOST_BYTES", 5 * 3 * 4 + 1)
    keep_outputs(tmp_path, [scores(4), scores(4, seed=1)])
    kept = kept_outputs(tmp_path)
    assert kept is not None
    assert len(kept) == 5
    assert keep_outputs(tmp_path / "large", [scores(2, classes=100)]) == ""


@pytest.mark.parametrize("batches", [[], [scores(2), scores(2, classes=4)], [np.float32(1)]])
def test_what_is_no_batch_of_equal_samples_is_not_kept(batches: list[np.ndarray], tmp_path: Path) -> None:
    assert keep_outputs(tmp_path, batches) == ""
    assert kept_outputs(tmp_path) is None


def test_a_damaged_file_is_none(tmp_path: Path) -> None:
    keep_outputs(tmp_path, [scores(2)])
    (tmp_path / FILE).write_bytes(b"\x10\0\0\0\0\0\0\0no header at all")
    assert kept_outputs(tmp_path) is None


def test_two_files_agree_as_counted_by_hand() -> None:
    one = np.array([[1, 0], [0, 2], [3, 0]], np.float32)
    other = np.array([[1, 0], [2, 0]], np.float32)
    same, ratio = agreement(one, other)
    assert same == 0.5
    assert ratio == pytest.approx(10 * math.log10(5 / 8))
    assert agreement(one, one) == (1.0, math.inf)
    assert agreement(one, other[:, :1]) == (None, None)
    assert agreement(one[:, :1], other[:, :1])[0] is None
    assert agreement(one, other * np.nan) == (0.5, None)
