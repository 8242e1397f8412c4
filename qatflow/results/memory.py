"""How much memory this process may still take, and how much some work took at its peak. Linux tells, others do not.

What the machine has available, what control groups (containers, batch systems) leave, of version 2 and 1, and the
process's own limit of addresses are all looked at; the least of them counts. Pages of files that a group has read count
as taken there, and are given back when memory is wanted.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")


def room() -> int | None:
    """Return the bytes that this process may still take; None where the system does not tell."""
    left = [*_machine(), *_groups(), *_addresses()]
    return max(0, min(left)) if left else None


def taken() -> int | None:
    """Return the bytes of memory that this process has taken; None where the system does not tell."""
    return _status("VmRSS")


def peak() -> int | None:
    """Return the most bytes that it had taken since `forget_peak`; None where the system does not tell."""
    return _status("VmHWM")


def forget_peak() -> bool:
    """Give back what the heap holds ready, and let the peak be what is taken then; False where that cannot be."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc's
        (PROC / "self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return False
    return True


def _machine() -> Iterator[int]:
    for size in re.findall(r"^MemAvailable: +(\d+) kB", _read(PROC / "meminfo"), flags=re.MULTILINE):
        yield int(size) * 1024


def _groups() -> Iterator[int]:
    """Yield what each control group that the process is in, or below, leaves of its limit."""
    for line in _read(PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        first = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        names, top = (first, GROUPS / "memory") if controllers else (("memory.max", "memory.current"), GROUPS)
        within = Path(path.lstrip("/"))
        for folder in (top / one for one in (within, *within.parents)):
            limit, used = (_read(folder / name).strip() for name in names)
            if limit.isdigit() and used.isdigit():
                files = re.findall(r"^(?:in)?active_file (\d+)$", _read(folder / "memory.stat"), flags=re.MULTILINE)
                yield int(limit) - int(used) + sum(map(int, files))


def _addresses() -> Iterator[int]:
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, used = resource.getrlimit(resource.RLIMIT_AS)[0], _status("VmSize")
    if limit != resource.RLIM_INFINITY and used is not None:
        yield limit - used


def _status(name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB", _read(PROC / "self/status"), flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _read(path: Path) -> str:
    """Return what a file of the system says; an empty string where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
