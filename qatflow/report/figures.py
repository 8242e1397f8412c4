"""The pictures as Plotly figures, for a notebook: zoom, hover and switch lines on and off.

    from qatflow.report.figures import ladder_figure, ladder_info
    ladder_figure(ladder_info(result)).show()

The HTML page does not use them: its SVG (`charts`) shows the same values in a hundredth of the bytes, follows the
reader's dark mode and needs no script.
"""

from __future__ import annotations

import plotly.graph_objects as go

from qatflow.report.info import LadderInfo, Rung, TrialLine, TrialsInfo, ladder_info, trials_info
from qatflow.results.result import Verdict

__all__ = ["ladder_figure", "ladder_info", "search_figure", "trials_figure", "trials_info"]

COLOURS = {
    Verdict.MET: "#1a7f4b",
    Verdict.WITHIN_NOISE: "#9a6700",
    Verdict.MISSED: "#b42318",
    Verdict.ANOMALOUS: "#7a3e9d",
    Verdict.BASELINE: "#4a5560",
}
STRONG, FAINT = "#1f5fbf", "#9aa4ae"


def ladder_figure(info: LadderInfo) -> go.Figure:
    """Draw the metric after every rung with its interval and the gate's limit; left-out rungs are hollow."""
    figure = go.Figure()
    groups = {
        "measured": [rung for rung in info.rungs if not rung.left_out],
        "left out": [rung for rung in info.rungs if rung.left_out],
    }
    for name, rungs in groups.items():
        if rungs:
            figure.add_trace(_rungs_trace(name, rungs))
    if info.limit is not None:
        figure.add_hline(y=info.limit, line_dash="dash", line_color=FAINT, annotation_text="limit of the gate")
    figure.update_xaxes(categoryorder="array", categoryarray=[rung.name for rung in info.rungs])
    return _dressed(figure, "", info.metric)


def trials_figure(info: TrialsInfo) -> go.Figure:
    """Draw the validation metric per epoch for every trial; epoch 0 is the PTQ start, pruned trials are dashed."""
    figure = go.Figure()
    for line in info.lines:
        figure.add_trace(
            go.Scatter(
                x=line.epochs,
                y=line.values,
                name=f"trial {line.number}",
                mode="lines+markers",
                line={
                    "color": STRONG if line.best else FAINT,
                    "width": 3 if line.best else 1.5,
                    "dash": "solid" if line.state == "complete" else "dot",
                },
                hovertext=_about(line),
            )
        )
    return _dressed(figure, "epoch", info.metric)


def search_figure(info: TrialsInfo) -> go.Figure:
    """Draw the best validation metric of every trial over its learning rate, on a log scale."""
    lines = [line for line in info.lines if line.value is not None]
    trace = go.Scatter(
        x=[line.lr for line in lines],
        y=[line.value for line in lines],
        mode="markers",
        hovertext=[_about(line) for line in lines],
        marker={
            "size": 10,
            "color": [STRONG if line.best else FAINT for line in lines],
            "symbol": ["circle" if line.range_learning else "circle-open" for line in lines],
        },
    )
    figure = go.Figure(trace)
    figure.update_xaxes(type="log")
    return _dressed(figure, "learning rate", info.metric)


def _rungs_trace(name: str, rungs: list[Rung]) -> go.Scatter:
    shown = [rung for rung in rungs if rung.value is not None]
    reach = [(rung.value, rung.low, rung.high) for rung in shown]
    return go.Scatter(
        x=[rung.name for rung in shown],
        y=[rung.value for rung in shown],
        name=name,
        mode="markers",
        marker={
            "size": [14 if rung.best else 10 for rung in shown],
            "color": [COLOURS[rung.verdict] for rung in shown],
            "symbol": "circle-open" if name == "left out" else "circle",
        },
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [0 if high is None or value is None else high - value for value, _, high in reach],
            "arrayminus": [0 if low is None or value is None else value - low for value, low, _ in reach],
        },
    )


def _about(line: TrialLine) -> str:
    ranges = "ranges trained" if line.range_learning else "ranges frozen"
    return f"trial {line.number}, {line.state}, learning rate {line.lr:.2e}, {ranges}"


def _dressed(figure: go.Figure, x: str, y: str) -> go.Figure:
    figure.update_layout(template="plotly_white", xaxis_title=x, yaxis_title=y, margin={"t": 30})
    return figure
