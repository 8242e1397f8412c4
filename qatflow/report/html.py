"""`RunResult` to one HTML page that opens offline: no script, no font, no picture from elsewhere.

The pictures are inline SVG instead of Plotly's, which would put 4.8 MB of script into every page; see `charts`. Those
of Optuna need it and are on a page of their own (`study_page`), which this one links to where there are trials.
Layer and class names come from models and data, so everything is escaped, and a content security policy forbids the
page to load or run anything should that ever fail.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qatflow.report import numbers, wording
from qatflow.report.charts.choices import choice_chart, choices
from qatflow.report.charts.ladder import ladder_charts, tone_of
from qatflow.report.charts.trials import curve_chart, spot_chart
from qatflow.report.info import best_trial, chosen, has_plots, judged, judged_info, ladder_info, trials_info
from qatflow.results.result import CandidateRecord, RunResult, TensorRecord
from qatflow.results.unfinished import unfinished

WORST_SHOWN = 15
STUDY_PAGE = "optuna.html"
TEMPLATES = Path(__file__).parent / "templates"


class Artefact(NamedTuple):
    """One file that the run wrote."""

    name: str
    path: str
    href: str


def render(result: RunResult, recipe_yaml: str, environment: Mapping[str, Any], precisions: str = "") -> str:
    """Return the report of one run as HTML; the same arguments give the same text.

    Args:
        result: the run.
        recipe_yaml: its resolved recipe as text; empty where it is missing, which the report says.
        environment: what `environment.json` holds; empty where it is missing, which the report says.
        precisions: what `mixed_precision.csv` holds; empty where it is missing.
    """
    chose = any("overrides" in one.notes for one in result.candidates if one.id == "mixed_precision")
    measured = choices(precisions) if chose else []  # the table may be an earlier recipe's
    form = numbers.format_of(result)
    trials = trials_info(result)
    tensors = worst_first(result)
    return page(
        "report.html.j2",
        result=result,
        form=form,
        headline=wording.headline(result),
        stopped=unfinished(result),
        precision=numbers.precision_label(result.tensors),
        allowed=wording.allowed(result.gate, form) if result.gate else numbers.MISSING,
        groups=_groups(result),
        choices=measured,
        choice_chart=choice_chart(measured, form),
        designs=_other_designs(result),
        ladder=ladder_charts(ladder_info(result), form),
        verdicts=ladder_charts(judged_info(result), form),
        curves=curve_chart(trials, form),
        spots=spot_chart(trials, form),
        best_trial=best_trial(result),
        distilled=len({trial.distillation for trial in result.trials}) > 1,
        oscillation=wording.oscillation(result.trials, best_trial(result)),
        study_page=STUDY_PAGE if has_plots(result) else "",
        check=result.verification,
        check_word=wording.check_word(result.verification),
        check_tone=wording.CHECK_TONES[result.verification.verdict] if result.verification else "none",
        deployed=next((one for one in result.candidates if one.stage == "deployed"), None),
        no_check=wording.no_check(result, recipe_yaml),
        no_training=wording.no_training(result, recipe_yaml),
        worst=tensors[:WORST_SHOWN],
        other_tensors=tensors[WORST_SHOWN:],
        artefacts=[Artefact(name, path, relative_href(path)) for name, path in result.artefacts.items()],
        recipe_yaml=recipe_yaml,
        environment=list(flat_items(environment)),
    )


def _groups(result: RunResult) -> list[tuple[str, list[CandidateRecord]]]:
    """Return the rows of the ladder under what they are for."""
    part = result.gate.chosen_on if result.gate else "test"
    groups = [(f"Chosen on {part}", chosen(result)), ("Judged on test", judged(result))]
    return [(title, rows) for title, rows in groups if rows]


def _other_designs(result: RunResult) -> dict[str, str]:
    """Return the designs of the candidates that have another one than the first, in words, by their names."""
    known = [one for one in chosen(result) if one.design is not None]
    return {one.id: one.design.sentence for one in known if one.design and one.design != known[0].design}


def page(template: str, **values: Any) -> str:
    """Return a filled template; every value in it is escaped."""
    return _templates().get_template(template).render(values)


def worst_first(result: RunResult) -> list[TensorRecord]:
    """Return the quantized tensors by what they cost the outputs, or else by their own SQNR; unmeasured ones last."""

    def place(one: TensorRecord) -> tuple[float, float]:
        cost, own = (math.inf if ratio is None else ratio for ratio in (one.output_sqnr_db, one.sqnr_db))
        return cost, own

    return sorted(result.tensors, key=place)


def relative_href(path: str) -> str:
    """Return a link to a path below the page's folder; no text can make it lead to another host or run a script."""
    return "./" + quote(path.replace("\\", "/"))


def flat_items(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested values as dotted keys and texts."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_items(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", " ".join(map(str, value))
        else:
            yield f"{prefix}{key}", numbers.MISSING if value is None else str(value)


@cache
def _templates() -> Environment:
    """Return the templates beside this file, escaping on."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        MISSING=numbers.MISSING,
        badge=wording.badge,
        standing=wording.standing,
        remark=wording.remark,
        notes_text=wording.notes_text,
        samples_text=wording.samples_text,
        changes=wording.changes,
        tone_of=tone_of,
    )
    environment.filters.update(
        compact=numbers.compact,
        decibels=numbers.decibels,
        duration=numbers.duration,
        megabytes=numbers.megabytes,
        moment=numbers.moment,
    )
    return environment
