"""The journal: collects what a run has finished, and keeps `result.json` up to date with it.

It is the `Progress` that the engine gives to its parts, and passes everything on to the one it was given. So a run
that is interrupted, or dies, leaves a result of all that was finished, with what remained and the command that goes on.
Its verdict stays open: a gate is decided by a run that finished.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from qatflow.errors import RunFolderError
from qatflow.recipe import Recipe
from qatflow.recipe.variables import as_written
from qatflow.results.gate import rank
from qatflow.results.progress import Progress
from qatflow.results.result import CandidateRecord, Forecast, Judgement, RunResult, TrialRecord
from qatflow.results.signals import undisturbed
from qatflow.results.store import write_text
from qatflow.users_code import anywhere

T = TypeVar("T")
TRAINED = {
    "missed": "QAT where the gate is missed",
    "worthwhile": "QAT where the gate is missed and may be met",
    "always": "QAT",
}
logger = logging.getLogger(__name__)


class Journal:
    """The records of one run so far.

    Args:
        recipe: the run.
        folder: where `result.json` is kept.
        progress: who is told of everything as well.
        command: the command line that goes on with the run.
    """

    def __init__(self, recipe: Recipe, folder: Path, progress: Progress, command: str = "") -> None:
        self._plan = _plan(recipe)
        self._recipe = recipe.model_dump(mode="json")
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
            remaining=tuple(self._plan.values()),
            command=command,
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            seconds=0.0,
        )

    def update(self, **changes: Any) -> RunResult:
        """Change fields of the result and write it; returns it."""
        seconds = time.perf_counter() - self._start
        self.result = self.result.model_copy(update={**changes, "seconds": seconds})
        write_text(self._folder / "result.json", self.result.model_dump_json(indent=1) + "\n")
        return self.result

    @contextmanager
    def to_the_end(self) -> Iterator[None]:
        """Record how the run in here ends, and let what ended it pass.

        Raises:
            UserCodeError: code of the user's raised.
        """
        try:
            with anywhere():
                yield
        except BaseException as error:
            with undisturbed():
                self._ended_by(error)
            raise

    def _ended_by(self, error: BaseException) -> None:
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        said = as_written(str(error), self._recipe)
        why = said or ("Ctrl-C" if isinstance(error, KeyboardInterrupt) else type(error).__name__)
        logger.error("the run %s: %s", "was stopped" if stopped else "failed", why, exc_info=None if stopped else error)
        self.close_stage()
        try:
            self.update(status="interrupted" if stopped else "failed", error=why)
        except RunFolderError as second:  # a full disk must not hide what happened
            self.note(f"that the run ended early could not be written down: {second}")

    def stage(self, text: str) -> None:
        """Begin a stage: the time until the next one is its own."""
        self.close_stage()
        self._stage = text.partition(":")[0]
        self._come_to(self._stage)
        logger.info("%s", text)
        self._progress.stage(text)

    def _come_to(self, name: str, done: bool = False) -> None:
        """Note that all before a part of the plan is over, and the part itself as well where it is done."""
        names = list(self._plan)
        if name in names:
            left = names[names.index(name) + done :]
            self.result = self.result.model_copy(update={"remaining": tuple(self._plan[one] for one in left)})

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
        if record.look is None:
            self._come_to(record.id, done=True)
        self.update(candidates=(*self.result.candidates, record), **self._best_with(record))
        found = f"value {record.value}, drop {record.drop}, {record.verdict.value}{_after(record)}"
        logger.info("%s on %s: %s", record.id, record.part, found)
        self._progress.candidate(record)

    def _best_with(self, record: CandidateRecord) -> dict[str, Any]:
        """Return what changes if `record` beats the best so far, which is one on the choosing part."""
        gate, best = self.result.gate, self.result.winner
        if gate is None or record.stage in ("fp32", "deployed"):
            return {}
        if record.look is not None:
            return {"looks": max(record.look, self.result.looks)}
        places = [rank(gate.higher_is_better, one.passed, one.value, one.sqnr_db) for one in (record, best or record)]
        return {"best": record.id} if best is None or places[0] > places[1] else {}

    def judgement(self, record: Judgement) -> None:
        """Put it into the result."""
        self.update(activations_only=record)
        logger.info("%s", record.sentence)
        self._progress.judgement(record)

    def forecast(self, record: Forecast) -> None:
        """Put it into the result."""
        self.update(forecast=record)
        logger.info("%s", record.sentence)
        self._progress.forecast(record)

    def trial(self, record: TrialRecord) -> None:
        """Add a trial to the result."""
        self.update(trials=(*self.result.trials, record))
        logger.info("trial %d: %s, lr %.3g, value %s", record.number, record.state, record.lr, record.value)
        self._progress.trial(record)

    def note(self, text: str) -> None:
        """Put it into the result, which is written when something is finished, and pass it on."""
        told = as_written(text, self._recipe)
        if told not in self.result.notes:
            self.result = self.result.model_copy(update={"notes": (*self.result.notes, told)})
        logger.warning("%s", told)
        self._progress.note(told)


def _plan(recipe: Recipe) -> dict[str, str]:
    """Return what a run does, in order: in words, by the names of stages and candidates."""
    plan = {name: name for name in ("naive", *recipe.steps)}
    if recipe.qat.when != "never":
        plan["qat"] = TRAINED[recipe.qat.when]
    if recipe.gate.min_speedup is not None:
        plan["speed"] = "parts in float where the file is too slow"
    verified = {"verify": "verification of the exported file"} if recipe.export.verify else {}
    costs = {"costs": "sensitivity"}
    return {"fp32": "FP32", **plan, "export": "export", **verified, **costs}


def _after(record: CandidateRecord) -> str:
    return f"; {record.reason}" if record.reason else ""
