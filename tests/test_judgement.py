"""Activations judged alone: what is told, what is climbed for it, and what is found again."""

import json
from pathlib import Path

import onnx
import pytest

import qatflow
from qatflow import Recipe
from qatflow.ladder.judgement import more_bits
from qatflow.quant.targets import TARGETS
from qatflow.results.result import CandidateRecord, Judgement


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


def rungs_of(result: qatflow.RunResult) -> dict[str, CandidateRecord]:
    return {one.id: one for one in result.candidates if one.look is None}


def test_activations_that_miss_the_gate_are_told(hopeless) -> None:
    judgement = hopeless[0].activations_only
    assert not judgement.passed
    assert judgement.hopeless
    assert judgement.drop > 0.01
    assert "better rounding of weights seldom mends" in judgement.sentence


def test_what_does_not_help_is_left_out_and_no_rung_is_skipped_for_it(hopeless) -> None:
    rungs = rungs_of(hopeless[0])
    assert list(rungs) == ["fp32", "naive", "fold_batch_norms", "calibrate", "search_scales", "adaround"]
    assert (rungs["calibrate"].kept, rungs["calibrate"].reason) == (False, "left out: worse than fold_batch_norms")
    for name in ("search_scales", "adaround"):
        assert "error_share" in rungs[name].notes
        assert "calibrate" not in rungs[name].steps
        assert rungs[name].design == rungs["naive"].design
    assert hopeless[0].winner.value >= hopeless[0].candidates[1].value


def test_a_second_start_finds_the_judgement_again(hopeless, monkeypatch: pytest.MonkeyPatch) -> None:
    result, folder = hopeless
    monkeypatch.setattr("qatflow.ladder.judgement._Trials", None)
    again = qatflow.run(digits(precision={"weights": 8, "activations": 2}), folder)
    assert again.activations_only == result.activations_only
    (found,) = json.loads((folder / "activations_only.json").read_text()).values()
    assert found == {"judgement": result.activations_only.model_dump(mode="json"), "tensors": []}


@pytest.fixture(scope="module")
def cured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, qatflow.RunResult, Path]:
    """Three bits are too few for some layers, and this target has kernels for sixteen."""
    folder = tmp_path_factory.mktemp("cured") / "run"
    recipe = digits(
        target="qnn",
        precision={"weights": 8, "activations": 3},
        gate={"max_drop": 0.03},
        export={"verify": False},
    )
    return recipe, qatflow.run(recipe, folder), folder


def test_more_bits_for_the_layers_that_hurt_most_are_climbed_as_a_rung(cured) -> None:
    _, result, folder = cured
    rungs = rungs_of(result)
    assert list(rungs) == ["fp32", "naive", "fold_batch_norms", "calibrate", "set_precision"], "the gate is met by then"
    assert (result.best, result.passed) == ("set_precision", True)
    assert rungs["set_precision"].steps == ("fold_batch_norms", "calibrate", "set_precision")
    assert result.activations_only.drop > 0.03
    named = str(rungs["set_precision"].notes["layers"]).split(", ")
    assert 1 <= len(named) <= 8
    judged = json.loads((folder / "activations_only.json").read_text())
    assert [one.get("tensors") for one in judged.values()] == [None, named]


def test_the_result_has_the_design_of_every_rung(cured) -> None:
    recipe, result, folder = cured
    rungs = rungs_of(result)
    stated = {"target": "qnn", "precision": recipe.precision.model_dump(mode="json")}
    stated["calibration"] = recipe.calibration.model_dump(mode="json")
    designs = {one["id"]: one["design"] for one in json.loads((folder / "result.json").read_text())["candidates"]}
    assert designs["fp32"] is None
    assert designs["naive"] == designs["fold_batch_norms"] == {**stated, "ranges": {}}
    assert len(designs["calibrate"]["ranges"]) == rungs["calibrate"].notes["tensors"]
    assert designs["calibrate"]["precision"] == stated["precision"]
    named = str(rungs["set_precision"].notes["layers"]).split(", ")
    overrides = {name: {"activations": 16} for name in named}
    assert designs["set_precision"] == {
        **designs["calibrate"],
        "precision": {**stated["precision"], "overrides": overrides},
    }
    for name in ("naive", "calibrate", "set_precision"):
        stored = json.loads((folder / "candidates" / name / "encodings.json").read_text())
        assert stored["design"] == designs[name]


