"""Optuna's own plots of the search, made from the trials that a result holds.

`study.db` may be gone or on another machine, and a rebuilt report has only `result.json`: the trials are put into a
study in memory again, under the names that people read, and `optuna.visualization` draws it. What Optuna writes on its
figures for programmers (`Objective Value`, `'trained'` in quotes, ticks such as 16.2 epochs) is put into the report's
words afterwards; values stay as they are. Colours are not chosen here: a trace's `meta` says which tone it has, and the
page takes it from its style. Failed trials have no value, so that no plot shows them.

Importing this module imports Optuna and Plotly.
"""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from qatflow.report.charts.axis import Value, marks
from qatflow.report.info import best_trial, trials_info
from qatflow.results.result import RunResult, TrialRecord

STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}
RATE, EPOCHS, DECAY, RANGES, DISTILLATION = (
    "learning rate",
    "epochs",
    "decay every",
    "activation ranges",
    "distillation weight",
)
LEAST_FOR_IMPORTANCES = 6
"""Completed trials; with fewer the better half is one or two trials, which is chance."""
PARALLEL = "One line per completed trial, through its value and its parameters; the better the trial, the stronger."


class Plot(NamedTuple):
    """One of Optuna's plots; where it cannot be drawn, `about` says why."""

    id: str
    title: str
    about: str
    figure: go.Figure | None


class _Search(NamedTuple):
    """What every plot is made of."""

    result: RunResult
    study: optuna.Study
    metric: str
    completed: list[FrozenTrial]
    varied: list[str]


def plots(result: RunResult) -> tuple[Plot, ...]:
    """Return Optuna's plots of a run's trials; one that says nothing about these trials has no figure but a reason."""
    study = study_of(result)
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied, _ = parameters(result)
    metric = html.escape(trials_info(result).metric)  # Plotly takes texts for a kind of HTML
    search = _Search(result, study, metric, completed, varied)
    return _history(search), _epochs(search), _parallel(search), _slices(search), _importances(search)


def study_of(result: RunResult) -> optuna.Study:
    """Return the run's trials as an Optuna study in memory, each with its number, parameters, values and state."""
    higher = trials_info(result).higher_is_better
    with _quiet():
        study = optuna.create_study(direction="maximize" if higher else "minimize")
    space, count = _space(result.trials), 0
    for trial in sorted(result.trials, key=lambda trial: trial.number):
        for _ in range(trial.number - count):  # Optuna counts for itself; abandoned trials have left gaps
            study.add_trial(optuna.create_trial(state=TrialState.WAITING))
        study.add_trial(_frozen(trial, space))
        count = max(count, trial.number) + 1
    return study


def parameters(result: RunResult) -> tuple[list[str], dict[str, Value]]:
    """Return which parameters differ between the completed trials, and the values of those that do not."""
    values: dict[str, list[Value]] = {}
    for trial in result.trials:
        if _state(trial) is TrialState.COMPLETE:
            for name, value in _params(trial).items():
                values.setdefault(name, []).append(value)
    varied = [name for name, seen in values.items() if len(set(seen)) > 1]
    return varied, {name: seen[0] for name, seen in values.items() if name not in varied}


def _history(search: _Search) -> Plot:
    title = "Optimization history"
    if missing := _missing(search, least=2, choice=False):
        return Plot("history", title, missing, None)
    figure = visualization.plot_optimization_history(search.study, target_name=search.metric)
    values, best = figure.data[:2]
    values.update(name="completed trial", marker_size=8, meta="muted", hovertemplate="trial %{x}: %{y}<extra></extra>")
    best.update(name="best so far", meta="accent", line_shape="hv", hoverinfo="skip")
    figure.data = (best, values)  # Optuna's third trace is of trials outside constraints, which there are not
    last = max(trial.number for trial in search.completed)
    figure.update_xaxes(title_text="trial", tickvals=[mark.value for mark in marks([0, last])])
    about = "The best value of each completed trial in the order they were begun, and the best up to then."
    return Plot("history", title, about, figure)


