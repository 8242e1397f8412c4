"""The journal: collects what a run has finished, and keeps `result.json` up to date with it.

It is the `Progress` that the engine gives to its parts, and passes everything on to the one it was given. So a run
that is interrupted, or dies, leaves a result of all that was finished.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from qatflow.progress import Progress
from qatflow.recipe import Recipe
from qatflow.result import CandidateRecord, GateRecord, Judgement, RunResult, TrialRecord
from qatflow.store import write_text

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Journal:
    """The records of one run so far.

    Args:
        recipe: the run.
        folder: where `result.json` is kept.
        progress: who is told of everything as well.
    """

    def __init__(self, recipe: Recipe, folder: Path, progress: Progress) -> None:
        self._folder = folder
        self._progress = progress
        self._start = self._mark = time.perf_counter()
        self._stage = "start"
        self.result = RunResult(
            name=recipe.name,
            description=recipe.description,
            status="running",
            verdict=None,
            passed=False,
            gate=None,
            fp32=None,
            best=None,
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            seconds=0.0,
        )

    def update(self, **changes: Any) -> RunResult:
        """Change fields of the result and write it; returns it."""
        seconds = time.perf_counter() - self._start
        self.result = self.result.model_copy(update={**changes, "seconds": seconds})
        write_text(self._folder / "result.json", self.result.model_dump_json(indent=1) + "\n")
        return self.result

    def stage(self, text: str) -> None:
        """Begin a stage: the time until the next one is its own."""
        self.close_stage()
        self._stage = text.partition(":")[0]
        logger.info("%s", text)
        self._progress.stage(text)

    def close_stage(self) -> None:
        """Add the time since the last stage began to that stage's timing."""
        now = time.perf_counter()
        timings = dict(self.result.timings)
        timings[self._stage] = timings.get(self._stage, 0.0) + now - self._mark
        self._mark = now
        self.result = self.result.model_copy(update={"timings": timings})

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Pass it on."""
        return self._progress.track(items, description, total)

    def candidate(self, record: CandidateRecord) -> None:
        """Add a candidate to the result."""
        self.update(candidates=(*self.result.candidates, record), **self._best_with(record))
        found = f"value {record.value}, drop {record.drop}, {record.verdict.value}{_after(record)}"
        logger.info("%s on %s: %s", record.id, record.part, found)
        self._progress.candidate(record)

    def _best_with(self, record: CandidateRecord) -> dict[str, Any]:
        """Return what changes if `record` beats the best so far: an interrupted run has a verdict as well.

        Until the best is judged on the test part, that is the one on the choosing part, and nothing has passed.
        """
        gate, best = self.result.gate, self.result.winner
        if gate is None or record.stage in ("fp32", "deployed"):
            return {}
        if record.look is not None:
            judged = {"verdict": record.verdict, "passed": record.passed} if record.id == self.result.best else {}
            return {**judged, "looks": max(record.look, self.result.looks)}
        if best is not None and _rank(record, gate) <= _rank(best, gate):
            return {}
        return {"best": record.id, "verdict": record.verdict, "passed": False}

    def judgement(self, record: Judgement) -> None:
        """Put it into the result."""
        self.update(activations_only=record)
        logger.info("%s", record.sentence)
        self._progress.judgement(record)

    def trial(self, record: TrialRecord) -> None:
        """Add a trial to the result."""
        self.update(trials=(*self.result.trials, record))
        logger.info("trial %d: %s, lr %.3g, value %s", record.number, record.state, record.lr, record.value)
        self._progress.trial(record)

    def note(self, text: str) -> None:
        """Pass it on."""
        logger.warning("%s", text)
        self._progress.note(text)


def _rank(record: CandidateRecord, gate: GateRecord) -> tuple[bool, float, float]:
    """One that passes beats one that does not; then the metric counts, then the SQNR."""
    sign = 1.0 if gate.higher_is_better else -1.0
    value = -math.inf if record.value is None else sign * record.value
    return record.passed, value, -math.inf if record.sqnr_db is None else record.sqnr_db


def _after(record: CandidateRecord) -> str:
    return f"; {record.reason}" if record.reason else ""
