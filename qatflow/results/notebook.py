"""A result as a notebook shows it: one line, and the ladder as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from qatflow.results.result import CandidateRecord, RunResult, Verdict
from qatflow.results.unfinished import unfinished

HEADINGS = ("candidate", "on", "{metric}", "drop", "interval", "verdict", "SQNR dB", "design")


def summary(result: RunResult) -> str:
    """Return a result in one line: name, verdict, winner and folder."""
    open_yet = unfinished(result)
    verdict = open_yet.title if open_yet is not None else "gate met" if result.accurate else "gate missed"
    said = f"{result.name}: {verdict[:1].lower()}{verdict[1:]}"
    said += ", too slow" if result.too_slow else ""
    best = result.winner
    if best is not None:
        metric = result.gate.metric if result.gate is not None else "metric"
        said += f"; {best.id}: {metric} {_number(best.value)}, FP32 {_number(best.fp32)}, drop {_number(best.drop)}"
    return said + (f"; in {result.folder}" if result.folder is not None else "")


def ladder_table(result: RunResult) -> str:
    """Return the summary and one row a candidate, as HTML without styles of its own."""
    metric = result.gate.metric if result.gate is not None else "metric"
    head = _row("th", (heading.format(metric=metric) for heading in HEADINGS))
    rows = "".join(_row("td", _cells(record), bold=_is_winner(result, record)) for record in result.candidates)
    return f"<p>{escape(summary(result))}</p><table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _is_winner(result: RunResult, record: CandidateRecord) -> bool:
    return record is result.winner


def _cells(record: CandidateRecord) -> Iterator[str]:
    baseline = record.verdict is Verdict.BASELINE
    yield record.id + ("" if record.kept else " (left out)")
    yield record.part
    yield _number(record.value)
    yield "" if baseline else _number(record.drop)
    known = record.drop_low is not None and record.drop_high is not None
    yield f"{_number(record.drop_low)} to {_number(record.drop_high)}" if known else ""
    yield "" if baseline else record.verdict.value.replace("_", " ")
    yield "" if record.sqnr_db is None else f"{record.sqnr_db:.1f}"
    yield "" if record.design is None else record.design.sentence


def _row(tag: str, cells: Iterable[str], bold: bool = False) -> str:
    said = (f"<b>{escape(cell)}</b>" if bold else escape(cell) for cell in cells)
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in said)}</tr>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
