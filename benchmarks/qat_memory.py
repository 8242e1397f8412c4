"""Memory that a training step takes, measured in a process of its own.

    python -m benchmarks.qat_memory resnet18 qatflow learning --batch 16 --size 224 --device cpu

By how much memory grows while a step runs, from before its forward pass to its peak; the bytes that the forward pass
keeps for the backward pass, parameters, buffers and the model's inputs left out; and how much of these are activations:
what grows with the batch, and quantized weights do not. One step goes before, so that compiled kernels, the optimizer's
state and libraries are there. Growth is of allocated memory on a GPU, whose whole peak is told as well, else of the
memory that the process occupies: `VmHWM`, which is what `ru_maxrss` reports, but without what the parent process once
had, and which Linux lets a process set back. glibc is told to give large pieces back at once, so that none are there
already.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers.case import PeerError
from benchmarks.qat_variants import VARIANTS, Trainee, Work

MIB = 2**20
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**17)}
NO_SUCH_PEER = 3
"""Exit code where the peer is not installed or cannot take the model."""


def measure(work: Work, tool: str, variant: str) -> dict[str, float]:
    """Return `step_mib`, `saved_mib` and `activations_mib`, and on a GPU `peak_mib`, of a step in a fresh process.

    Raises:
        PeerError: the peer is not installed, or cannot take the model.
    """
    line = [sys.executable, "-m", "benchmarks.qat_memory", work.model, tool, variant]
    line += ["--batch", str(work.batch), "--size", str(work.size), "--device", work.device]
    done = subprocess.run(line, env={**os.environ, **GIVE_BACK}, capture_output=True, text=True, check=False)
    if done.returncode == NO_SUCH_PEER:
        raise PeerError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        message = f"{' '.join(line)} ended with {done.returncode}:\n{done.stderr}"
        raise RuntimeError(message)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def saved(trainee: Trainee, batch: int) -> int:
    """Return the bytes of distinct storages that a forward pass of so many samples keeps for the backward pass."""
    there = (*trainee.model.parameters(), *trainee.model.buffers(), trainee.x, trainee.labels)
    own = {one.untyped_storage().data_ptr() for one in there}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = trainee.loss(batch)  # while it lives, so do the storages, and no address comes twice
    assert loss.requires_grad
    return sum(kept.values())


def step(trainee: Trainee, device: str) -> dict[str, float]:
    """Return how much memory a step takes on top of what is there before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trainee.step()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        return {"step_mib": (peak - before) / MIB, "peak_mib": peak / MIB}
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    before = _peak()
    trainee.step()
    return {"step_mib": (_peak() - before) / MIB}


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print the numbers of one variant as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tool", choices=VARIANTS)
    parser.add_argument("variant")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    work = Work(arguments.model, arguments.batch, arguments.size, arguments.device)
    try:
        trainee = VARIANTS[arguments.tool][arguments.variant](work)
    except PeerError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_SUCH_PEER)
    trainee.step()
    whole, half = (saved(trainee, size) for size in (work.batch, work.batch // 2))
    activations = (whole - half) * work.batch / (work.batch - work.batch // 2)
    trainee.optimizer.zero_grad()
    gc.collect()
    kept = {"saved_mib": whole / MIB, "activations_mib": activations / MIB}
    print(json.dumps({**step(trainee, work.device), **kept}))


if __name__ == "__main__":
    main()
