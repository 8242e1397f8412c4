"""A part that an earlier start went through is known again, and any change of it is noticed."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qatflow.recipe import Data
from qatflow.results.gate import Measurement
from qatflow.tasks import fingerprint
from qatflow.tasks.batches import batches
from qatflow.tasks.evaluation_data import FILE, EvaluationData, measurement_from_json, measurement_to_json
from qatflow.tasks.sample_files import file_stats, files_of

CONFIG = Data(name="digits", batch_size=16)
FP32 = Measurement(0.1 + 0.2, np.array([1 / 3, 0.0, 1e-300]), True, None, 3)


class Counted:
    """Samples that count how often they are read."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples, self.reads = samples, 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.samples[index]


def pairs(count: int = 200) -> list[tuple[Tensor, int]]:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return [(one, number % 7) for number, one in enumerate(x)]


def start(folder: Path, samples: Any, config: Data = CONFIG) -> tuple[EvaluationData, list[str]]:
    told: list[str] = []
    return EvaluationData(folder, {"test": samples}, config, told.append), told


def first_start(folder: Path, samples: Any) -> str:
    """Go through the samples, keep FP32's measurement, and return their hash."""
    data, told = start(folder, samples)
    assert data.known("test") is None and not told
    assert sum(batch.size for batch in data.recording("test", batches(samples, CONFIG))) == len(samples)
    data.keep_fp32("test", "a key", FP32)
    return data.hash("test")


def test_a_second_start_knows_the_data_and_what_fp32_measured(tmp_path: Path) -> None:
    known = first_start(tmp_path, pairs())
    data, told = start(tmp_path, pairs(), Data(name="digits", batch_size=64))
    assert data.known("test") == data.hash("test") == known
    again = data.fp32("test", "a key")
    assert again is not None
    assert (again.value, again.samples, again.higher_is_better) == (FP32.value, 3, True)
    assert again.per_sample.tobytes() == FP32.per_sample.tobytes()
    assert data.fp32("test", "another key") is None
    assert not told


def labels_changed(samples: list[Any]) -> None:
    """Change 89 of 200 labels, but none of the first, the middle and the last ones."""
    for index in range(105, 194):
        samples[index] = (samples[index][0], 6 - samples[index][1])


def one_label_changed(samples: list[Any]) -> None:
    samples[77] = (samples[77][0], 6 - samples[77][1] if samples[77][1] != 3 else 0)


def one_less(samples: list[Any]) -> None:
    samples.pop()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (labels_changed, r"sample \d+ is another one"),
        (one_label_changed, "sample 77 is another one"),
        (one_less, "199 samples, 200 before"),
    ],
)
def test_what_changed_is_told_and_all_is_read_anew(
    change: Callable[[list[Any]], None], said: str, tmp_path: Path
) -> None:
    known = first_start(tmp_path, pairs())
    samples = pairs()
    change(samples)
    data, told = start(tmp_path, samples)
    assert data.known("test") is None and data.fp32("test", "a key") is None
    (sentence,) = told
    assert re.search(said, sentence), sentence
    list(data.recording("test", batches(samples, CONFIG)))
    assert data.hash("test") != known
    assert data.fp32("test", "a key") is None
    assert start(tmp_path, pairs())[0].known("test") == known, "what is stored stays until FP32 is measured"


def test_where_reading_takes_long_64_samples_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_start(tmp_path, pairs(1000))
    for patience, fewest, most in ((0.0, 64, 100), (60.0, 1000, 1100)):
        monkeypatch.setattr(fingerprint, "PATIENCE", patience)
        counted = Counted(pairs(1000))
        assert start(tmp_path, counted)[0].known("test") is not None
        assert fewest <= counted.reads <= most


def test_samples_are_hashed_once_while_they_pass(tmp_path: Path) -> None:
    counted = Counted(pairs())
    data, _ = start(tmp_path, counted)
    data.known("test")
    counted.reads = 0
    for _ in range(2):
        list(data.recording("test", batches(counted, CONFIG)))
    assert counted.reads == 400
    with pytest.raises(KeyError):
        start(tmp_path, counted)[0].hash("test")


def test_a_pass_that_is_broken_off_records_nothing(tmp_path: Path) -> None:
    data, _ = start(tmp_path, pairs())
    next(iter(data.recording("test", batches(pairs(), CONFIG))))
    with pytest.raises(KeyError):
        data.hash("test")


