"""A run that is killed over and over ends like an undisturbed one, and the benchmark that shows it sees differences."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.kill import WEIGHTS, Moment, Undisturbed, difference, done_twice, moments, row

LOG = "2026-01-01 00:00:00,000 INFO qatflow.results.journal: "


@pytest.mark.slow
def test_tiny_ends_alike_however_often_it_is_killed(tmp_path: Path) -> None:
    cells, alike = row("tiny", kills=3, most=3, home=tmp_path, chance=random.Random(0))
    assert alike, cells


def run(folder: Path, value: str = "0.5", seconds: str = "1.0", weight: float = 1.0) -> Path:
    (folder / "export").mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    (folder / "results.csv").write_text(f"candidate,value,seconds\nfp32,0.9,0.0\nnaive,{value},{seconds}\n")
    (folder / "trials.csv").write_text("number,seconds\n")
    save_file({"w": torch.tensor([weight, float("nan")])}, folder / WEIGHTS)
    return folder


def test_times_may_differ_and_nothing_else(tmp_path: Path) -> None:
    one = run(tmp_path / "one")
    assert difference(one, run(tmp_path / "later", seconds="2.0")) == ""
    found = difference(one, run(tmp_path / "value", value="0.50000000000000001"))
    assert found == "results.csv, row 2, value: 0.5 and 0.50000000000000001"
    assert difference(one, run(tmp_path / "weight", weight=1.0000001)) == f"{WEIGHTS}: w"
    other = run(tmp_path / "trials")
    (other / "trials.csv").write_text("number,seconds\n0,1.0\n")
    assert difference(one, other) == "trials.csv: more rows"


def test_every_run_of_a_sweep_is_compared(tmp_path: Path) -> None:
    for sweep, value in (("one", "0.5"), ("other", "0.6")):
        run(tmp_path / sweep / "0")
        run(tmp_path / sweep / "1", value=value)
    found = difference(tmp_path / "one", tmp_path / "other")
    assert found == f"{Path('1')}: results.csv, row 2, value: 0.5 and 0.6"


def test_a_rung_that_is_begun_after_it_was_finished_was_done_twice(tmp_path: Path) -> None:
    first = ["fp32: measure", "fp32 on validation: value 1.0", "naive: quantize", "naive on validation: value 0.5"]
    killed = ["equalize: where it helps"]
    again = ["fp32: measure", "fp32 on validation: value 1.0", "naive on validation: value 0.5", *killed]
    last = ["equalize on validation: value 0.9", "judge: equalize on the test part", "equalize on test: value 0.8"]
    (tmp_path / "log.txt").write_text("\n".join(LOG + line for line in (*first, *killed, *again, *last)))
    assert done_twice(tmp_path) == 0
    more = ["naive: quantize", "judge: equalize on the test part", "equalize: where it helps"]
    (tmp_path / "log.txt").write_text("\n".join(LOG + line for line in (*first, *killed, *again, *last, *more)))
    assert done_twice(tmp_path) == 3


def test_moments_are_drawn_over_the_whole_run_and_at_its_writes(tmp_path: Path) -> None:
    drawn = moments(Undisturbed(tmp_path, seconds=10.0, writes=7), random.Random(0))
    found = [next(drawn) for _ in range(500)]
    seconds = [one.seconds for one in found if one.seconds is not None]
    assert {one.writes for one in found if one.writes is not None} == set(range(1, 8))
    assert min(seconds) < 0.2
    assert max(seconds) > 9.8
    assert len(seconds) == sum(one.writes is None for one in found)
    assert all(one != Moment() for one in found)
