"""Signals that end a run, and one that must not disturb its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qatflow.errors import Terminated


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does, so that what is finished stays usable.

    Raises:
        Terminated: it came.
    """

    def interrupt(*_: object) -> None:
        raise Terminated("SIGTERM")

    with _handled("SIGTERM", interrupt):
        yield


@contextmanager
def workers_may_die() -> Iterator[None]:
    """Let processes that read the data die unheard: PyTorch raises it in the middle of whatever is being done.

    Where a whole group is terminated they die while the end of the run is written down.
    """
    with _handled("SIGCHLD", signal.SIG_DFL):
        yield


@contextmanager
def _handled(name: str, handler: Callable[..., None] | signal.Handlers) -> Iterator[None]:
    """Handle a signal in another way for a while: only the main thread can, and only what Python can put back."""
    number = getattr(signal, name, None)
    alone = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(number) if number is not None and alone else None
    if number is None or before is None:
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
