"""What a compiler that was killed has left behind: half a library, under the name of a whole one.

`torch.compile` takes a file of that name for what it had compiled. Loading it fails, or ends the process by a signal,
and a probe of the processor that fails lets other code be generated: a run that is continued would end otherwise, or
not at all. So half files are removed before the first kernel is compiled.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from filelock import FileLock, Timeout

MAGIC, HEADER = b"\x7fELF\x02", struct.Struct("<40xQ10xHH2x")
"""Of a 64-bit ELF file; the header says where its table of sections is, which ends the file."""


def compiler_cache() -> Path:
    """Return where `torch.compile` keeps what it compiled, for all processes of a user."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # the compiler takes seconds to import

    return Path(cache_dir())


def remove_half_written(cache: Path) -> list[Path]:
    """Remove the libraries of a compiler's cache that are not whole, and return them.

    One that another process is compiling is left alone: it holds the lock of that name. Files of other systems' formats
    are not looked at.
    """
    return [path for path in sorted(cache.glob("*/*.so")) if not _is_whole(path) and _removed(path, cache)]


def _is_whole(path: Path) -> bool:
    """Tell whether a library has all the bytes that its header speaks of, as far as can be told."""
    try:
        with path.open("rb") as file:
            head, size = file.read(HEADER.size), os.fstat(file.fileno()).st_size
    except OSError:
        return True  # it is another user's, or gone
    if len(head) < HEADER.size or not any(head):
        return False
    if not head.startswith(MAGIC):
        return True
    offset, each, count = HEADER.unpack(head)
    return bool(offset) and offset + each * count <= size


def _removed(path: Path, cache: Path) -> bool:
    try:
        with FileLock(cache / "locks" / f"{path.name.partition('.')[0]}.lock", blocking=False):
            path.unlink(missing_ok=True)
    except (Timeout, OSError):
        return False
    return True
