"""The page: what it says and in which order, that no name becomes markup, and that it needs nothing from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from qatflow.report.html import flat_items, relative_href, render, worst_first
from qatflow.results.result import (
    FloatLayer,
    FloatTensor,
    LatencyRecord,
    OutputRecord,
    RunResult,
    TensorDifference,
    TensorRecord,
    Verdict,
    Verification,
)

SCRIPT = "<script>alert(1)</script>"
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """The parsed page: tags with attributes in order, and text without the styles; fails where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.styles: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        (self.styles if self._open[-1:] == ["style"] else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}


def page_of(result: RunResult, recipe: str = "name: x\n", environment: dict[str, Any] | None = None) -> Page:
    return Page(render(result, recipe, {"python": "3.11"} if environment is None else environment))


def test_the_verdict_comes_first_then_the_ladder(met_run: RunResult) -> None:
    text = page_of(met_run).text
    headings = [
        "Gate met",
        "Best candidate",
        "Ladder Every",
        "Quantization-aware training A rung",
        "Quantized tensors Of",
    ]
    headings += ["Left in float layer", "Timings load", "Files weights", "Recipe The resolved", "Environment python"]
    places = [text.index(heading) for heading in headings]
    assert places == sorted(places)


def test_the_verdict_has_all_a_reader_needs(met_run: RunResult) -> None:
    head = page_of(met_run).text.partition("Every candidate in the order")[0]
    for piece in (
        Verdict.MET.sentence,
        "FP32 accuracy 0.9859",
        "INT8 accuracy 0.9815",
        "Best candidate equalize",
        "Drop +0.0044 95 % interval −0.0001 to +0.0089",
        "Allowed drop +0.0100",
        "540 samples",
        "accuracy, higher is better",
        "finished, 21 s",
        "started 2026-01-31 12:00 UTC",
    ):
        assert piece in head


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict(verdict: Verdict, met_run: RunResult) -> None:
    page = page_of(met_run.model_copy(update={"verdict": verdict}))
    assert verdict.sentence in page.text
    assert ("section", {"class": f"verdict {verdict.value}", "id": "verdict"}) in page.tags
    assert not any(attrs.get("id") == "status" for _, attrs in page.tags)


@pytest.mark.parametrize(
    ("status", "tone", "title"),
    [
        ("running", "none", "Unfinished: the gate is not decided"),
        ("interrupted", "none", "Stopped before the gate was decided"),
        ("failed", "failed", "Failed before the gate was decided"),
    ],
)
def test_a_run_that_did_not_finish_has_no_verdict(status: str, tone: str, title: str, met_run: RunResult) -> None:
    command = "python -m qatflow recipe=mine 'trust=[my_package]' run.dir=here"
    changes = {"status": status, "error": "disk is full", "remaining": ("adaround", "export"), "command": command}
    page = page_of(met_run.model_copy(update={**changes, "verdict": Verdict.MISSED, "passed": False}))
    head = page.text.partition("Every candidate in the order")[0]
    assert f"{title} Best so far: equalize, accuracy 0.9815 on test, FP32 0.9859, drop 0.0044 (allowed: 0.01);" in head
    assert ("section", {"class": f"verdict {tone}", "id": "verdict"}) in page.tags
    for said in ("disk is full", "What remains: adaround, export.", command):
        assert said in head
    assert "Gate missed" not in page.text


@pytest.mark.parametrize(
    ("status", "title"),
    [
        ("running", "Unfinished: the gate is not decided"),
        ("interrupted", "Stopped before the gate was decided"),
        ("failed", "Failed before the gate was decided"),
        ("finished", "No verdict"),
    ],
)
def test_a_run_without_a_candidate(status: str, title: str, empty_run: RunResult) -> None:
    text = page_of(empty_run.model_copy(update={"status": status})).text
    assert f"{title} No candidate was measured." in text
    assert "Nothing was measured." in text


def test_a_strict_gate_says_that_noise_does_not_pass(trained_run: RunResult) -> None:
    winner = trained_run.candidates[-1].model_copy(update={"passed": False})
    candidates = (*trained_run.candidates[:-1], winner)
    gate = trained_run.gate.model_copy(update={"strict": True}) if trained_run.gate else None
    run = trained_run.model_copy(update={"passed": False, "candidates": candidates, "gate": gate})
    text = page_of(run).text
    assert "Gate missed, within noise" in text
    assert "The gate is strict, so this does not pass." in text
    assert "within noise, not passed" in text


def test_a_relative_gate_is_shown_both_ways(met_run: RunResult) -> None:
    gate = met_run.gate.model_copy(update={"max_drop": 0.009859, "max_drop_text": "1%"}) if met_run.gate else None
    assert "Allowed drop +0.0099 (1% of FP32)" in page_of(met_run.model_copy(update={"gate": gate})).text


