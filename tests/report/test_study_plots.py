"""Optuna's plots: they show what the records hold, say why where they are not drawn, and need nothing from outside."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from qatflow.report.charts.axis import marks
from qatflow.report.charts.study import Plot, parameters, plots, study_of
from qatflow.report.html import STUDY_PAGE, TEMPLATES, render
from qatflow.report.info import best_trial, has_plots
from qatflow.report.study_page import dressed, render_study
from qatflow.report.write import write
from qatflow.results.result import EpochRecord, RunResult, TrialRecord

ALL = ["history", "epochs", "parallel", "slices", "importances"]
HOSTILE = "</script><script>alert(1)</script>"


def trial(number: int, value: float | None, state: str = "complete", **changes: Any) -> TrialRecord:
    """Return a trial of three epochs that ends at `value`; its parameters depend on its number."""
    history = [0.5, 0.6, value]
    values: dict[str, Any] = {
        "number": number,
        "state": state,
        "lr": 10.0 ** (-6 + (number * 0.4) % 2.3),
        "epochs": 15 + number % 4,
        "decay_period": 5 + number % 3,
        "range_learning": number % 2 == 0,
        "distillation": number % 5 / 4,
        "value": value,
        "best_epoch": 2 if value is not None else None,
        "seconds": 8.0,
        "history": tuple(
            EpochRecord(epoch=epoch, lr=1e-5, train_loss=1.0, value=one, seconds=4.0)
            for epoch, one in enumerate(history)
        ),
    }
    return TrialRecord.model_validate({**values, **changes})


@pytest.fixture
def searched(met_run: RunResult) -> RunResult:
    """Eight completed trials among failed and pruned ones; number 6 was abandoned and has left no record."""
    values = {0: 0.90, 1: 0.93, 2: 0.91, 5: 0.96, 7: 0.95, 8: 0.92, 9: 0.97, 10: 0.94}
    trials = [trial(number, value) for number, value in values.items()]
    trials += [trial(3, 0.8, "pruned"), trial(4, None, "failed", reason="the loss was not finite")]
    return met_run.model_copy(update={"trials": tuple(sorted(trials, key=lambda one: one.number))})


def with_trials(run: RunResult, *trials: TrialRecord) -> RunResult:
    return run.model_copy(update={"trials": trials})


def lower_is_better(run: RunResult) -> RunResult:
    assert run.gate is not None
    return run.model_copy(update={"gate": run.gate.model_copy(update={"higher_is_better": False})})


def completed(run: RunResult) -> list[TrialRecord]:
    return [one for one in run.trials if one.state == "complete"]


def drawn(run: RunResult) -> list[str]:
    return [plot.id for plot in plots(run) if plot.figure is not None]


def plot(run: RunResult, name: str) -> Plot:
    return next(one for one in plots(run) if one.id == name)


def figure(run: RunResult, name: str) -> Any:
    found = plot(run, name).figure
    assert found is not None
    return found


def data(html: str) -> dict[str, Any]:
    """Return the figures that a page carries."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize("higher", [True, False])
def test_the_study_is_the_records(higher: bool, searched: RunResult) -> None:
    run = searched if higher else lower_is_better(searched)
    study = study_of(run)
    assert study.direction.name == ("MAXIMIZE" if higher else "MINIMIZE")
    assert study.best_trial.number == best_trial(run) == (9 if higher else 0)
    assert study.trials[6].state is TrialState.WAITING
    for one in run.trials:
        found = study.trials[one.number]
        assert (found.number, found.state.name.lower()[:4]) == (one.number, one.state[:4])
        assert found.value == (one.value if one.state == "complete" else None)
        assert found.intermediate_values == {at.epoch: at.value for at in one.history if at.value is not None}
        assert list(found.params.values()) == [
            one.lr, one.epochs, one.decay_period, "trained" if one.range_learning else "frozen", one.distillation
        ]  # fmt: skip
    assert study.trials[0].distributions["learning rate"].log