@pytest.mark.parametrize("content", ["{", "[]", '{"parts": {"test": {"size": 200}}}', '{"parts": 1}'])
def test_a_damaged_file_is_told_of_and_replaced(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    data, told = start(tmp_path, pairs())
    assert data.known("test") is None
    assert len(told) == 1 and "cannot be read" in told[0]
    list(data.recording("test", batches(pairs(), CONFIG)))
    data.keep_fp32("test", "a key", FP32)
    assert start(tmp_path, pairs())[0].known("test") == data.hash("test")


class Random(Counted):
    """Samples that come out otherwise each time."""

    def __getitem__(self, index: int) -> Any:
        x, y = self.samples[index]
        return x + torch.randn(()), y


def test_a_random_part_is_told_of_and_known_by_its_form(tmp_path: Path) -> None:
    hashes = []
    for number in range(2):
        data, told = start(tmp_path, Random(pairs()))
        assert (data.known("test") is None) == (number == 0)
        list(data.recording("test", batches(Random(pairs()), CONFIG)))
        data.keep_fp32("test", "a key", FP32)
        hashes.append(data.hash("test"))
        assert len(told) == 1
        assert "come out otherwise each time" in told[0] and "cannot be compared" in told[0]
    assert hashes[0] == hashes[1]
    data, told = start(tmp_path, pairs())
    assert data.known("test") is None
    assert "another form" in told[0], "no more random"


def test_two_parts_are_kept_beside_each_other(tmp_path: Path) -> None:
    parts = {"validation": pairs(30), "test": pairs(40)}
    hashes = []
    for _ in range(2):
        data = EvaluationData(tmp_path, parts, CONFIG, lambda text: pytest.fail(text))
        for name, samples in parts.items():
            data.known(name)
            list(data.recording(name, batches(samples, CONFIG)))
            data.keep_fp32(name, "a key", FP32)
        hashes.append([data.hash(name) for name in parts])
    assert hashes[0] == hashes[1]
    assert hashes[0][0] != hashes[0][1]


class Folder:
    """Images by path, as torchvision's `ImageFolder` has them."""

    def __init__(self, root: Path, relative: bool = False) -> None:
        self.root = str(root)
        paths = sorted(root.glob("*.txt"))
        self.samples = [(path.name if relative else str(path), 0) for path in paths]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return torch.tensor([float((Path(self.root) / path).read_text())]), label


def folder_of_files(root: Path, count: int = 100) -> Path:
    root.mkdir()
    for number in range(count):
        (root / f"{number:03}.txt").write_text(f"{number:03}")
    return root


@pytest.mark.parametrize("relative", [False, True])
def test_a_file_that_was_touched_is_read_again(relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "PATIENCE", 0.0)
    monkeypatch.setattr(fingerprint, "FEWEST", 1)
    images = Folder(folder_of_files(tmp_path / "images"), relative)
    known = first_start(tmp_path, images)
    assert start(tmp_path, images)[0].known("test") == known
    (tmp_path / "images" / "050.txt").write_text("51")
    data, told = start(tmp_path, images)
    assert data.known("test") is None and "files have other sizes or times" in told[0]
    list(data.recording("test", batches(images, CONFIG)))
    assert data.hash("test") != known
    (tmp_path / "images" / "050.txt").write_text("050")
    os.utime(tmp_path / "images" / "050.txt", (1, 1))
    data, told = start(tmp_path, images)
    assert data.known("test") is None
    list(data.recording("test", batches(images, CONFIG)))
    assert data.hash("test") == known, "a file that was only touched is the same data"


def test_files_are_found_in_datasets_within_datasets(tmp_path: Path) -> None:
    root = folder_of_files(tmp_path / "images", 5)
    plain = Folder(root)
    both = torch.utils.data.ConcatDataset([torch.utils.data.Subset(plain, [1, 2]), Folder(root, relative=True)])
    assert sorted(files_of(both)) == sorted(root.glob("*.txt"))
    assert file_stats(both) == file_stats(both) != ""
    annotated = Counted(pairs())
    annotated.annotations = str(root / "001.txt")
    assert files_of(annotated) == [root / "001.txt"]
    texts = Counted(pairs())
    texts.sentences = ["a sentence that is no path, " * 50, "\0"]
    assert files_of(texts) == [] and file_stats(texts) == ""
    before = file_stats(plain)
    (root / "001.txt").unlink()
    assert file_stats(plain) != before


@pytest.mark.parametrize(
    "measurement",
    [
        FP32,
        Measurement(math.nan, None, False, np.array([0.1, math.nan, 1e9]), 12),
        Measurement(1.0, np.array([math.inf]), True),
    ],
)
def test_measurements_come_back_to_the_bit(measurement: Measurement) -> None:
    back = measurement_from_json(json.loads(json.dumps(measurement_to_json(measurement), allow_nan=False)))
    assert np.array_equal([back.value], [measurement.value], equal_nan=True)
    assert (back.samples, back.higher_is_better) == (measurement.samples, measurement.higher_is_better)
    for ours, theirs in ((back.per_sample, measurement.per_sample), (back.replicates, measurement.replicates)):
        if theirs is None:
            assert ours is None
        else:
            finite = np.where(np.isfinite(theirs), theirs, np.nan)
            assert np.array_equal(ours, finite, equal_nan=True)
