"""Everything qatflow raises on purpose.

One base class, so that a caller can catch all of it; each concrete error is a builtin as well, so that code that
knows nothing of qatflow can still catch it by kind. A mistake of the user's is told in full sentences and without a
traceback; a traceback means a defect of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class QatflowError(Exception):
    """Base of every error that is told to the user without a traceback."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, by its name: it ends a run as Ctrl-C does."""


@dataclass(frozen=True)
class Mistake:
    """One thing wrong with a recipe: where, what stood there, why it cannot stay, and what to write instead."""

    path: str
    problem: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" + (f"; {self.fix}" if self.fix else "")


class RecipeError(QatflowError, ValueError):
    """A recipe with mistakes; all of them are in `mistakes`, one line each in the message."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        lines = "\n".join(f"  - {mistake}" for mistake in self.mistakes)
        super().__init__(f"the recipe has {count} mistake{'s' if count != 1 else ''}:\n{lines}")


class CaptureError(QatflowError, RuntimeError):
    """The model cannot be captured as one graph."""


class DataError(QatflowError, ValueError):
    """The data is empty, has another shape than the model takes, or lacks a split that the run needs."""


class MachineError(QatflowError, RuntimeError):
    """The machine ran out of something: memory, room on a disk, a process that reads the data."""


class UserCodeError(QatflowError, RuntimeError):
    """Code of the user's raised: where, what, and what qatflow called it for; `where` grows on the way up."""

    def __init__(self, said: str, *where: str) -> None:
        super().__init__(said, *where)
        self.said = said
        self.where = [*where]

    def __str__(self) -> str:
        return f"{self.said} ({'; '.join(self.where)})" if self.where else self.said


class StepError(QatflowError, RuntimeError):
    """A step cannot run on this network: in Python one may call it on any; a recipe's order is checked before."""


class PlacementError(QatflowError, RuntimeError):
    """A target's table finds nothing to quantize in a model."""


class ExportError(QatflowError, RuntimeError):
    """The winner cannot be written as a file of the kind that the recipe asks for."""


class EncodingsError(QatflowError, ValueError):
    """An encodings file that cannot be read, converted, or used for a model."""


class RunFolderError(QatflowError, OSError):
    """A run folder that cannot be used: not ours, half written by something else, or not writable."""


def near_match(name: str, allowed: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the closest of `allowed`, or nothing where none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else ""


def allowed_values(name: str, allowed: Iterable[str]) -> str:
    """Return the list of allowed values, led by a near match of `name` where there is one."""
    values = list(allowed)
    listed = f"allowed: {', '.join(values)}" if values else "nothing is allowed here"
    hint = near_match(name, values)
    return f"{hint} {listed}" if hint else listed
