"""Show a run as it goes, and what came out of it: bars and a table in a terminal or notebook, single lines elsewhere.

A log file or a CI job gets no control codes and few lines: of a long loop only what it has done every few seconds.
Names of candidates, models and files come from users and are never read as rich's markup.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from qatflow.report.wording import spelt
from qatflow.results.progress import Progress
from qatflow.results.result import CandidateRecord, Forecast, Judgement, RunResult, TrialRecord, Verdict
from qatflow.results.unfinished import unfinished

T = TypeVar("T")

LINE_EVERY = 5.0
"""Seconds between two lines about the same loop where there is no terminal."""

WORDS = {
    Verdict.MET: ("met", "green"),
    Verdict.WITHIN_NOISE: ("within noise", "yellow"),
    Verdict.MISSED: ("missed", "red"),
    Verdict.ANOMALOUS: ("anomalous", "magenta"),
    Verdict.BASELINE: ("FP32", "dim"),
}
COLUMNS = ("candidate", "metric", "drop (interval)", "verdict", "SQNR dB", "seconds")


@contextmanager
def shown_on(console: Console) -> Iterator[Progress]:
    """Yield the `Progress` that suits a console."""
    redraws = console.is_terminal and not console.is_dumb_terminal
    if redraws or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None):
        with RichProgress(console) as progress:
            yield progress
    else:
        yield PlainProgress(console)


class RichProgress:
    """Bars for what is under way and a table of candidates, redrawn in place; stages and trials scroll by above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._table = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold")
        for column in self._table.columns[1:]:
            column.justify = "right"
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._live = Live(console=console, get_renderable=self._view, refresh_per_second=8)

    def __enter__(self) -> RichProgress:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _view(self) -> Group:
        rows = [self._table] if self._table.row_count else []
        return Group(*rows, *([self._bars] if self._bars.tasks else []))

    def stage(self, text: str) -> None:
        """Begin a new stage of the run."""
        self._print(Text(f"• {text}"))

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield `items` behind a bar, which goes away when they are done."""
        bar = self._bars.add_task(description, total=_total(items, total))
        try:
            for item in items:
                yield item
                self._bars.advance(bar)
        finally:
            self._bars.remove_task(bar)

    def candidate(self, record: CandidateRecord) -> None:
        """Add one candidate to the table."""
        _, style = WORDS[record.verdict]
        cells = candidate_cells(record)
        row = [Text(cell, style=style if name == "verdict" else "") for name, cell in zip(COLUMNS, cells, strict=True)]
        self._table.add_row(*row, style=None if record.kept else "dim")
        self._live.refresh()

    def trial(self, record: TrialRecord) -> None:
        """Tell of one finished trial."""
        self._print(Text(f"  {trial_line(record)}"))

    def judgement(self, record: Judgement) -> None:
        """Tell what quantized activations alone cost."""
        self.note(record.sentence)

    def forecast(self, record: Forecast) -> None:
        """Tell what QAT is expected to come to."""
        self.note(record.sentence)

    def note(self, text: str) -> None:
        """Tell something the user should know."""
        self._print(Text(f"  note: {text}", style="yellow"))

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


class PlainProgress:
    """One line for each thing that happens."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock

    def stage(self, text: str) -> None:
        """Begin a new stage of the run."""
        self._line(text)

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield `items`, telling every few seconds how many are done."""
        total = _total(items, total)
        last = self._clock()
        for done, item in enumerate(items, start=1):
            yield item
            if self._clock() - last >= LINE_EVERY:
                last = self._clock()
                share = f"{done}/{total} ({done / total:.0%})" if total else f"{done}"
                self._line(f"{description}: {share}")

    def candidate(self, record: CandidateRecord) -> None:
        """Tell of one finished candidate."""
        name, value, drop, verdict, sqnr, seconds = candidate_cells(record)
        compared = [f"drop {drop}", verdict] if drop != "-" else []
        noise = [f"SQNR {sqnr} dB"] if sqnr != "-" else []
        self._line(f"{name}: {', '.join([value, *compared, *noise, f'{seconds} s'])}")

    def trial(self, record: TrialRecord) -> None:
        """Tell of one finished trial."""
        self._line(trial_line(record))

    def judgement(self, record: Judgement) -> None:
        """Tell what quantized activations alone cost."""
        self.note(record.sentence)

    def forecast(self, record: Forecast) -> None:
        """Tell what QAT is expected to come to."""
        self.note(record.sentence)

    def note(self, text: str) -> None:
        """Tell something the user should know."""
        self._line(f"note: {text}")

    def _line(self, text: str) -> None:
        say(self._console, text)


def say(console: Console, text: str) -> None:
    """Print text as it is: no markup, no colours guessed, no line broken.

    What the console cannot show is spelt out as well.
    """
    text = spelt(text).encode(console.encoding, "backslashreplace").decode(console.encoding)
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def say_columns(console: Console, rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells, in columns that are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say(console, "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def number(value: float | None) -> str:
    """Return a measured number, or a dash where there is none."""
    return "-" if value is None else f"{value:.4f}"


def drop_text(record: CandidateRecord) -> str:
    """Return a drop and its interval."""
    if record.drop_low is None or record.drop_high is None:
        return number(record.drop)
    return f"{number(record.drop)} ({number(record.drop_low)} to {number(record.drop_high)})"


def candidate_cells(record: CandidateRecord) -> tuple[str, str, str, str, str, str]:
    """Return a candidate's cells in the order of `COLUMNS`."""
    where = f" on {record.part}" if record.look is not None or record.stage in ("fp32", "deployed") else ""
    name = record.id + where + ("" if record.kept else " (left out)") + (" (resumed)" if record.resumed else "")
    sqnr = "-" if record.sqnr_db is None else f"{record.sqnr_db:.1f}"
    drop = "-" if record.verdict is Verdict.BASELINE else drop_text(record)
    return name, number(record.value), drop, WORDS[record.verdict][0], sqnr, f"{record.seconds:.1f}"


