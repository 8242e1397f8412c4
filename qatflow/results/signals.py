"""Signals that end a command: Ctrl-C, SIGTERM and SIGHUP, at any moment from its first import on.

A signal that is ignored stays ignored, as `nohup` wants SIGHUP to be.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

from qatflow.errors import Terminated

ENDING = ("SIGTERM", "SIGHUP")
"""What ends a run besides Ctrl-C; not every system has both."""


def end_early() -> None:
    """Let a signal end a command that still imports what it needs: there is nothing to go on with yet."""
    for name in ("SIGINT", *ENDING):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def carried_out(work: Callable[[], int], left: str = "") -> int:
    """Return `work`'s exit code, or that of the signal that ended it, which is told with what is `left`."""
    try:
        with terminated_like_interrupted():
            return work()
    except KeyboardInterrupt as stop:
        return stopped(stop, left)


def stopped(stop: KeyboardInterrupt, left: str = "") -> int:
    """Say what stopped a command, and return its exit code: 128 and the signal's number, as shells have it."""
    number = signal.Signals[str(stop)] if isinstance(stop, Terminated) else signal.SIGINT
    sys.stderr.write(_sentence(number, left))
    return 128 + number


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as Ctrl-C does, so that what is finished stays usable.

    Raises:
        Terminated: one of them came.
    """
    with ExitStack() as stack:
        for name in ENDING:
            stack.enter_context(_handled(name, _interrupt))
        if signal.getsignal(signal.SIGINT) is _leave:
            stack.enter_context(_handled("SIGINT", signal.default_int_handler))
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let the end of a run be written down: what ends a run is heard afterwards.

    A terminal that is closed may send SIGHUP twice, and processes that read the data die where a whole group is
    terminated, which PyTorch raises in the middle of whatever is being done.

    Raises:
        Terminated: SIGTERM or SIGHUP came meanwhile.
    """
    came: list[int] = []
    with ExitStack() as stack:
        stack.enter_context(_handled("SIGCHLD", signal.SIG_DFL))
        for name in ENDING:
            if signal.getsignal(getattr(signal, name, signal.SIGINT)) is _interrupt:
                stack.enter_context(_handled(name, lambda number, _: came.append(number)))
        yield
    if came:
        _interrupt(came[0], None)


def end_with(handle: int) -> None:
    """End this process, at once, when the other end of an open pipe is closed: whoever holds it is gone."""

    def read() -> None:
        with suppress(OSError):
            while os.read(handle, 1024):
                pass
            os.write(2, b"stopped: the process that started this one is gone\n")

    _end_after(read)


def end_with_parent(_: int = 0) -> None:
    """End this process, which `multiprocessing` made, at once when the one that made it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        _end_after(parent.join)


def _end_after(wait: Callable[[], object]) -> None:
    def watch() -> None:
        wait()
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _handled(name: str, handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> Iterator[None]:
    """Handle a signal in another way for a while: only the main thread can, and only what Python can put back."""
    number = getattr(signal, name, None)
    alone = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(number) if number is not None and alone else None
    if number is None or before is None or before is signal.SIG_IGN:
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _interrupt(number: int, _: FrameType | None) -> None:
    if number != signal.SIGTERM:
        _forget_terminal()
    raise Terminated(signal.Signals(number).name)


def _leave(number: int, _: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, _sentence(signal.Signals(number)).encode())
    os._exit(128 + number)


def _sentence(number: signal.Signals, left: str = "") -> str:
    name = "Ctrl-C" if number is signal.SIGINT else number.name
    return f"stopped by {name}{': ' if left else ''}{left}\n"


def _forget_terminal() -> None:
    """Say nothing more to a terminal that was closed: that would fail, and hide what is to be written down."""
    for handle in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(handle).st_mode) and not os.isatty(handle):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, handle)
                os.close(nowhere)
