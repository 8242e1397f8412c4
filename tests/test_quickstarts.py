"""The quickstart of QAT shows what it says: a ladder that misses its gate, and training that meets it, on integers."""

import json
from pathlib import Path

import pytest

from benchmarks.quickstarts import Variant, disturbed, outcome, variants
from qatflow.door import cli
from qatflow.results.result import RunResult
from qatflow.tasks.models import shipped_weights
from qatflow.tasks.weights_file import read_weights


@pytest.mark.slow
def test_two_bits_miss_the_gate_until_they_are_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipe=quickstart_qat", f"run.dir={tmp_path}", "device=cpu"]) == 0
    result = RunResult.model_validate_json((tmp_path / "result.json").read_text())
    assert outcome(result) == ("qat", "met", "met", "20 of 20")
    rungs = {(one.id, one.part): one for one in result.candidates if one.stage == "ptq"}
    assert {one.verdict.value for one in rungs.values()} == {"missed"}
    assert ("adaround", "test") in rungs
    assert result.winner is not None
    assert (result.winner.stage, result.winner.part, result.winner.verdict.value) == ("qat", "test", "met")
    assert result.winner.drop < rungs["adaround", "test"].drop / 2
    assert result.candidates[-1].verdict.value == "met"
    said = capsys.readouterr().out
    assert "too small to time: " in said
    assert "times as fast" not in said
    assert json.loads((tmp_path / "export" / "verification.json").read_text())["verdict"] == "verified"


def test_the_benchmark_runs_every_seed_and_disturbed_weights_on_every_number_of_threads() -> None:
    found = list(variants(["quickstart"], seeds=[0, 1], threads=[1, 2]))
    assert found == [
        Variant("quickstart", seed, threads, one)
        for threads in (1, 2)
        for seed, one in ((0, False), (1, False), (0, True))
    ]


def test_disturbed_weights_differ_in_their_last_bit(tmp_path: Path) -> None:
    name = "digits_mobilenet_thin"
    moved, shipped = read_weights(disturbed(name, tmp_path)), read_weights(shipped_weights(name))
    assert moved.keys() == shipped.keys()
    weight, other = moved["head.conv.weight"], shipped["head.conv.weight"]
    assert (weight != other).all()
    assert ((weight - other).abs() <= 2.0**-22 * other.abs()).all()
