"""Start the processes that train trials: on this machine, or on a Ray cluster.

Every worker is the same command, `python -m qatflow.worker RUN_FOLDER`, under `torchrun` where a trial trains on
several devices; an engine only decides where it runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from qatflow.recipe import Search

WITH_PARENT = "--with-parent"
"""Lets a worker end when its standard input does."""
PATIENCE = 3.0
"""Seconds that a worker has to end by itself."""


class Started(Protocol):
    """A worker that was started."""

    def poll(self) -> int | None:
        """Return its exit code, below zero where it was killed; None while it runs."""

    def terminate(self) -> None:
        """Ask it to end; what it finished stays, and its trial can be gone on with."""

    def close(self) -> None:
        """Let it be gone."""


Starter = Callable[[int], Started]
"""Starts the worker of that number, again where it is gone."""


def command(folder: Path, trust: tuple[str, ...], search: Search) -> list[str]:
    """Return the command line of one worker."""
    devices = search.devices_per_trial
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(devices), "-m"] if devices > 1 else []
    trusted = [part for package in trust for part in ("--trust", package)]
    storage = ["--storage", search.storage] if search.storage else []
    return [sys.executable, "-m", *torchrun, "qatflow.worker", str(folder.resolve()), *storage, *trusted]


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker: it finds the same modules as this process, and uses so many cores."""
    own = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": str(threads)}
    return {**os.environ, **own, "PYTHONSAFEPATH": "1"}  # no module beside a recipe is imported


@dataclass
class _Process:
    """A worker on this machine.

    Its standard input is a pipe that only this process can write to: it and its ranks learn from that when it is gone.
    """

    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        code = self.process.poll()
        if code is not None:
            self._close_pipe()
        return code

    def terminate(self) -> None:
        self.process.terminate()

    def close(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        self._close_pipe()
        self.process.wait()

    def _close_pipe(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


def start_local(search: Search, folder: Path, trust: tuple[str, ...]) -> Starter:
    """Return what starts workers on this machine; each writes to `worker-N.log`, has its share of cores and GPUs."""
    devices = search.devices_per_trial
    threads = max(1, (os.cpu_count() or 1) // (search.workers * devices))
    gpus = torch.cuda.device_count()

    def start(number: int) -> Started:
        own = environment(threads)
        if gpus:
            chosen = [str((number * devices + one) % gpus) for one in range(devices)]
            own["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
        line = [*command(folder, trust, search), WITH_PARENT]
        with log_path(folder, number).open("ab") as log:
            return _Process(subprocess.Popen(line, env=own, stdin=subprocess.PIPE, stdout=log, stderr=log))

    return start


def log_path(folder: Path, number: int) -> Path:
    """Return where a worker's messages go."""
    return folder / f"worker-{number}.log"


def last_line(log: Path) -> str:
    """Return the last thing a log says, in brackets; an empty string where it says nothing."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f" ({last})" if last else ""


@dataclass
class _RayTask:
    """A worker that Ray runs somewhere."""

    ray: Any
    reference: Any

    def poll(self) -> int | None:
        ready, _ = self.ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            return int(self.ray.get(self.reference))
        except self.ray.exceptions.RayError:
            return -1

    def terminate(self) -> None:
        self.ray.cancel(self.reference, force=True)

    def close(self) -> None:
        """Its process ends with the task."""


def start_ray(search: Search, folder: Path, trust: tuple[str, ...]) -> Starter:
    """Return what starts workers on the Ray cluster that `RAY_ADDRESS` names, or on one made here.

    Each takes `devices_per_trial` GPUs where the cluster has any, else as many cores; the run folder must be reachable
    from every node under the same path.
    """
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    devices = search.devices_per_trial
    gpus = devices if ray.cluster_resources().get("GPU", 0) >= devices else 0  # type: ignore[no-untyped-call]
    task = ray.remote(num_cpus=devices, num_gpus=gpus, max_retries=0)(_run)
    line, own = [*command(folder, trust, search), WITH_PARENT], environment(1)
    passed = {key: own[key] for key in ("PYTHONPATH", "OMP_NUM_THREADS", "PYTHONSAFEPATH")}
    return lambda number: _RayTask(ray, task.remote(line, passed, str(log_path(folder, number)), str(Path.cwd())))


def _run(line: list[str], added: dict[str, str], log: str, where: str) -> int:
    """Run a worker on the node that Ray chose; Ray has set which GPUs it sees. Returns its exit code.

    It ends with this process, which Ray kills where the task is cancelled or the run is gone.
    """
    import os  # what Ray pickles may not lean on this module's imports
    import subprocess

    with open(log, "ab") as out:  # noqa: PTH123
        own = {**os.environ, **added}
        return subprocess.Popen(line, env=own, stdin=subprocess.PIPE, stdout=out, stderr=out, cwd=where).wait()


ENGINES: dict[str, Callable[[Search, Path, tuple[str, ...]], Starter]] = {
    "local": start_local,
    "ray": start_ray,
}
