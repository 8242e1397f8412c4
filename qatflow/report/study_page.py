"""Optuna's plots as a page of their own, `optuna.html`, that opens offline and is interactive.

It carries Plotly's script, 4.8 MB, which is why `report.html` links to it instead of showing them. Figures name colours
by the style's variables and the page's script looks them up, so that they are the report's and follow dark mode. As in
the report, a content security policy lets nothing come from elsewhere; the scripts are named in it by their hash, so
that no other can run.

Importing this module imports Optuna and Plotly.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from hashlib import sha256
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from qatflow.report.charts.study import Plot, parameters, plots
from qatflow.report.html import TEMPLATES, page
from qatflow.report.info import trials_info
from qatflow.report.numbers import compact
from qatflow.results.result import RunResult

HEIGHTS = {"history": 340, "epochs": 400, "parallel": 400, "slices": 340, "importances": 300}
AXIS = {
    "color": "var(--muted)",
    "gridcolor": "var(--line)",
    "linecolor": "var(--faint)",
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 12},
    "ticklabelstandoff": 5,
}
TEMPLATE = {
    "layout": {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--muted)", "size": 12},
        "colorway": ["var(--accent)"],
        "hoverlabel": {"bgcolor": "var(--wash)", "bordercolor": "var(--faint)", "font": {"color": "var(--ink)"}},
        "margin": {"l": 56, "r": 24, "t": 32, "b": 48},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "var(--faint)", "activecolor": "var(--accent)"},
        "xaxis": AXIS,
        "yaxis": AXIS,
    }
}
SCALE = [[0, "var(--line)"], [1, "var(--accent)"]]


def render_study(result: RunResult) -> str:
    """Return the page of Optuna's plots as HTML; the same result gives the same text."""
    drawn = plots(result)
    figures = {plot.id: dressed(plot) for plot in drawn if plot.figure is not None}
    scripts = [get_plotlyjs(), (TEMPLATES / "optuna.js").read_text(encoding="utf-8")] if figures else []
    _, same = parameters(result)
    info = trials_info(result)
    return page(
        "optuna.html.j2",
        name=result.name,
        info=info,
        states=Counter("completed" if line.state == "complete" else line.state for line in info.lines),
        same=[(name, value if isinstance(value, str) else compact(value)) for name, value in same.items()],
        plots=drawn,
        figures=_as_data(figures),
        scripts=[Markup(script) for script in scripts],  # Plotly's and ours: no value of a run is in them
        policy=" ".join([*map(_source, scripts), *_evaluation(figures)]) or "'none'",
    )


def dressed(plot: Plot) -> dict[str, Any]:
    """Return a figure as Plotly's JSON in the report's style; colours are names of variables, `var(--accent)`."""
    if not isinstance(plot.figure, go.Figure):
        message = f"{plot.title} has no figure"
        raise ValueError(message)
    figure: dict[str, Any] = json.loads(plot.figure.to_json())
    layout = figure["layout"]
    for name in ("title", "plot_bgcolor"):
        layout.pop(name, None)
    layout.update(template=TEMPLATE, height=HEIGHTS[plot.id])
    for text in layout.get("annotations", []):
        text.update(font={"color": "var(--muted)"}, bgcolor="var(--paper)")  # lines run behind it
    for shape in layout.get("shapes", []):
        shape["line"] = {"color": "var(--faint)", "width": 1}
    for trace in figure["data"]:
        _colour(trace)
    return figure


def _colour(trace: dict[str, Any]) -> None:
    """Give a trace the colour of its tone, or the report's scale where its colours tell numbers."""
    tone = f"var(--{trace.get('meta', 'muted')})"
    if trace["type"] == "parcoords":
        trace["line"]["colorscale"] = SCALE
        return
    marker = trace.setdefault("marker", {})
    if "colorscale" in marker:
        marker.update(colorscale=SCALE, line={"color": "var(--accent)", "width": 1})
    else:
        marker["color"] = tone
    if trace["type"] == "scatter":
        trace.setdefault("line", {})["color"] = tone


def _as_data(value: object) -> Markup:
    """Return JSON that can stand in a script element: no text in it can end the element."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))


def _evaluation(figures: dict[str, dict[str, Any]]) -> list[str]:
    """Return what a policy must allow for Plotly's `parcoords` (Optuna 4), which makes its WebGL code with `eval`."""
    needed = any(trace["type"] == "parcoords" for figure in figures.values() for trace in figure["data"])
    return ["'unsafe-eval'"] if needed else []


def _source(script: str) -> str:
    """Return a script's name in a content security policy."""
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"
