"""What to try next: changes that the recipe's check accepts, as commands that compose as printed."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from qatflow.door import cli
from qatflow.door.composing import plan
from qatflow.ladder.suggest import suggestions
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Recipe
from qatflow.results.result import CandidateRecord, Suggestion, Verdict

AGAIN = "python -m qatflow recipe=r/recipe.yaml run.dir=r"


def recipe(*overrides: str) -> Recipe:
    (job,) = plan(["recipe=tiny", *overrides]).jobs
    return job.recipe


def judged(verdict: Verdict, drop: float, high: float) -> CandidateRecord:
    return CandidateRecord(
        id="naive",
        stage="ptq",
        value=0.9,
        fp32=0.9 + drop,
        drop=drop,
        drop_low=drop - 0.01,
        drop_high=high,
        verdict=verdict,
        passed=verdict is not Verdict.MISSED,
        sqnr_db=20.0,
        kept=True,
        seconds=1.0,
    )


def suggested(
    *overrides: str, verdict: Verdict = Verdict.MISSED, drop: float = 0.2, trains: bool = True
) -> tuple[Suggestion, ...]:
    stated = recipe(*overrides)
    target = TARGETS[str(stated.target)]
    winner = judged(verdict, drop, drop + 0.01)
    return suggestions(stated, winner, target, AGAIN, passed=winner.passed, trains=trains)


def settings(found: tuple[Suggestion, ...]) -> list[str]:
    assert all(one.command.startswith(f"{AGAIN} ") and one.why for one in found)
    return [shlex.split(one.command)[-1] for one in found]


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (
            (),
            [
                "steps=[fold_batch_norms,adaround]",
                "steps=[fold_batch_norms,mixed_precision]",
                "qat.when=missed",
                "gate.max_drop=0.2",
            ],
        ),
        (
            ("precision=w4a8_per_tensor", "steps=[fold_batch_norms,adaround,mixed_precision]"),
            [
                "steps.mixed_precision.budget=null",
                "precision.per_channel=true",
                "precision.weights=8",
                "qat.when=missed",
            ],
        ),
        (
            ("steps=[fold_batch_norms,mixed_precision]", "steps.mixed_precision.budget=null"),
            ["steps=[fold_batch_norms,adaround,mixed_precision]", "qat.when=missed", "gate.max_drop=0.2"],
        ),
    ],
)
def test_a_missed_gate_has_remedies_in_order(overrides: tuple[str, ...], wanted: list[str]) -> None:
    assert settings(suggested(*overrides)) == wanted


@pytest.mark.parametrize(("drop", "limit"), [(0.0213, 0.022), (0.02, 0.02), (1.234, 1.3), (0.01501, 0.016)])
def test_the_gate_that_is_met_is_known_and_said_to_be(drop: float, limit: float) -> None:
    last = suggested(drop=drop, trains=False)[-1]
    assert last.command.endswith(f" gate.max_drop={limit}")
    assert last.measured == f"it drops {drop:.3g} on the test part"
    assert last.standing == f"measured: {last.measured}"
    assert suggested(drop=drop)[0].standing == "untried"
    assert not any(one.measured for one in suggested("gate.min_value=0.95", drop=drop))
    assert not any(one.measured for one in suggested("gate.strict=true", drop=drop))
    assert not any(one.measured for one in suggested("gate.max_drop=2", drop=drop))


def test_a_file_that_is_slower_than_fp32_has_a_remedy() -> None:
    stated, winner = recipe(), judged(Verdict.MET, 0.0, 0.01)
    target = TARGETS[str(stated.target)]
    for slower in (True, False):
        found = suggestions(stated, winner, target, AGAIN, passed=True, trains=False, slower=slower)
        assert settings(found) == (["gate.min_speedup=1.0"] if slower else [])
    stated = recipe("gate.min_speedup=1.5")
    assert suggestions(stated, winner, target, AGAIN, passed=True, trains=False, slower=True) == ()


def test_there_are_four_at_most() -> None:
    assert len(suggested("precision=w4a8_per_tensor")) == 4


def test_without_a_part_to_train_on_training_is_not_suggested() -> None:
    assert "qat.when=missed" not in settings(suggested(trains=False))


@pytest.mark.parametrize("when", ["never", "worthwhile", "missed"])
def test_training_that_the_recipe_left_out_is_suggested(when: str) -> None:
    assert ("qat.when=missed" in settings(suggested(f"qat.when={when}"))) == (when != "missed")


def test_a_drop_within_noise_has_remedies_and_none_has_not() -> None:
    assert settings(suggested(verdict=Verdict.WITHIN_NOISE, drop=0.005))
    assert settings(suggested("target=qnn", verdict=Verdict.WITHIN_NOISE, drop=0.0)) == ["precision.weights=4"]


def test_a_met_gate_says_what_could_be_saved() -> None:
    assert settings(suggested("target=qnn", verdict=Verdict.MET, drop=0.0)) == ["precision.weights=4"]
    assert settings(suggested("target=qnn", "precision=w4a8", verdict=Verdict.MET, drop=0.0)) == []


def test_bits_that_a_file_stores_in_bytes_save_nothing() -> None:
    assert settings(suggested("target=onnxruntime", verdict=Verdict.MET, drop=0.0)) == []


def test_a_run_ends_with_them_and_they_compose_as_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipe=tiny", "precision=w2a8_per_tensor", "run.dir=r", "device=cpu", "export.verify=false"]) == 2
    said = capsys.readouterr().out
    found: list[dict[str, Any]] = json.loads(Path("r/result.json").read_text())["suggestions"]
    assert len(found) == 4
    assert said.splitlines()[-2 * len(found)].startswith("try next ")
    page = Path("r/report.html").read_text()
    for one in found:
        assert one["command"] in said
        assert "What to try next" in page
        (job,) = plan(shlex.split(one["command"])[3:]).jobs
        assert job.recipe.run.dir == "r"
        assert job.recipe != recipe("precision=w2a8_per_tensor", "run.dir=r", "device=cpu", "export.verify=false")