def _epochs(search: _Search) -> Plot:
    title = "Intermediate values"
    shown = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    trials = [trial for trial in search.study.get_trials(deepcopy=False, states=shown) if trial.intermediate_values]
    if not trials:
        return Plot("epochs", title, "Not drawn: no epoch was measured.", None)
    figure = visualization.plot_intermediate_values(search.study)
    strong = best_trial(search.result)
    for trace, trial in zip(figure.data, trials, strict=True):
        best, about = trial.number == strong, f"trial {trial.number}"
        trace.update(name=about, meta="accent" if best else "faint", zorder=int(best))
        trace.update(line={"width": 3 if best else 1.5, "dash": None if trial.state is TrialState.COMPLETE else "dash"})
        trace.update(hovertemplate=f"{about}, epoch %{{x}}: %{{y}}<extra></extra>")
    last = max(max(trial.intermediate_values) for trial in trials)
    figure.update_xaxes(title_text="epoch", tickvals=[mark.value for mark in marks([0, last])])
    figure.update_yaxes(title_text=search.metric)
    about = (
        "Every trial epoch by epoch; epoch 0 is the PTQ candidate that it starts from. "
        "The best trial is drawn strongly, pruned ones are dashed."
    )
    return Plot("epochs", title, about, figure)


def _parallel(search: _Search) -> Plot:
    title = "Parallel coordinates"
    if missing := _missing(search, least=2):
        return Plot("parallel", title, missing, None)
    figure = visualization.plot_parallel_coordinate(search.study, params=search.varied, target_name=search.metric)
    higher = search.study.direction == optuna.study.StudyDirection.MAXIMIZE
    lines = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "lines"]
    if not lines:  # Optuna 4 leaves the drawing to Plotly's `parcoords`
        figure.update_traces(line_showscale=False, labelangle=0, labelside="top")
        figure.update_layout(margin={"t": 64, "r": 64})
        return Plot("parallel", title, PARALLEL, figure)
    for trace, trial in zip(lines, search.completed, strict=True):
        place = trace.y[0] if higher else 1 - trace.y[0]
        trace.update(name=f"trial {trial.number}", meta="accent", opacity=0.3 + 0.7 * place, line_width=2)
        trace.update(hovertemplate=f"trial {trial.number}<br>%{{customdata[0]}}: %{{customdata[1]}}<extra></extra>")
    figure.data = lines  # the last one held a colour bar, which the first axis makes needless
    figure.layout.annotations = list(_axis_texts(search, figure.layout.xaxis.ticktext))
    return Plot("parallel", title, PARALLEL, figure)


def _slices(search: _Search) -> Plot:
    title = "Slices"
    if missing := _missing(search, least=2):
        return Plot("slices", title, missing, None)
    figure = visualization.plot_slice(search.study, params=search.varied, target_name=search.metric)
    axes = list(figure.select_xaxes())
    for axis, trace in zip(axes, figure.data, strict=True):
        name = axis.title.text
        trace.update(customdata=trace.marker.color, marker_showscale=False, marker_size=9)
        trace.update(hovertemplate=f"trial %{{customdata}}<br>{name}: %{{x}}<br>{search.metric}: %{{y}}<extra></extra>")
        shown = marks([trial.params[name] for trial in search.completed], axis.type == "log")
        places = [repr(mark.value) if name == RANGES else mark.value for mark in shown]  # Optuna quotes words
        axis.update(tickvals=places, ticktext=[mark.text for mark in shown])
        if name == RANGES:
            axis.update(range=[-0.5, len(shown) - 0.5])
    figure.update_layout(width=None)
    about = "The value of every completed trial over each parameter by itself; the later the trial, the stronger."
    return Plot("slices", title, about, figure)