def test_the_ladder_says_what_was_left_out_and_why(trained_run: RunResult) -> None:
    text = page_of(trained_run).text
    row = re.search(r"adaround 0\.5611.*?qat best", text)
    assert row is not None
    assert "+0.4248 +0.3948 to +0.4548 missed left out 21.5 3.2 s left out: worse than equalize" in row.group()
    assert "layers: 17, mean error: 0.01235" in row.group()
    assert "taken from an earlier start" in text


def test_missing_numbers_are_dashes(met_run: RunResult) -> None:
    nothing = {"value": None, "drop": None, "drop_low": None, "drop_high": None, "sqnr_db": None}
    broken = met_run.candidates[1].model_copy(update=nothing)
    run = met_run.model_copy(update={"candidates": (broken,), "best": "naive", "fp32": None, "deployed": None})
    text = page_of(run).text
    assert "naive best – – – ● missed".replace("● ", "") in text
    assert "None" not in text.replace("None: every", "") and "nan" not in text.lower().split()


def test_the_deployed_file_is_shown_where_it_was_measured(met_run: RunResult) -> None:
    assert "No ONNX file was written, so none was run." in page_of(met_run).text
    found = Verification(
        file="export/model.onnx",
        runtime="ONNX Runtime 1.32.0",
        processor="Some Xeon (avx2)",
        is_target=True,
        exact_on="every processor",
        weights="uint8",
        samples=1000,
        agreement=0.998,
        sqnr_db=41.5,
        compared=30,
        worst=(
            TensorDifference(
                tensor="conv2d_3", layer="<b>block</b>", differing=0.77, steps=47, sqnr_db=9.0, agrees=False
            ),
            TensorDifference(tensor="relu", layer="stem", differing=0.0, steps=0, sqnr_db=300.0, agrees=True),
        ),
        layers=20,
        integer_layers=19,
        float_layers=(FloatLayer(layer="up", op="ConvTranspose", reason="ONNX Runtime has no integer kernel"),),
        latency=LatencyRecord(batch=1, int8=2.5, int8_quartiles=(2.4, 2.7), fp32=5.0, fp32_quartiles=(4.9, 5.2)),
        bytes=3_900_000,
        fp32_bytes=14_000_000,
    )
    text = page_of(met_run.model_copy(update={"deployed": 0.98, "verification": found})).text
    assert "Exported file 0.9800 ONNX Runtime 1.32.0: disagrees with the simulation" in text
    assert "ONNX Runtime 1.32.0 computes conv2d_3 in another way than the simulation." in text
    assert "99.80 % agree outputs 41.5 dB, 1000 samples" in text
    assert "19 of 20" in text
    assert "2.5 ms FP32 5 ms: 2.00 times as fast" in text
    assert "3.9 MB FP32 14 MB" in text
    assert "<b>block</b> conv2d_3 77.0000 % 47 steps 9.0 disagrees" in text
    assert "relu 0.0000 %" not in text
    assert "up ConvTranspose ONNX Runtime has no integer kernel" in text


def test_a_model_that_is_too_small_to_time_is_not_called_slow(met_run: RunResult) -> None:
    latency = LatencyRecord(
        batch=1, int8=0.14, int8_quartiles=(0.1, 0.2), fp32=0.04, fp32_quartiles=(0.03, 0.05), int8_of_two=0.16
    )
    found = Verification(
        file="export/model.onnx",
        runtime="ONNX Runtime 1.32.0",
        processor="x",
        is_target=True,
        exact_on="every processor",
        weights="uint8",
        samples=1000,
        agreement=1.0,
        sqnr_db=41.5,
        compared=0,
        latency=latency,
        bytes=1,
    )
    text = page_of(met_run.model_copy(update={"verification": found})).text
    assert "FP32 0.04 ms: too small to time, most of a call is the overhead of ONNX Runtime 1.32.0 itself" in text
    assert "times as fast" not in text
    assert "slower" not in text


def test_trials_are_listed_and_drawn(trained_run: RunResult) -> None:
    page = page_of(trained_run)
    assert "1 – – 0.0001 4 5 frozen failed 16 s the loss was not finite" in page.text
    assert "2 0.9739 20 1e−5 20 5 trained best" in page.text
    assert sum(attrs.get("class") == "curve" for _, attrs in page.tags) == 3
    assert "No trial" not in page.text


