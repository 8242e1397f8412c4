"""Activations judged alone: what is told, what is climbed for it, and what is found again."""

import json
from pathlib import Path

import pytest

import qatflow
from qatflow import Recipe
from qatflow.results.result import Judgement


def digits(**changes: object) -> Recipe:
    base: dict[str, object] = {
        "name": "judged",
        "model": {"name": "digits_mobilenet"},
        "data": {"name": "digits"},
        "calibration": {"samples": 64},
        "steps": {"fold_batch_norms": {}, "search_scales": {"samples": 64}, "adaround": {"samples": 64}},
        "gate": {"max_drop": 0.01},
        "qat": {"when": "never"},
        "export": {"verify": False, "onnx": False},
        "report": {"html": True},
    }
    return Recipe(**{**base, **changes})


def test_activations_that_meet_the_gate_say_so_and_rounding_goes_on(tmp_path: Path) -> None:
    result = qatflow.run(digits(precision={"weights": 2, "activations": 8}), tmp_path / "run")
    judgement = result.activations_only
    assert judgement is not None
    assert judgement.passed
    assert not judgement.hopeless
    assert "rounding weights better can help" in judgement.sentence
    rungs = {one.id: one for one in result.candidates}
    assert "error_share" in rungs["search_scales"].notes
    assert "weights in float" in (tmp_path / "run" / "report.html").read_text()


@pytest.fixture(scope="module")
def hopeless(tmp_path_factory: pytest.TempPathFactory) -> tuple[qatflow.RunResult, Path]:
    folder = tmp_path_factory.mktemp("judged") / "run"
    return qatflow.run(digits(precision={"weights": 8, "activations": 2}), folder), folder


def test_activations_that_miss_the_gate_are_told_with_what_would_help(hopeless) -> None:
    judgement = hopeless[0].activations_only
    assert not judgement.passed
    assert judgement.hopeless
    assert judgement.drop > 0.01
    assert "better rounding of weights seldom mends" in judgement.sentence
    assert "range-learning QAT" in judgement.sentence


def test_no_rung_is_skipped_for_it(hopeless) -> None:
    rungs = {one.id: one for one in hopeless[0].candidates if one.look is None}
    for name in ("search_scales", "adaround"):
        assert "error_share" in rungs[name].notes
    assert hopeless[0].winner.value >= hopeless[0].candidates[1].value


def test_a_second_start_finds_the_judgement_again(hopeless, monkeypatch: pytest.MonkeyPatch) -> None:
    result, folder = hopeless
    monkeypatch.setattr("qatflow.ladder.judgement._Judge.run", None)
    again = qatflow.run(digits(precision={"weights": 8, "activations": 2}), folder)
    assert again.activations_only == result.activations_only


def test_the_layers_that_are_named_do_meet_the_gate_with_16_bits(tmp_path: Path) -> None:
    """The judge measures on the choosing part; what it names has to hold in a run of its own there."""
    gate = {"max_drop": 0.03}
    result = qatflow.run(digits(precision={"weights": 8, "activations": 3}, gate=gate), tmp_path / "run")
    judgement = result.activations_only
    assert judgement is not None
    assert judgement.sixteen_bits, judgement.sentence
    assert judgement.sixteen_bits_drop <= 0.03
    overrides = dict.fromkeys(judgement.sixteen_bits, "a16")
    precision = {"weights": 16, "activations": 3, "overrides": overrides}
    better = qatflow.run(digits(precision=precision, steps={"fold_batch_norms": {}}, gate=gate), tmp_path / "better")
    (folded,) = [one for one in better.candidates if one.id == "fold_batch_norms" and one.look is None]
    assert folded.passed
    assert better.passed


def test_better_ranges_are_climbed_as_a_rung_before_rounding(tmp_path: Path) -> None:
    """Ranges that cut off a fifth of all values lose the digits; those of least error meet the gate at once."""
    clipped = {"samples": 64, "activations": "percentile", "percentile": 90}
    recipe = digits(calibration=clipped, precision={"weights": 8, "activations": 8})
    result = qatflow.run(recipe, tmp_path / "run")
    rungs = {one.id: one for one in result.candidates if one.look is None}
    judgement = result.activations_only
    assert not rungs["fold_batch_norms"].passed
    assert not judgement.passed
    name = f"ranges_{judgement.calibration}"
    assert judgement.calibration in ("sqnr", "minmax")
    assert rungs[name].passed
    assert rungs[name].kept
    assert rungs[name].steps == ("fold_batch_norms", name)
    assert (result.best, result.passed) == (name, True)
    assert "adaround" not in rungs, "the gate is met before anything is rounded"
    again = qatflow.run(recipe, tmp_path / "run")
    assert {one.id: one.resumed for one in again.candidates if one.look is None}[name]
    stored = json.loads((tmp_path / "run" / "candidates" / name / "encodings.json").read_text())
    assert stored["ranges"] == judgement.calibration


def test_what_is_judged_is_the_network_before_anything_was_fitted(tmp_path: Path) -> None:
    """Biases corrected for rounded weights are wrong beside float ones, and would make activations look hopeless."""

    def judged(*steps: str) -> Judgement:
        every = {name: {"samples": 64} for name in (*steps, "adaround")}
        recipe = digits(
            precision={"weights": 3, "activations": 8, "per_channel": False},
            steps={"fold_batch_norms": {}, **every},
        )
        found = qatflow.run(recipe, tmp_path / ("-".join(steps) or "none")).activations_only
        assert found is not None
        return found

    corrected, alone = judged("correct_bias"), judged()
    assert corrected.drop == alone.drop
    assert corrected.sqnr_db == pytest.approx(alone.sqnr_db, abs=0.5)


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    precision = {"weights": 8, "activations": 2}
    result = qatflow.run(digits(precision=precision, ladder={"judge": False}), tmp_path / "run")
    assert result.activations_only is None
    assert any("error_share" in one.notes for one in result.candidates)


def test_sentences_name_the_way_out() -> None:
    missed = Judgement(drop=0.2, drop_low=0.1, passed=False, hopeless=True, sqnr_db=3.0)
    assert "calibration" not in missed.sentence
    better = missed.model_copy(update={"calibration": "minmax", "calibration_drop": 0.05})
    assert "calibration.activations=minmax, which is climbed next, they would have a drop of 0.05" in better.sentence
    passes = better.model_copy(update={"calibration_passes": True})
    assert "calibration.activations=minmax, which is climbed next, they would meet it" in passes.sentence
    assert "QAT" not in passes.sentence
    wide = better.model_copy(update={"sixteen_bits": ("a.b", "c")})
    assert "precision.overrides={a.b: a16, c: a16}" in wide.sentence