def _importances(search: _Search) -> Plot:
    title = "Parameter importances"
    if missing := _missing(search, least=LEAST_FOR_IMPORTANCES):
        return Plot("importances", title, missing, None)
    if not _halves_differ(search):
        return Plot("importances", title, "Not drawn: the better half of the trials is no better than the rest.", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # Optuna 4 calls PED-ANOVA so
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
    figure = visualization.plot_param_importances(
        search.study, evaluator=evaluator, params=search.varied, target_name=search.metric
    )
    figure.update_traces(meta="accent", hovertemplate="%{y}: %{x:.3f}<extra></extra>")
    figure.update_xaxes(title_text="importance")
    figure.update_yaxes(title_text="")
    about = (
        "How much each parameter decides whether a trial is among the better half (PED-ANOVA), as shares of 1. "
        f"From {len(search.completed)} completed trials, this is a hint and no proof."
    )
    return Plot("importances", title, about, figure)


def _missing(search: _Search, least: int, choice: bool = True) -> str:
    """Return what a plot lacks that takes so many trials, and a choice between them; empty where it has all."""
    count = len(search.completed)
    if count < least:
        return f"Not drawn: it takes {least} completed trials, and there {'is' if count == 1 else 'are'} {count}."
    if choice and not search.varied:
        return "Not drawn: no parameter differs between the completed trials."
    return ""


def _halves_differ(search: _Search) -> bool:
    """Tell whether a trial is worse than the better half; many that end on their first epoch have equal values."""
    sign = 1 if search.study.direction == optuna.study.StudyDirection.MINIMIZE else -1
    losses = sorted(sign * trial.value for trial in search.completed if trial.value is not None)
    return losses[-1] > losses[math.ceil(len(losses) / 2) - 1]


def _frozen(trial: TrialRecord, space: dict[str, BaseDistribution]) -> FrozenTrial:
    """Return a record as Optuna's own kind of trial."""
    state = _state(trial)
    return optuna.create_trial(
        state=state,
        value=trial.value if state is TrialState.COMPLETE else None,
        params=_params(trial),
        distributions=space,
        intermediate_values={one.epoch: one.value for one in trial.history if one.value is not None},
    )


def _state(trial: TrialRecord) -> TrialState:
    """Return a trial's state in Optuna's terms, where a completed trial always has a value."""
    if trial.state == "complete" and trial.value is None:
        return TrialState.FAIL
    return STATES[trial.state]


def _params(trial: TrialRecord) -> dict[str, Value]:
    return {
        RATE: trial.lr,
        EPOCHS: trial.epochs,
        DECAY: trial.decay_period,
        RANGES: "trained" if trial.range_learning else "frozen",
        DISTILLATION: trial.distillation,
    }


def _space(trials: Sequence[TrialRecord]) -> dict[str, BaseDistribution]:
    """Return the space that the trials span: the recipe's own bounds are not in the result."""
    rates = [trial.lr for trial in trials] or [1.0]
    weights = [trial.distillation for trial in trials] or [0.0]
    epochs = [trial.epochs for trial in trials] or [1]
    periods = [trial.decay_period for trial in trials] or [1]
    return {
        RATE: FloatDistribution(min(rates), max(rates), log=min(rates) > 0),
        EPOCHS: IntDistribution(min(epochs), max(epochs)),
        DECAY: IntDistribution(min(periods), max(periods)),
        RANGES: CategoricalDistribution(["frozen", "trained"]),
        DISTILLATION: FloatDistribution(min(weights), max(weights)),
    }


def _axis_texts(search: _Search, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the ticks of the parallel coordinates as Plotly's annotations, the metric's axis first."""
    columns: list[list[Any]] = [[trial.value for trial in search.completed]]
    columns += [[trial.params[name] for trial in search.completed] for name in names[1:]]
    for axis, (name, column) in enumerate(zip(names, columns, strict=True)):
        for mark in marks(column, name == RATE and min(column) > 0):
            place = {"x": axis, "y": mark.place, "xanchor": "right", "xshift": -5}
            yield {**place, "text": mark.text, "showarrow": False}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from telling that it has made a study, which is not the user's."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