def test_distillation_is_a_column_where_trials_differ_in_it(trained_run: RunResult) -> None:
    assert "distillation" not in page_of(trained_run).text
    trials = [one.model_copy(update={"distillation": one.number / 3}) for one in trained_run.trials]
    text = page_of(trained_run.model_copy(update={"trials": tuple(trials)})).text
    assert "decay every distillation activation ranges" in text
    assert "0 0.9505 16 1e−6 16 5 0 trained complete" in text
    assert "2 0.9739 20 1e−5 20 5 0.6667 trained best" in text


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        ({0: (0.005, 0.0), 2: (0.005, 0.0)}, None),
        ({2: (0.0131, 0.0)}, "1.31 % of the weights of trial 2, the best, oscillated between two steps of the grid."),
        ({2: (0.002, 0.01)}, "0.20 % of the weights of trial 2, the best, oscillated between two steps of the grid, "
         "and 1.00 % were frozen because they had."),
        ({0: (0.02, 0.0)}, "none of the weights of trial 2, the best, oscillated between two steps of the grid."),
    ],
)  # fmt: skip
def test_oscillations_are_told_where_there_are_many(
    shares: dict[int, tuple[float, float]], sentence: str | None, trained_run: RunResult
) -> None:
    trials = []
    for one in trained_run.trials:
        oscillating, frozen = shares.get(one.number, (0.0, 0.0))
        last = one.history[-1].model_copy(update={"oscillating": oscillating, "frozen": frozen})
        trials.append(one.model_copy(update={"history": (*one.history[:-1], last)}))
    text = page_of(trained_run.model_copy(update={"trials": tuple(trials)})).text
    assert (f"In its last epoch, {sentence}" in text) if sentence else ("oscillated" not in text)


def test_oscillations_of_no_trial_in_particular(trained_run: RunResult) -> None:
    wild = trained_run.trials[1].history[0].model_copy(update={"oscillating": 0.5})
    failed = trained_run.trials[1].model_copy(update={"history": (wild,)})
    run = trained_run.model_copy(update={"trials": (failed,), "candidates": trained_run.candidates[:-1]})
    assert "oscillated" not in page_of(run).text


@pytest.mark.parametrize(
    ("recipe", "changes", "sentence"),
    [
        ("", {}, "A rung met the gate, so no training was needed."),
        ("qat: {when: never}", {}, "The recipe does not train (qat.when: never)."),
        ("qat: {when: always}", {}, "No trial was recorded."),
        ("", {"passed": False, "status": "interrupted"}, "No trial had finished by then."),
        ("{ not yaml", {"passed": False}, "No trial was recorded."),
    ],
)
def test_no_trials_are_explained(recipe: str, changes: dict[str, Any], sentence: str, met_run: RunResult) -> None:
    assert sentence in page_of(met_run.model_copy(update=changes), recipe).text


def test_worst_tensors_come_first_and_the_rest_folds_away(met_run: RunResult) -> None:
    order = worst_first(met_run)
    known = [tensor.sqnr_db for tensor in order if tensor.sqnr_db is not None]
    assert known == sorted(known) and order[-1].sqnr_db is None
    page = page_of(met_run)
    assert "The other 9" in page.text
    before, _, after = page.text.partition("The other 9")
    assert "weight features.0.conv weight – 12.5 int8, symmetric 32 0.00125 to 0.0115 −1.5 to 1.5 0" in before
    assert "features.11.conv" in after and "features.11.conv" not in before


def test_files_that_are_missing_are_said_to_be(met_run: RunResult) -> None:
    text = page_of(met_run, "", {}).text
    assert "The run folder has no recipe.yaml." in text
    assert "The run folder has no environment.json." in text


def hostile(run: RunResult) -> RunResult:
    """Put markup wherever a name can come from a model, data or a recipe."""
    tensor = run.tensors[0].model_dump() | {"layer": SCRIPT, "tensor": SCRIPT}
    left = FloatTensor(layer=SCRIPT, tensor=SCRIPT, op=SCRIPT, reason=SCRIPT)
    gate = run.gate.model_copy(update={"metric": SCRIPT, "max_drop_text": f"{SCRIPT}%"}) if run.gate else None
    worse = {"id": SCRIPT, "reason": SCRIPT, "notes": {SCRIPT: SCRIPT}}
    return run.model_copy(
        update={
            "name": SCRIPT,
            "description": SCRIPT,
            "status": "failed",
            "error": SCRIPT,
            "gate": gate,
            "candidates": tuple(one.model_copy(update=worse) for one in run.candidates),
            "best": SCRIPT,
            "trials": tuple(one.model_copy(update={"reason": SCRIPT}) for one in run.trials),
            "tensors": (TensorRecord.model_validate(tensor),),
            "float_tensors": (left,),
            "timings": {SCRIPT: 1.0},
            "artefacts": {SCRIPT: f'"onclick={SCRIPT}', "link": "javascript:alert(1)", "host": "//example.com/x"},
            "notes": (SCRIPT,),
            "export_notes": {SCRIPT: SCRIPT},
            "started": SCRIPT,
        }
    )


