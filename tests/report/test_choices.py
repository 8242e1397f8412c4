"""The table of `mixed_precision` in the report: read as it was written, and left out where it is damaged."""

from pathlib import Path

import pytest

from qatflow.report.charts.choices import Choice, choice_chart, choices
from qatflow.report.html import render
from qatflow.report.numbers import MetricFormat, format_of
from qatflow.results.result import RunResult
from qatflow.results.tables import write_rows

ROWS = [
    Choice(0.0, 0, 0.9, 20.0, 21.0, False, "{}"),
    Choice(0.05, 2, 0.97, 25.5, float("inf"), True, "{features.0: float, <b>add_3</b>: a16}"),
]


@pytest.fixture
def text(tmp_path: Path) -> str:
    write_rows(tmp_path / "mixed_precision.csv", [one._asdict() for one in reversed(ROWS)])
    return (tmp_path / "mixed_precision.csv").read_text()


def test_it_is_read_as_it_was_written_the_cheapest_first(text: str) -> None:
    assert choices(text) == ROWS


@pytest.mark.parametrize("damaged", ["", "cost\n1\n", "cost,tensors,value\nx,y,z\n", "\x00", '"', "a,b\n1,2,3,4\n"])
def test_a_damaged_table_is_left_out(damaged: str) -> None:
    assert choices(damaged) == []


def test_a_picture_takes_two_choices(form: MetricFormat) -> None:
    chart = choice_chart(ROWS, form)
    assert chart is not None
    assert [spot.tone for spot in chart.spots] == ["complete", "best"]
    assert chart.spots[0].at.x < chart.spots[1].at.x
    assert chart.spots[0].at.y > chart.spots[1].at.y  # downwards
    assert choice_chart(ROWS[:1], form) is None


def test_the_report_shows_every_choice_escaped(met_run: RunResult, text: str) -> None:
    first = met_run.candidates[-1].model_copy(update={"id": "mixed_precision", "notes": {"overrides": "{}"}})
    mixed = met_run.model_copy(update={"candidates": (*met_run.candidates, first)})
    page = render(mixed, "", {}, text)
    assert "features.0: float" in page
    assert "<b>add_3" not in page
    assert "Mixed precision" not in render(mixed, "", {})


def test_a_table_that_an_earlier_recipe_left_is_not_shown(met_run: RunResult, text: str) -> None:
    assert "Mixed precision" not in render(met_run, "", {}, text)


@pytest.fixture
def form(met_run: RunResult) -> MetricFormat:
    return format_of(met_run)
