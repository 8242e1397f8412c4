"""The files that a dataset reads its samples from, as far as it tells: datasets of folders keep lists of paths."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import numpy as np

from qatflow.results.store import key_of
from qatflow.tasks.splits import Samples

WRAPPED = ("dataset", "datasets", "whole")
"""Attributes under which a dataset of datasets has them: PyTorch's `Subset` and `ConcatDataset`, and ours."""


def file_stats(samples: Samples) -> str:
    """Return a hash of size and time of every file that a dataset names; empty where it names none."""
    stats = map(_stat, files_of(samples))
    found = [None if one is None else (one.st_size, one.st_mtime_ns) for one in stats]
    return key_of(found) if found else ""


def files_of(samples: Samples) -> list[Path]:
    """Return the files that are named by a dataset's attributes, and by those of datasets within it.

    An attribute may be a path, or a list of paths or of tuples with one (`samples` of torchvision's folders); paths
    may start in a folder that another attribute names.
    """
    found: dict[Path, None] = {}
    waiting: list[Any] = [samples]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        attributes = getattr(one, "__dict__", {})
        folders = [Path(v) for v in attributes.values() if isinstance(v, (str, Path)) and _is(S_ISDIR, Path(v))]
        for name, value in attributes.items():
            if name in WRAPPED:
                waiting += value if isinstance(value, (list, tuple)) else [value]
            else:
                found |= dict.fromkeys(_named(value, [Path(), *folders]))
    return list(found)


def _named(value: Any, folders: list[Path]) -> Iterator[Path]:
    """Yield the files that an attribute names; the first entry of a list tells how the others are to be read."""
    if isinstance(value, (str, Path)):
        value = [value]
    if not isinstance(value, (list, tuple, np.ndarray)) or not len(value):
        return
    path_of = _accessor(value[0])
    if path_of is None:
        return
    folder = next((one for one in folders if _is(S_ISREG, one / path_of(value[0]))), None)
    if folder is not None:
        yield from (folder / path_of(entry) for entry in value)


def _accessor(entry: Any) -> Callable[[Any], Path] | None:
    """Return what takes the path out of such an entry: it is one, or has one in it."""
    if isinstance(entry, (str, Path)):
        return Path
    if isinstance(entry, (list, tuple)):
        place = next((i for i, part in enumerate(entry) if isinstance(part, (str, Path))), None)
        return None if place is None else lambda value: Path(value[place])
    return None


def _is(kind: Callable[[int], bool], path: Path) -> bool:
    found = _stat(path)
    return found is not None and kind(found.st_mode)


def _stat(path: Path) -> os.stat_result | None:
    """Return what the system says of a file; None where there is none, or the text is no path at all."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None
