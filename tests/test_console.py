"""What a run looks like: bars and a table in a terminal, plain lines elsewhere, and never a name read as markup."""

import re
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from qatflow.report.console import LINE_EVERY, PlainProgress, RichProgress, say, shown_on
from qatflow.results.progress import Progress
from qatflow.results.result import CandidateRecord, TrialRecord, Verdict

CONTROL = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")


def console(terminal: bool) -> Console:
    return Console(file=StringIO(), force_terminal=terminal, width=100, height=40, _environ={"TERM": "xterm"})


def text_of(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def candidate(**changes: Any) -> CandidateRecord:
    values: dict[str, Any] = {
        "id": "equalize",
        "stage": "ptq",
        "value": 0.9712,
        "fp32": 0.9782,
        "drop": 0.007,
        "drop_low": -0.001,
        "drop_high": 0.02,
        "verdict": Verdict.WITHIN_NOISE,
        "passed": True,
        "sqnr_db": 25.14,
        "kept": True,
        "seconds": 1.55,
    }
    return CandidateRecord(**{**values, **changes})


TRIAL = TrialRecord(
    number=3,
    state="complete",
    lr=1e-3,
    epochs=15,
    decay_period=5,
    range_learning=True,
    value=0.97,
    best_epoch=12,
    seconds=33.2,
)
BASELINE = candidate(id="fp32", verdict=Verdict.BASELINE, drop=0.0, drop_low=None, drop_high=None, sqnr_db=None)


def tell(progress: Progress) -> None:
    progress.stage("naive: quantize")
    assert list(progress.track([1, 2, 3], "calibrate")) == [1, 2, 3]
    progress.candidate(BASELINE)
    progress.candidate(candidate(id="[red]mine[/red]", kept=False, verdict=Verdict.MISSED))
    progress.trial(TRIAL)
    progress.note("a file named :smile: [bold]x")


def test_plain_lines() -> None:
    out = console(terminal=False)
    with shown_on(out) as progress:
        assert isinstance(progress, PlainProgress)
        tell(progress)
    assert text_of(out).splitlines() == [
        "naive: quantize",
        "fp32: 0.9712, 1.6 s",
        "[red]mine[/red] (left out): 0.9712, drop 0.0070 (-0.0010 to 0.0200), missed, SQNR 25.1 dB, 1.6 s",
        "trial 3 complete: 0.9700 at epoch 12 (lr 0.001, 15 epochs, decay every 5, learned ranges, 33.2 s)",
        "note: a file named :smile: [bold]x",
    ]


def test_a_terminal_gets_a_table_and_bars() -> None:
    out = console(terminal=True)
    with shown_on(out) as progress:
        assert isinstance(progress, RichProgress)
        tell(progress)
    written = text_of(out)
    assert CONTROL.search(written)
    final = CONTROL.sub("", written).replace("\r", "")
    for expected in (
        "• naive: quantize",
        "drop (interval)",
        "[red]mine[/red] (left out)",
        "0.0070 (-0.0010 to 0.0200)",
    ):
        assert expected in final
    assert "a file named :smile: [bold]x" in final


def test_a_bar_shows_while_its_loop_runs_and_goes_away() -> None:
    out = console(terminal=True)
    with RichProgress(out) as progress:
        for done, _ in enumerate(progress.track(iter("abcd"), "layers", total=4)):
            out.file.truncate(0)
            progress.candidate(candidate(id=f"c{done}"))
            assert f"{done}/4" in text_of(out)
        out.file.truncate(0)
        progress.candidate(candidate(id="last"))
    assert "layers" not in text_of(out)


def test_a_bar_goes_away_when_its_loop_fails() -> None:
    out = console(terminal=True)
    with RichProgress(out) as progress:
        with pytest.raises(ZeroDivisionError):
            for number in progress.track([0], "layers"):
                1 / number
        out.file.truncate(0)
        progress.candidate(candidate())
    assert "layers" not in text_of(out)


def test_plain_loops_say_little_and_not_often() -> None:
    out = console(terminal=False)
    now = 0.0
    progress = PlainProgress(out, clock=lambda: now)
    for _ in progress.track(range(10), "layers"):
        now += LINE_EVERY / 2 + 0.1
    assert text_of(out).splitlines() == [f"layers: {done}/10 ({done}0%)" for done in (2, 4, 6, 8, 10)]


def test_a_loop_of_unknown_length() -> None:
    out = console(terminal=False)
    now = 0.0
    progress = PlainProgress(out, clock=lambda: now)
    for _ in progress.track(iter("ab"), "layers"):
        now += LINE_EVERY
    assert text_of(out).splitlines() == ["layers: 1", "layers: 2"]


def test_a_dumb_terminal_gets_plain_lines() -> None:
    dumb = Console(file=StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    with shown_on(dumb) as progress:
        assert isinstance(progress, PlainProgress)


def test_long_lines_are_not_broken() -> None:
    out = console(terminal=False)
    say(out, "word " * 100)
    assert text_of(out) == "word " * 100 + "\n"


def test_numbers_that_were_not_measured_are_dashes() -> None:
    out = console(terminal=False)
    PlainProgress(out).candidate(candidate(value=None, drop=None, drop_low=None, drop_high=None, sqnr_db=None))
    assert text_of(out) == "equalize: -, 1.6 s\n"


def test_a_failed_trial_says_why() -> None:
    out = console(terminal=False)
    failed = TRIAL.model_copy(update={"state": "failed", "best_epoch": None, "value": None, "reason": "loss is NaN"})
    PlainProgress(out).trial(failed)
    assert text_of(out).startswith("trial 3 failed: no result (lr 0.001,")
    assert text_of(out).endswith("; loss is NaN\n")