def test_what_is_exported_has_the_bits_of_the_winner(cured) -> None:
    _, result, folder = cured
    bits = {one.tensor: one.bits for one in result.tensors if one.kind == "activation"}
    assert set(bits.values()) == {3, 16}
    wide = sum(number == 16 for number in bits.values())
    assert wide == rungs_of(result)["set_precision"].notes["activations"]
    written = json.loads((folder / "export" / "model.encodings").read_text())
    found = [one["bw"] for one in written["activation_encodings"]]
    assert set(found) == {3, 16}
    stored = json.loads((folder / "candidates" / "set_precision" / "encodings.json").read_text())["tensors"]
    assert {name: one["bits"] for name, one in stored.items() if name in bits} == bits
    model = onnx.load(folder / "export" / "model.onnx")
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    pairs = [kinds[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert onnx.TensorProto.UINT16 in pairs and onnx.TensorProto.UINT8 in pairs


def test_a_second_start_does_not_look_for_it_again(cured, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, result, folder = cured
    monkeypatch.setattr("qatflow.ladder.judgement._Trials", None)
    monkeypatch.setattr("qatflow.steps.calibrate.calibrate", None)
    monkeypatch.setattr("qatflow.steps.set_precision.set_precision", None)
    again = qatflow.run(recipe, folder)
    assert all(one.resumed for one in rungs_of(again).values() if one.id != "fp32")
    assert again.activations_only == result.activations_only
    assert again.tensors == result.tensors
    assert {name: one.design for name, one in rungs_of(again).items()} == {
        name: one.design for name, one in rungs_of(result).items()
    }


def test_more_bits_are_those_that_the_target_has_kernels_for() -> None:
    found = {name: more_bits(target).model_dump() for name, target in TARGETS.items()}
    assert found == {**dict.fromkeys(TARGETS, "float"), "qnn": {"activations": 16}}


CLIPPED = {"samples": 64, "activations": "percentile", "percentile": 90}
"""Ranges that cut off a fifth of all values."""


def test_better_ranges_are_climbed_as_a_rung_before_rounding(tmp_path: Path) -> None:
    """Clipped ranges lose the digits; others meet the gate at once."""
    recipe = digits(calibration=CLIPPED, precision={"weights": 8, "activations": 8})
    result = qatflow.run(recipe, tmp_path / "run")
    rungs = rungs_of(result)
    assert not rungs["fold_batch_norms"].passed
    assert not result.activations_only.passed
    assert rungs["calibrate"].passed
    assert rungs["calibrate"].kept
    assert rungs["calibrate"].steps == ("fold_batch_norms", "calibrate")
    assert rungs["calibrate"].design.calibration["activations"] != "percentile"
    assert rungs["calibrate"].notes["gain_db"] > 20
    assert (result.best, result.passed) == ("calibrate", True)
    assert "adaround" not in rungs, "the gate is met before anything is rounded"
    assert "set_precision" not in rungs
    again = qatflow.run(recipe, tmp_path / "run")
    assert rungs_of(again)["calibrate"].resumed


def test_a_step_that_the_recipe_has_itself_is_left_to_it(tmp_path: Path) -> None:
    own = {"activations": ["percentile"], "weights": [], "tensors": 0}
    steps = {"fold_batch_norms": {}, "calibrate": own, "set_precision": {}, "adaround": {"samples": 64}}
    recipe = digits(calibration=CLIPPED, precision={"weights": 8, "activations": 8}, steps=steps)
    result = qatflow.run(recipe, tmp_path / "run")
    assert result.activations_only is not None
    assert not result.activations_only.passed
    told = [one for one in result.candidates if one.look is None]
    assert [one.id for one in told] == ["fp32", "naive", *steps]
    assert {one.design.calibration["activations"] for one in told[1:]} == {"percentile"}
    assert told[3].reason == "left out: no other way to find ranges is better on held-out samples"
    assert told[4].reason == "left out: it names no layer"


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


def test_sentences_say_what_to_make_of_it() -> None:
    missed = Judgement(drop=0.2, drop_low=0.1, passed=False, hopeless=True, sqnr_db=3.0)
    assert missed.sentence == (
        "activations alone (weights in float) miss the gate, which better rounding of weights seldom mends; "
        "other ranges, or more bits for the activations that hurt most, may"
    )
    met = missed.model_copy(update={"passed": True})
    assert met.sentence == "activations alone (weights in float) meet the gate: rounding weights better can help"