def _deployed_line(result: RunResult) -> str:
    """Return one line about the exported file in its runtime."""
    found = result.verification
    assert found is not None
    parts = [f"{number(result.deployed)} in {found.runtime}"]
    if found.of_samples is not None:
        parts.append(f"on the first {found.samples} of {found.of_samples} samples")
    if found.agreement is not None:
        parts.append(f"{found.agreement:.2%} as in the simulation")
    if found.differs_by_default and found.by_default is not None and found.by_default.agreement is not None:
        parts.append(f"{found.by_default.agreement:.2%} in its default {found.by_default.precision}")
    if found.layers:
        parts.append(f"{found.integer_layers} of {found.layers} layers on integers")
    if found.speed:
        parts.append(found.speed)
    return ", ".join(parts)


def trial_line(record: TrialRecord) -> str:
    """Return one line about a trial."""
    ranges = "learned" if record.range_learning else "fixed"
    best = f"{number(record.value)} at epoch {record.best_epoch}" if record.best_epoch is not None else "no result"
    settings = f"lr {record.lr:.2g}, {record.epochs} epochs, decay every {record.decay_period}, {ranges} ranges"
    reason = f"; {record.reason}" if record.reason else ""
    return f"trial {record.number} {record.state}: {best} ({settings}, {record.seconds:.1f} s){reason}"


def _total(items: Iterable[object], total: int | None) -> int | None:
    return len(items) if total is None and isinstance(items, Sized) else total


def tell_result(console: Console, result: RunResult, folder: Path) -> None:
    """Say what came out of a run that finished, and where it is."""
    judged = result.winner.sentence if result.winner is not None else ""
    if result.verdict is not None:
        say(console, f"\n{'Gate met' if result.accurate else 'Gate missed'}. {judged or result.verdict.sentence}")
    if result.speed is not None:
        say(console, result.speed.sentence)
    if result.training_error:
        say(Console(stderr=True), f"training failed: {result.training_error}")
    winner = result.winner
    if winner is not None:
        metric = result.gate.metric if result.gate else "metric"
        say(console, f"best     {winner.id}: {metric} {number(winner.value)}, FP32 {number(winner.fp32)}")
        limit = result.gate.max_drop_text if result.gate else ""
        say(console, f"drop     {drop_text(winner)}" + (f", allowed {limit}" if limit else ""))
    if result.verification is not None:
        say(console, f"deployed {_deployed_line(result)}")
    _tell_files(console, folder, "report.html", "export")
    for place, one in enumerate(result.suggestions):
        say(console, f"{'' if place else 'try next':<8} {one.why} ({one.standing}):")
        say(console, f"         {one.command}")


def _tell_files(console: Console, folder: Path, *names: str) -> None:
    """Say where those files of a run folder are that are there."""
    for path in (folder / name for name in names):
        if path.exists():
            say(console, f"{path.stem:<8} {path}")


def tell_unfinished(result: RunResult | None, folder: Path) -> None:
    """Say of a run that did not finish what it has, what remains, and how to go on."""
    console = Console(stderr=True)
    found = unfinished(result) if result is not None else None
    if found is not None:
        say(console, f"\n{found.title}. {found.best}" + (f"\n{found.remaining}" if found.remaining else ""))
    _tell_files(console, folder, "report.html", "log.txt")
    if found is not None:
        say(console, f"go on    {found.command}")
