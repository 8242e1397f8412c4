"""Many short runs in one process, some of which train: handles, threads, processes and memory stay.

`QATFLOW_RUNS=200 pytest -m slow tests/test_many_runs.py` carries out more of them.
"""

import gc
import multiprocessing
import os
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from qatflow import Recipe, run
from qatflow.results.memory import forget_peak, taken
from qatflow.results.result import RunResult
from tests.faulty_task import SIZES

RUNS, WARM = int(os.environ.get("QATFLOW_RUNS", "40")), 25
"""How many there are, and after how many all that is kept for good is there."""
TRAINS = 20
"""Every so many runs one trains."""
GROWTH = 16 * 2**20
"""Bytes that memory may have grown by since, by however many runs."""


class Held(NamedTuple):
    """What this process holds."""

    files: int
    threads: int
    native_threads: int
    children: int


def held() -> Held:
    files, tasks = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))  # noqa: PTH208
    return Held(files, threading.active_count(), tasks, len(multiprocessing.active_children()))


def memory() -> int:
    gc.collect()
    forget_peak()
    return taken() or 0


def once(folder: Path, trains: bool) -> RunResult:
    recipe = Recipe.model_validate(
        {
            "model": {"factory": "tests.faulty_task:model"},
            "data": {"factory": "tests.faulty_task:data", "batch_size": SIZES["test"]},
            "steps": {"equalize": {}},
            "gate": {"max_drop": 0.5},
            "qat": {"when": "always" if trains else "never"},
            "search": {"max_trials": 1, "epochs": [1, 1], "decay_period": [1, 1], "lr": [1e-6, 1e-5]},
        }
    )
    return run(recipe, folder, trust=("tests",))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what a process holds is told by Linux")
def test_runs_in_one_process_leave_nothing_behind(tmp_path: Path) -> None:
    before, start = None, 0
    for number in range(1, RUNS + 1):
        result = once(tmp_path / str(number), trains=number % TRAINS == 0)
        assert (result.status, result.training_error) == ("finished", "")
        if number in (WARM, RUNS) or number % TRAINS == 0:
            print(number, held(), memory() // 2**20, "MiB", flush=True)  # noqa: T201 - shown where it fails
        if number == WARM:
            before, start = held(), memory()
    assert held() == before
    assert memory() - start < GROWTH