def test_names_cannot_become_markup(trained_run: RunResult) -> None:
    html = render(hostile(trained_run), f"name: {SCRIPT}", {SCRIPT: {SCRIPT: [SCRIPT]}})
    page = Page(html)
    assert "<script" not in html.lower()
    assert "script" not in page.names()
    assert page.text.count(SCRIPT) > 25
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]


def test_notes_are_as_they_were_told(trained_run: RunResult) -> None:
    told = page_of(trained_run.model_copy(update={"notes": ("naive meets the gate", "there is `more`")}))
    assert "Notes naive meets the gate there is `more`" in " ".join(told.text.split())
    assert "Notes" not in page_of(trained_run).text


def test_nothing_comes_from_outside(trained_run: RunResult) -> None:
    page = page_of(hostile(trained_run))
    assert not page.names() & {"script", "link", "img", "iframe", "object", "embed", "base", "image", "use"}
    assert not re.search(r"url\(|@import|https?:", "".join(page.styles))
    links = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("href", "src", "xlink:href")]
    assert links and all(link and (link.startswith(("#", "./")) and ":" not in link) for link in links)


def test_links_in_the_page_lead_somewhere(met_run: RunResult) -> None:
    page = page_of(met_run)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    anchors = {str(attrs["href"])[1:] for tag, attrs in page.tags if tag == "a" and str(attrs["href"]).startswith("#")}
    assert anchors and anchors <= set(ids)
    assert "./export/model.safetensors" in [attrs.get("href") for _, attrs in page.tags]


def test_wide_tables_scroll_in_a_box_of_their_own(trained_run: RunResult) -> None:
    html = render(trained_run, "", {})
    wide = re.findall(r'(<div class="scroll"[^>]*>)?\s*<table( class="narrow")?>', html)
    assert len(wide) > 4
    assert all(bool(box) != bool(narrow) for box, narrow in wide)


def test_rendering_is_repeatable_and_light(trained_run: RunResult) -> None:
    assert render(trained_run, "a: 1", {}) == render(trained_run, "a: 1", {})
    assert len(render(trained_run, "a: 1", {})) < 100_000


def test_relative_href() -> None:
    assert relative_href("export/model a.onnx") == "./export/model%20a.onnx"
    assert relative_href("javascript:alert(1)") == "./javascript%3Aalert%281%29"
    assert relative_href("//example.com") == ".///example.com"
    assert relative_href("a\\b") == "./a/b"


def test_flat_items() -> None:
    assert list(flat_items({"a": {"b": 1}, "c": ["x", "y"], "d": None})) == [("a.b", "1"), ("c", "x y"), ("d", "–")]


def two_parts(run: RunResult, **judged: object) -> RunResult:
    """Return a run whose rungs were chosen on validation and whose winner was judged on test, at the second look."""
    gate = run.gate.model_copy(update={"chosen_on": "validation", "chosen_samples": 150})
    rows = [one.model_copy(update={"part": "validation", "samples": 150}) for one in run.candidates]
    winner = next(one for one in rows if one.id == run.best)
    values = {"part": "test", "look": 2, "confidence": 0.975, "lost": 3, "gained": 1, "sentence": "3 lost, 1 gained."}
    row = winner.model_copy(update={**values, "value": 0.9801, "fp32": 0.9859, **judged})
    return run.model_copy(update={"gate": gate, "candidates": (*rows, row), "looks": 2})


def test_what_was_chosen_and_what_was_judged_stand_apart(met_run: RunResult) -> None:
    page = render(two_parts(met_run), "", {})
    assert page.index("Chosen on validation") < page.index("Judged on test") < page.index("Judged on the test part")
    assert "chosen on 150 validation samples, judged on 540 test samples" in page
    assert "3 / 1" in page
    assert "look 2" in page
    assert "97.5 %" in page
    assert page.count("3 lost, 1 gained.") == 1, "in the headline"
    other = two_parts(met_run, id="naive")
    assert "3 lost, 1 gained." in render(other, "", {}), "beside the row of another candidate that was judged"
    assert "Looks at test" in page


def test_every_output_is_shown_where_there_are_several(met_run: RunResult) -> None:
    outputs = (OutputRecord(name="output[:, 0:4] (box)", sqnr_db=31.5), OutputRecord(name="scores", sqnr_db=1.25))
    page = render(two_parts(met_run, outputs=outputs), "", {})
    assert "output[:, 0:4] (box)" in page
    assert "31.5" in page
    assert 'id="outputs"' not in render(two_parts(met_run, outputs=outputs[:1]), "", {})


def test_training_that_failed_is_told_beside_the_verdict(met_run: RunResult) -> None:
    page = render(met_run.model_copy(update={"training_error": "boxes <b>without</b> an area"}), "", {})
    assert "boxes &lt;b&gt;without&lt;/b&gt; an area" in page
    assert "what the ladder found was shipped" in page
