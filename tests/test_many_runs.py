"""Many short runs in one process, some of which train: handles, threads, processes and memory stay.

`QATFLOW_RUNS=200 pytest -m slow tests/test_many_runs.py` carries out more of them. They are a process of their own:
pytest keeps every record that is logged.
"""

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from qatflow import Recipe, run
from qatflow.results.memory import forget_peak, taken
from qatflow.results.result import RunResult
from tests.faulty_task import SIZES

ROOT = Path(__file__).parents[1]
RUNS, WARM = int(os.environ.get("QATFLOW_RUNS", "30")), 20
"""How many there are, and after how many all that is kept for good is there."""
TRAINS = 10
"""Every so many runs one trains."""
GROWTH = 16 * 2**20
"""Bytes that memory may have grown by since, by however many runs."""


class Held(NamedTuple):
    """What a process holds."""

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


def runs(folder: Path) -> None:
    """Carry them out, and print a line of JSON after each: what the process holds, and its memory in bytes."""
    for number in range(1, RUNS + 1):
        result = once(folder / str(number), trains=number % TRAINS == 0)
        assert (result.status, result.training_error) == ("finished", "")
        sys.stdout.write(f"{json.dumps([held(), memory()])}\n")
        sys.stdout.flush()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what a process holds is told by Linux")
def test_runs_in_one_process_leave_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.test_many_runs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == RUNS
    assert told[-1][0] == told[WARM - 1][0]
    assert told[-1][1] - told[WARM - 1][1] < GROWTH, [memory // 2**20 for _, memory in told]


if __name__ == "__main__":
    runs(Path(sys.argv[1]))
