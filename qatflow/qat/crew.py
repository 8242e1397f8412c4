"""The workers that a run starts: watched while they train, and replaced where they die, a few times."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from qatflow.qat.launch import Started, Starter, last_line, log_path
from qatflow.qat.trial import POLL

MOST_LOST = 3
"""Workers that are replaced in a search: what killed that many, such as a lack of memory, would go on."""


class Crew:
    """Workers by their numbers.

    Args:
        start: starts the worker of a number.
        size: how many there are to be.
        folder: the run folder, which has their logs.
        progress: returns what differs where something was trained since.
        note: is told of those that fail.
    """

    def __init__(
        self, start: Starter, size: int, folder: Path, progress: Callable[[], object], note: Callable[[str], None]
    ) -> None:
        self._start = start
        self._size = size
        self._folder = folder
        self._progress = progress
        self._note = note
        self._lost = 0

    def work(self, told: Callable[[], None]) -> str:
        """Let workers train until all have ended, and call `told` meanwhile; returns why no more can be had of them.

        Where that is interrupted, none outlives this process.
        """
        begun = self._progress()
        workers = {number: self._start(number) for number in range(self._size)}
        failed = ""
        try:
            while workers:
                time.sleep(POLL)
                told()
                for number, code in [(number, one.poll()) for number, one in workers.items()]:
                    if code is not None:
                        del workers[number]
                    if code:
                        failed = failed or self._log_of(number)
                        trained = code < 0 or self._progress() != begun
                        if trained and self._may_go_on(number, code):
                            workers[number] = self._start(number)
        finally:
            _end(list(workers.values()))
        if failed and self._progress() == begun:
            return f"QAT's workers ended without training anything: see {failed}"
        return f"QAT's workers failed {self._lost} times: see {failed}" if self._lost > MOST_LOST else ""

    def _may_go_on(self, number: int, code: int) -> bool:
        """Tell of a worker that failed; returns whether it is to be replaced."""
        self._lost += 1
        replaced = self._lost <= MOST_LOST
        ended = "was killed" if code < 0 else "failed"
        then = "and is replaced" if replaced else f"and is not replaced, as {MOST_LOST} were"
        self._note(f"worker {number} {ended} {then}: see {self._log_of(number)}")
        return replaced

    def _log_of(self, number: int) -> str:
        log = log_path(self._folder, number)
        return f"{log}{last_line(log)}"


def _end(workers: list[Started]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.close()
