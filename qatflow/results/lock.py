"""Who works in a run folder: one process at a time, which holds a file there locked.

The operating system frees the file however its process ends, and takes no other process with the same number for it.
What a process forks does not hold it (that is why it is not filelock's): a run that is killed can be started again at
once, even while processes that read its data are still there. Where another machine had the folder, the operating
system cannot be asked, because not every network file system passes locks on; then the file's time counts, which its
holder sets every few seconds.

Workers join without it, and a report reads only, so both may be there at the same time.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from qatflow.errors import RunFolderError
from qatflow.results.store import unwritable

FILE = "run.lock"
BEAT = 10.0
"""Seconds between two signs of life."""
GRACE = 60.0
"""Seconds without one after which another machine is believed to be gone: they are watched, so clocks may differ."""
LONG = 3600.0
"""Seconds without one after which nobody is watched for."""
TRIES, PAUSE = 5, 0.1
"""A report that looks who is there holds the file for a moment as well."""

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int, *, shared: bool = False) -> None:
        os.lseek(handle, 2**30, os.SEEK_SET)  # what is locked cannot be read there
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int, *, shared: bool = False) -> None:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


@dataclass(frozen=True)
class Holder:
    """A process that works in a run folder."""

    pid: int
    host: str
    boot: str
    """Of the machine: containers on it have it in common, whatever their names; empty where there is none."""
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_near(self) -> bool:
        """Whether it is, or was, on this machine, so that the operating system knows."""
        return self.host == socket.gethostname() or self.boot == _boot() != ""


@contextmanager
def held(folder: Path, note: Callable[[str], None], grace: float = GRACE) -> Iterator[None]:
    """Hold a run folder, so that no other run works in it.

    Args:
        folder: the run folder.
        note: is told where an earlier run left the folder without an end, and of waiting.
        grace: seconds that a holder on another machine is watched for.

    Raises:
        RunFolderError: another process holds it, or it cannot be written to; nothing was changed in it.
    """
    path = folder / FILE
    require_own(folder)
    handle = _opened(path)
    try:
        certain = _take(handle, folder)
        before = _read(handle)
        if before is not None:
            if not (certain and before.is_near):
                _watch(path, before, note, grace)
            note(f"an earlier run in this folder was cut off ({before}): what it finished is taken over")
        _sign(handle, path)
        done = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, done), daemon=True)
        beat.start()
        try:
            yield
        finally:
            done.set()
            beat.join()
            if handle in _HANDLES:
                with suppress(OSError):
                    os.ftruncate(handle, 0)
    finally:
        if handle in _HANDLES:
            _HANDLES.discard(handle)
            os.close(handle)


def require_own(folder: Path) -> None:
    """Refuse a folder in which something leads elsewhere: it may come from anyone, and what is written there with it.

    Raises:
        RunFolderError: there is a link in it.
    """
    for place, folders, files in os.walk(folder):
        for link in (Path(place, name) for name in (*folders, *files)):
            if link.is_symlink():
                message = f"{link} leads elsewhere; remove it, or choose another folder with run.dir=FOLDER"
                raise RunFolderError(message)


def holder(folder: Path) -> Holder | None:
    """Return who works in a run folder now; None for nobody, also where that was cut off."""
    try:
        handle = os.open(folder / FILE, os.O_RDONLY | SAFELY)
    except OSError:
        return None
    try:
        found = _read(handle)
        if found is None:
            return None
        try:
            _lock(handle, shared=True)
        except (BlockingIOError, PermissionError):
            return found
        except OSError:  # this file system has no locks
            near = False
        else:
            near = found.is_near
        return found if not near and time.time() - os.fstat(handle).st_mtime < GRACE else None
    finally:
        os.close(handle)


def require_free(folder: Path) -> None:
    """Refuse a folder that another process holds, before anything is prepared for it.

    Raises:
        RunFolderError: another process holds it.
    """
    found = holder(folder)
    if found is not None and found.is_near:  # another machine may be gone: that takes watching
        raise _in_use(folder, found)


_HANDLES: set[int] = set()
"""Open files that this process holds."""
SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""A folder may come from elsewhere: what its file points to is not ours to write."""


def _let_go() -> None:
    """Close in a forked process what its parent holds: else it would hold it as well, for as long as it lives."""
    for handle in _HANDLES:
        os.close(handle)
    _HANDLES.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _opened(path: Path) -> int:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | SAFELY, 0o666)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _unusable(path, "it is no ordinary file")
    _HANDLES.add(handle)
    return handle


def _unusable(path: Path, why: str) -> RunFolderError:
    return RunFolderError(f"cannot write {path}: {why}; choose another folder with run.dir=FOLDER")


def _take(handle: int, folder: Path) -> bool:
    """Lock the file; returns False where this file system has no locks.

    Raises:
        RunFolderError: another process holds it.
    """
    for left in reversed(range(TRIES)):
        try:
            _lock(handle)
        except (BlockingIOError, PermissionError) as error:
            if not left:
                raise _in_use(folder, _read(handle)) from error
            time.sleep(PAUSE)
        except OSError:
            return False
        else:
            return True
    raise AssertionError


def _watch(path: Path, before: Holder, note: Callable[[str], None], grace: float) -> None:
    """Wait until another machine has shown no sign of life for long enough.

    Raises:
        RunFolderError: it shows one.
    """
    seen = _time_of(path)
    if time.time() - seen > LONG:
        return
    note(f"{before}, may still be at work in {path.parent}: watching for {grace:g} s")
    end = time.monotonic() + grace
    while time.monotonic() < end:
        time.sleep(min(1.0, grace / 4))
        if _time_of(path) != seen:
            raise _in_use(path.parent, before)


def _time_of(path: Path) -> float:
    """Return when a file was last touched: opening it makes network file systems ask anew."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime


def _in_use(folder: Path, by: Holder | None) -> RunFolderError:
    return RunFolderError(
        f"{folder} is in use by {by or 'another process'}: wait for its end or stop it, "
        "or choose another folder with run.dir=FOLDER"
    )


def _beat(path: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with suppress(OSError):  # the folder may be out of reach for a while
            os.utime(path)


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _sign(handle: int, path: Path) -> None:
    """Write who holds the file.

    Raises:
        RunFolderError: the disk is full.
    """
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    said = json.dumps(asdict(Holder(os.getpid(), socket.gethostname(), _boot(), since)))
    try:
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, f"{said}\n".encode())
    except OSError as error:
        raise unwritable(path, error) from error


def _read(handle: int) -> Holder | None:
    """Return what the file says; None where nobody holds it, or it says nothing that we wrote."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        said = json.loads(os.read(handle, 4096))
        found = Holder(int(said["pid"]), str(said["host"]), str(said["boot"]), str(said["since"]))
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    return found if f"{found}{found.boot}".isprintable() else None
