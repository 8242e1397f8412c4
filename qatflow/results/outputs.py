"""What an exported file gave in its runtime, kept so that the files of a sweep can be compared with each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from qatflow.results.store import write_atomically

Outputs = npt.NDArray[np.float32]

FILE, NAME = "export/outputs.safetensors", "outputs"
MOST_BYTES = 16 * 2**20
"""What is kept: the first samples, as many as fit."""
HEADER = 2**16
"""Bytes of a file besides, at most."""


def keep_outputs(folder: Path, batches: Sequence[Outputs]) -> str:
    """Write the outputs of the first samples into a run folder; returns the path in it, empty where none were written.

    Args:
        folder: the run folder.
        batches: of one output, `[batch, ...]`; batches whose samples differ in shape are not kept.
    """
    if not batches or len({batch.shape[1:] for batch in batches}) > 1 or batches[0].ndim == 0:
        return ""
    each = int(np.prod(batches[0].shape[1:], dtype=np.int64)) * 4
    outputs = np.concatenate(batches)[: max(1, MOST_BYTES // max(1, each))].astype(np.float32)
    if outputs.nbytes > MOST_BYTES:
        return ""
    (folder / FILE).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, lambda aside: save_file({NAME: np.ascontiguousarray(outputs)}, aside))
    return FILE


def kept_outputs(folder: Path) -> Outputs | None:
    """Return the outputs of a run folder, `[samples, ...]`; None where there are none that can be read."""
    path = folder / FILE
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES + HEADER:
            return None
        return load_file(path)[NAME].astype(np.float32)
    except (OSError, SafetensorError, LookupError, ValueError, TypeError):
        return None


def agreement(one: Outputs, other: Outputs) -> tuple[float | None, float | None]:
    """Return how far two files agree on the samples that both were given.

    Returns:
        The share of samples with the same best class, where the outputs are scores `[samples, classes]`, and the SQNR
        of the second to the first in dB, infinite where they are equal; None where they cannot be compared.
    """
    count = min(len(one), len(other))
    if not count or one.shape[1:] != other.shape[1:]:
        return None, None
    first, second = one[:count].astype(np.float64), other[:count].astype(np.float64)
    same = float(np.mean(first.argmax(1) == second.argmax(1))) if first.ndim == 2 and first.shape[1] > 1 else None
    signal, noise = float(np.square(first).sum()), float(np.square(first - second).sum())
    if not np.isfinite(signal + noise) or signal == 0:
        return same, None
    return same, float("inf") if noise == 0 else 10 * float(np.log10(signal / noise))
