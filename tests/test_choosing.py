"""Choosing and judging are apart: rungs are ranked on one part of the data, and the gate looks at another."""

import json
import re
from pathlib import Path

import pytest

import qatflow
from qatflow import Recipe, RunResult
from qatflow.results.result import CandidateRecord, Verdict


def recipe(factory: str = "parts", kwargs: dict[str, object] | None = None, **sections: object) -> Recipe:
    base: dict[str, object] = {
        "name": "choosing",
        "device": "cpu",
        "model": {"factory": "tests.choosing_task:classifier"},
        "data": {"factory": f"tests.choosing_task:{factory}", "kwargs": kwargs or {}, "batch_size": 16},
        "precision": {"weights": 4, "activations": 8, "per_channel": False},
        "steps": {"search_scales": {"samples": 32}, "adaround": {"samples": 32}},
        "qat": {"when": "never"},
        "export": {"verify": False},
        "report": {"html": False},
    }
    return Recipe.model_validate({**base, **sections})


def run(folder: Path, *args: object, **sections: object) -> RunResult:
    return qatflow.run(recipe(*args, **sections), folder, trust=("tests",))  # type: ignore[arg-type]


def looks(result: RunResult) -> list[CandidateRecord]:
    return [one for one in result.candidates if one.look is not None and one.stage != "deployed"]


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    folder = tmp_path_factory.mktemp("choosing") / "run"
    return run(folder), folder


def test_a_rung_that_misses_on_test_is_no_end_of_the_climb(climbed: tuple[RunResult, Path]) -> None:
    result, _ = climbed
    chosen = {one.id: one for one in result.candidates if one.look is None}
    assert chosen["naive"].passed, "on validation, where rungs are chosen, it loses nothing"
    assert chosen["naive"].part == "validation"
    first = looks(result)[0]
    assert (first.id, first.part, first.look, first.verdict) == ("naive", "test", 1, Verdict.MISSED)
    assert first.drop == pytest.approx(0.5)
    assert {"search_scales", "adaround"} <= chosen.keys()


def test_every_look_is_counted_and_paid_for(climbed: tuple[RunResult, Path]) -> None:
    result, _ = climbed
    found = looks(result)
    assert [one.look for one in found] == list(range(1, len(found) + 1))
    assert len(found) >= 2
    assert [one.confidence for one in found] == pytest.approx([1 - 0.05 / one.look for one in found])
    assert result.looks == len(found)
    assert not result.passed
    assert result.verdict is Verdict.MISSED
    assert result.winner.part == "test"


def test_a_second_start_looks_no_further(climbed: tuple[RunResult, Path]) -> None:
    result, folder = climbed
    again = run(folder)
    assert [(one.id, one.look, one.drop_low) for one in looks(again)] == [
        (one.id, one.look, one.drop_low) for one in looks(result)
    ]
    assert all(one.resumed for one in again.candidates if one.stage == "ptq")


def test_another_gate_is_decided_anew_with_interval_and_all(climbed: tuple[RunResult, Path]) -> None:
    _, folder = climbed
    again = run(folder, gate={"max_drop": 0.6, "confidence": 0.6})
    assert again.passed
    assert again.winner.resumed
    narrow, wide = again.winner, looks(run(folder, gate={"max_drop": 0.6, "confidence": 0.99}))[0]
    assert narrow.drop == wide.drop
    assert narrow.drop_high - narrow.drop_low < wide.drop_high - wide.drop_low
    files = json.loads((folder / "candidates" / "naive" / "meta.json").read_text())
    assert "verdict" not in json.dumps(files), "what is stored is what was measured"


def test_a_damaged_count_of_looks_is_told_and_made_anew(climbed: tuple[RunResult, Path]) -> None:
    result, folder = climbed
    for name in ("looks.json", "activations_only.json"):
        (folder / name).write_text("{")
    again = run(folder)
    assert looks(again)[0].look == 1
    assert (again.status, again.verdict) == ("finished", result.verdict)
    assert "looks.json is damaged" in (folder / "log.txt").read_text()


def test_without_a_validation_part_the_verdict_says_so(tmp_path: Path) -> None:
    result = run(tmp_path / "run", "parts", {"validation": False}, gate={"max_drop": 0.6})
    assert result.gate.chosen_on == "test"
    assert {one.part for one in result.candidates} == {"test"}
    assert result.passed
    assert "chosen on the same samples" in result.winner.sentence
    assert "no validation part" in result.winner.sentence


def test_the_end_of_the_ladder_is_judged_once(tmp_path: Path) -> None:
    result = run(tmp_path / "run", ladder={"stop": "end"})
    assert [one.look for one in looks(result)] == [1]
    assert [one.id for one in result.candidates if one.look is None][-1] == "adaround"


def test_a_failure_of_training_ships_the_best_rung(tmp_path: Path) -> None:
    sections = {
        "qat": {"when": "always", "loss": "tests.choosing_task:raising_loss"},
        "search": {"max_trials": 2, "epochs": (2, 2), "decay_period": (1, 1), "lr": (1e-4, 1e-3)},
        "gate": {"max_drop": 0.6},
        "export": {"verify": True},
    }
    result = run(tmp_path / "run", "trainable", **sections)
    assert result.status == "finished"
    assert "boxes without an area" in result.training_error
    assert result.passed
    assert result.deployed is not None
    assert (tmp_path / "run" / "export" / "model.onnx").exists()


@pytest.mark.parametrize("when", ["missed", "always"])
def test_training_data_that_cannot_be_read_is_told_at_once_and_costs_no_rung(tmp_path: Path, when: str) -> None:
    result = run(tmp_path / "run", "unreadable", qat={"when": when}, gate={"max_drop": 0.6})
    assert result.status == "finished"
    assert result.passed
    log = (tmp_path / "run" / "log.txt").read_text()
    at_once = r"training cannot work as it is: .*choosing_task.py:\d+, in __getitem__: OSError: the disk is gone"
    assert re.search(at_once, log[: log.index("fp32:")])
    assert ("the disk is gone" in result.training_error) == (when == "always")
