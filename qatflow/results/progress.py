"""What a run tells while it works, apart from how it is shown.

The engine and the steps speak to a `Progress`; the command line brings one that draws, tests and Python callers get
`Silent`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from qatflow.results.result import CandidateRecord, Forecast, Judgement, TrialRecord

T = TypeVar("T")


class Progress(Protocol):
    """Somebody who is told how a run gets on."""

    def stage(self, text: str) -> None:
        """Begin a new stage of the run; `text` names it in a few words."""

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield `items`, showing how many of `total` are done."""

    def candidate(self, record: CandidateRecord) -> None:
        """Add one finished candidate to the growing table of rungs."""

    def judgement(self, record: Judgement) -> None:
        """Tell what quantized activations alone cost."""

    def forecast(self, record: Forecast) -> None:
        """Tell what QAT is expected to come to."""

    def trial(self, record: TrialRecord) -> None:
        """Tell of one finished QAT trial."""

    def note(self, text: str) -> None:
        """Tell something the user should know."""


class Silent:
    """A `Progress` that shows nothing."""

    def stage(self, text: str) -> None:
        """Ignore it."""

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield `items` unchanged."""
        yield from items

    def candidate(self, record: CandidateRecord) -> None:
        """Ignore it."""

    def judgement(self, record: Judgement) -> None:
        """Ignore it."""

    def forecast(self, record: Forecast) -> None:
        """Ignore it."""

    def trial(self, record: TrialRecord) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""
