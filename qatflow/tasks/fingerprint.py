"""Hashes of samples, one each, the same whether a sample is read by itself or in a batch.

Tensors count by type, shape and bytes; whatever else a target holds counts by its `repr`.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Dataset, Subset

from qatflow import recipe
from qatflow.graph.fingerprint import plain_text, raw
from qatflow.results.store import key_of
from qatflow.tasks.batches import Batch, batches
from qatflow.tasks.splits import Samples

DIGITS = 16
"""Hexadecimal digits of a sample's hash."""
GOLDEN = (math.sqrt(5) - 1) / 2
TWICE = 8
"""Samples that are read twice to see whether a part is random."""
FEWEST = 64
"""Samples that are looked at whatever it takes, where not all are."""
PATIENCE = 2.0
"""Seconds after which no more are."""


def batch_digests(batch: Batch) -> list[str]:
    """Return the hash of every sample of a batch, `DIGITS` long."""
    found = [hashlib.sha256() for _ in range(batch.size)]
    for field in fields(batch):
        if field.name == "size":
            continue
        for path, rows in _leaves(getattr(batch, field.name), batch.size, field.name):
            for digest, row in zip(found, rows, strict=True):
                digest.update(path)
                digest.update(row)
    return [digest.hexdigest()[:DIGITS] for digest in found]


def digests_of(samples: Samples, indices: Iterable[int], config: recipe.Data, *, labels: bool = True) -> list[str]:
    """Return the hashes of some samples, read for this.

    Args:
        samples: a part of the data.
        indices: which.
        config: how the data is read.
        labels: whether targets count.
    """
    chosen = cast("Samples", Subset(cast("Dataset[Any]", samples), list(indices)))
    read = batches(chosen, config)
    return [one for batch in read for one in batch_digests(batch if labels else replace(batch, target=None))]


def digests_in_looks(samples: Samples, config: recipe.Data) -> Iterator[tuple[int, str]]:
    """Yield number and hash of samples of a part, spread over it: `FEWEST`, and as many more as `PATIENCE` lets."""
    start, alone = time.perf_counter(), config.model_copy(update={"workers": 0})
    order = spread(len(samples))
    for first in range(0, len(order), FEWEST):
        if first and time.perf_counter() - start > PATIENCE:
            return
        indices = order[first : first + FEWEST]
        yield from zip(indices, digests_of(samples, indices, alone), strict=True)


def spread(size: int) -> list[int]:
    """Return all of `range(size)` in an order of which every beginning is spread evenly over it (Weyl's sequence)."""
    return sorted(range(size), key=lambda index: index * GOLDEN % 1)


def is_random(samples: Samples, config: recipe.Data, *, labels: bool = True) -> bool:
    """Tell whether samples come out otherwise when they are read again; a few are tried."""
    few = spread(len(samples))[:TWICE]
    alone = config.model_copy(update={"workers": 0})  # a process that is started anew may begin with the same seed
    one, other = (digests_of(samples, few, alone, labels=labels) for _ in range(2))
    return one != other


def calibration_fingerprint(samples: Samples, limits: Iterable[int | None], config: recipe.Data) -> str:
    """Return a hash of the inputs of all calibration samples that a run takes.

    Args:
        samples: the part.
        limits: how many samples are taken at most, each time that some are; None is all. See `batches`.
        config: how the data is read.
    """
    size = len(samples)
    taken = {index * size // n for limit in limits for n in (min(limit or size, size),) for index in range(n)}
    indices = sorted(taken)
    return key_of(size, indices, digests_of(samples, indices, config, labels=False))


def form_of(samples: Samples, config: recipe.Data) -> str:
    """Return a hash of the length of a part, and of the types and shapes of one of its samples: not of its values."""
    alone = config.model_copy(update={"workers": 0})
    chosen = cast("Samples", Subset(cast("Dataset[Any]", samples), [0]))
    (batch,) = batches(chosen, alone)
    parts = [getattr(batch, field.name) for field in fields(batch) if field.name != "size"]
    return key_of(len(samples), [path.decode() for part in parts for path, _ in _leaves(part, 1, "")])


def _leaves(value: Any, size: int, path: str) -> Iterator[tuple[bytes, list[Any]]]:
    """Yield what tells the form of every leaf of some collated samples, and its content for each of them."""
    if isinstance(value, Tensor):
        by_sample = value.dim() > 0 and value.shape[0] == size
        shape = list(value.shape[1:] if by_sample else value.shape)
        yield f"{path} {value.dtype} {shape}".encode(), _rows(value, size) if by_sample else [raw(value)] * size
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(value[key], size, f"{path}.{key}")
    elif isinstance(value, (tuple, list)) and not _one_each(value, size):
        for number, one in enumerate(value):
            yield from _leaves(one, size, f"{path}.{number}")
    else:
        each = value if _one_each(value, size) else [value] * size
        yield f"{path} {type(each[0]).__name__}".encode(), [plain_text(one).encode() for one in each]


def _one_each(value: Any, size: int) -> bool:
    """Tell whether a list holds one value a sample that collation could not stack: texts, say."""
    nested = (Tensor, Mapping, tuple, list)
    return isinstance(value, (tuple, list)) and len(value) == size and not any(isinstance(v, nested) for v in value)


def _rows(value: Tensor, size: int) -> list[Any]:
    """Return the bytes of every sample of a tensor."""
    flat = raw(value)
    return list(flat.reshape(size, -1)) if flat.size else [b""] * size