def test_optuna_says_nothing_and_is_left_as_it_was(searched: RunResult, capsys: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        render_study(searched)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
    assert capsys.readouterr() == ("", "")


def test_eight_trials_have_every_plot(searched: RunResult) -> None:
    assert drawn(searched) == drawn(lower_is_better(searched)) == ALL


def test_two_trials_are_compared_but_importances_would_be_chance(met_run: RunResult) -> None:
    run = with_trials(met_run, trial(0, 0.9), trial(1, 0.95))
    assert drawn(run) == ALL[:4]
    assert plot(run, "importances").about == "Not drawn: it takes 6 completed trials, and there are 2."


def test_one_trial_has_its_epochs(met_run: RunResult) -> None:
    run = with_trials(met_run, trial(0, 0.9))
    assert drawn(run) == ["epochs"]
    assert plot(run, "slices").about == "Not drawn: it takes 2 completed trials, and there is 1."


@pytest.mark.parametrize("trials", [(), (trial(0, None, "failed"),)], ids=["none", "failed"])
def test_nothing_to_plot(trials: tuple[TrialRecord, ...], met_run: RunResult) -> None:
    run = with_trials(met_run, *trials)
    assert not has_plots(run) and drawn(run) == []
    assert all(one.about.startswith("Not drawn: ") for one in plots(run))
    assert "<script>" not in render_study(run) and "script-src 'none'" in render_study(run).replace("&#39;", "'")


def test_a_pruned_trial_alone_has_its_epochs(met_run: RunResult) -> None:
    assert drawn(with_trials(met_run, trial(0, 0.9, "pruned"), trial(1, 0.8, "running"))) == ["epochs"]


def test_trials_without_values(met_run: RunResult) -> None:
    run = with_trials(met_run, trial(0, None, history=()), trial(1, None, "pruned", history=()))
    assert drawn(run) == []
    assert plot(run, "epochs").about == "Not drawn: no epoch was measured."


@pytest.mark.parametrize("higher", [True, False])
def test_the_history_is_that_of_the_records(higher: bool, searched: RunResult) -> None:
    run = searched if higher else lower_is_better(searched)
    best, values = figure(run, "history").data
    assert dict(zip(values.x, values.y, strict=True)) == {one.number: one.value for one in completed(run)}
    so_far = dict(zip(best.x, best.y, strict=True))
    pick = max if higher else min
    for one in completed(run):
        assert so_far[one.number] == pick(other.value for other in completed(run) if other.number <= one.number)


def test_epochs_are_those_of_the_records(searched: RunResult) -> None:
    traces = {trace.name: trace for trace in figure(searched, "epochs").data}
    shown = [one for one in searched.trials if one.state != "failed"]
    assert list(traces) == [f"trial {one.number}" for one in shown]
    for one in shown:
        trace = traces[f"trial {one.number}"]
        assert trace.x == tuple(at.epoch for at in one.history)
        assert trace.y == tuple(at.value for at in one.history)
        assert (trace.meta == "accent") == (one.number == best_trial(searched))
        assert (trace.line.dash == "dash") == (one.state == "pruned")


def test_slices_are_the_records(searched: RunResult) -> None:
    shown = figure(searched, "slices")
    fields = {"learning rate": "lr", "epochs": "epochs", "decay every": "decay_period"}
    fields |= {"distillation weight": "distillation", "activation ranges": "range_learning"}
    records = {one.number: one for one in searched.trials}
    names = [axis.title.text for axis in shown.select_xaxes()]
    assert sorted(names) == sorted(fields)
    for name, trace in zip(names, shown.data, strict=True):
        points = dict(zip(trace.customdata, zip(trace.x, trace.y, strict=True), strict=True))
        assert sorted(points) == [one.number for one in completed(searched)]
        for number, (x, y) in points.items():
            value = getattr(records[number], fields[name])
            assert y == records[number].value
            assert x == ({True: "'trained'", False: "'frozen'"}[value] if isinstance(value, bool) else value)
        assert trace.marker.showscale is False


def test_parallel_coordinates_go_through_the_records(searched: RunResult) -> None:
    shown = figure(searched, "parallel")
    if shown.data[0].type == "parcoords":  # Optuna 4
        values = {one.label: one["values"] for one in shown.data[0].dimensions}
        assert list(values["accuracy"]) == [one.value for one in completed(searched)]
        return
    names = list(shown.layout.xaxis.ticktext)
    assert names[0] == "accuracy" and len(names) == 6
    place = names.index("epochs")
    for line, one in zip(shown.data, completed(searched), strict=True):
        assert line.name == f"trial {one.number}"
        assert (one.value - 0.90) / 0.07 == pytest.approx(line.y[0])
        assert (one.epochs - 15) / 3 == pytest.approx(line.y[place])
    assert [text.text for text in shown.layout.annotations if text.x == place] == ["15", "16", "17", "18"]
    assert {text.text for text in shown.layout.annotations if text.x == names.index("activation ranges")} == {
        "trained", "frozen"
    }  # fmt: skip


@pytest.mark.parametrize("higher", [True, False])
def test_the_better_trial_is_drawn_more_strongly(higher: bool, searched: RunResult) -> None:
    run = searched if higher else lower_is_better(searched)
    lines = figure(run, "parallel").data
    if lines[0].type == "parcoords":
        assert bool(lines[0].line.reversescale) != higher
        return
    strongest = max(lines, key=lambda line: line.opacity)
    assert strongest.name == f"trial {best_trial(run)}" and strongest.opacity == pytest.approx(1.0)


@pytest.mark.parametrize("higher", [True, False])
def test_importances_find_what_decides(higher: bool, met_run: RunResult) -> None:
    trials = [trial(number, 0.9 + 0.01 * (number % 6)) for number in range(24)]
    trials = [one.model_copy(update={"lr": 10.0 ** (-6 + number % 6 / 3)}) for number, one in enumerate(trials)]
    run = with_trials(met_run if higher else lower_is_better(met_run), *trials)
    (bars,) = figure(run, "importances").data
    assert sum(bars.x) == pytest.approx(1.0)
    assert bars.y[-1] == "learning rate" and len(bars.y) == 5


def test_importances_need_a_worse_half(met_run: RunResult) -> None:
    run = with_trials(met_run, *[trial(number, 0.9) for number in range(8)])
    assert drawn(run) == ALL[:4]
    assert plot(run, "importances").about.endswith("the better half of the trials is no better than the rest.")


def test_importances_need_no_scikit_learn(tmp_path: Path, searched: RunResult) -> None:
    (tmp_path / "result.json").write_text(searched.model_dump_json(), encoding="utf-8")
    code = (
        "import sys, pathlib\n"
        "sys.modules['sklearn'] = None\n"
        "from qatflow.report.write import write\n"
        "write(pathlib.Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "importances" in data((tmp_path / STUDY_PAGE).read_text(encoding="utf-8"))


def test_a_parameter_that_does_not_vary_is_told_once(searched: RunResult) -> None:
    same = {"epochs": 15, "range_learning": False, "distillation": 0.0}
    run = with_trials(searched, *[one.model_copy(update=same) for one in searched.trials])
    assert parameters(run) == (
        ["learning rate", "decay every"],
        {"epochs": 15, "activation ranges": "frozen", "distillation weight": 0.0},
    )
    assert [axis.title.text for axis in figure(run, "slices").select_xaxes()] == ["decay every", "learning rate"]
    assert "epochs 15, activation ranges frozen, distillation weight 0." in render_study(run)
    assert sorted(figure(run, "importances").data[0].y) == ["decay every", "learning rate"]


def test_one_parameter_that_varies(searched: RunResult) -> None:
    same = {"epochs": 15, "range_learning": False, "distillation": 0.0, "decay_period": 5}
    run = with_trials(searched, *[one.model_copy(update=same) for one in searched.trials])
    assert drawn(run) == ALL
    (axis,) = figure(run, "slices").select_xaxes()
    assert (axis.type, axis.title.text) == ("log", "learning rate")


def test_no_parameter_varies(searched: RunResult) -> None:
    same = {"lr": 0.0, "epochs": 15, "range_learning": False, "distillation": 0.0, "decay_period": 5}
    run = with_trials(searched, *[one.model_copy(update=same) for one in searched.trials])
    assert drawn(run) == ["history", "epochs"]
    assert plot(run, "parallel").about == "Not drawn: no parameter differs between the completed trials."


@pytest.mark.parametrize(
    ("values", "log", "texts"),
    [
        ([15, 20], False, ["15", "16", "17", "18", "19", "20"]),
        ([5, 6], False, ["5", "6"]),
        ([0, 40], False, ["0", "10", "20", "30", "40"]),
        ([3, 3], False, ["3"]),
        ([0.0, 1.0], False, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([1e-6, 1e-4], True, ["1e−6", "1e−5", "1e−4"]),
        ([1.352e-6, 5.724e-5], True, ["1.4e−6", "1e−5", "5.7e−5"]),
        ([9e-6, 9e-5], True, ["1e−5", "2e−5", "5e−5"]),
        ([1.1e-5, 1.9e-5], True, ["1.1e−5", "1.9e−5"]),
        (["trained", "frozen", "trained"], False, ["trained", "frozen"]),
    ],
)
def test_ticks_are_readable(values: list[Any], log: bool, texts: list[str]) -> None:
    found = marks(values, log)
    assert [mark.text for mark in found] == texts
    assert all(0 <= mark.place <= 1 for mark in found)
    numbers = [mark for mark in found if not isinstance(mark.value, str)]
    assert [float(mark.text.replace("−", "-")) for mark in numbers] == pytest.approx(
        [mark.value for mark in numbers], rel=0.05
    )


def test_the_file_is_beside_the_report_and_linked(trained_folder: Path, trained_run: RunResult) -> None:
    written = write(trained_folder)
    assert written[-2:] == [trained_folder / "report.html", trained_folder / STUDY_PAGE]
    assert f'href="./{STUDY_PAGE}"' in (trained_folder / "report.html").read_text(encoding="utf-8")
    text = (trained_folder / STUDY_PAGE).read_text(encoding="utf-8")
    assert text == render_study(trained_run)
    assert 'href="./report.html"' in text


def test_no_file_without_trials_or_page(met_folder: Path, trained_folder: Path, met_run: RunResult) -> None:
    write(met_folder)
    write(trained_folder, html=False)
    assert not (met_folder / STUDY_PAGE).exists() and not (trained_folder / STUDY_PAGE).exists()
    assert STUDY_PAGE not in render(met_run, "", {})
    assert STUDY_PAGE not in render(with_trials(met_run, trial(0, None, "failed")), "", {})


def test_the_page_needs_nothing_from_outside(searched: RunResult) -> None:
    html = render_study(searched)
    page = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!\./)|url\(|@import|https?:", page)
    assert 'plotlyServerURL: ""' in html and "displaylogo: false" in html


def test_only_scripts_that_the_policy_names_can_run(searched: RunResult) -> None:
    html = render_study(searched)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy and len(scripts) == 2
    allowed = policy[1].replace("&#39;", "'")
    for script in scripts:
        assert f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in allowed
    assert allowed.startswith("default-src 'none'; ")
    script_part = allowed.partition("script-src")[2]
    assert "unsafe-inline" not in script_part
    assert ("unsafe-eval" in script_part) == ("parcoords" in json.dumps(data(html)))


def test_names_cannot_become_markup(searched: RunResult) -> None:
    assert searched.gate is not None
    gate = searched.gate.model_copy(update={"metric": HOSTILE})
    html = render_study(searched.model_copy(update={"gate": gate, "name": HOSTILE}))
    assert HOSTILE not in html
    assert len(re.findall(r"<script>", html)) == 2
    titles = data(html)["history"]["layout"]["yaxis"]["title"]["text"]
    assert titles == "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;"  # Plotly would make tags of `<`


def test_colours_are_those_of_the_style(searched: RunResult) -> None:
    known = set(re.findall(r"(--[a-z]+):", (TEMPLATES / "style.css").read_text(encoding="utf-8")))
    for one in plots(searched):
        text = json.dumps(dressed(one))
        used = set(re.findall(r"var\((--[a-z]+)\)", text))
        assert used and used <= known
        assert not re.search(r"#[0-9a-fA-F]{3,6}\"|rgb\(", text)


def test_a_reason_cannot_be_dressed(met_run: RunResult) -> None:
    with pytest.raises(ValueError, match="Slices has no figure"):
        dressed(plot(met_run, "slices"))


def test_rendering_is_repeatable_and_knows_the_counts(searched: RunResult) -> None:
    html = render_study(searched)
    assert html == render_study(searched)
    assert "10 QAT trials: 8 completed, 1 pruned, 1 failed." in html
    assert "higher is better" in html and "lower is better" in render_study(lower_is_better(searched))
    assert list(data(html)) == ALL
