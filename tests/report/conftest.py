"""Runs as they are left behind, made up once for all tests of the report: deterministic and without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from qatflow.results.result import (
    CandidateRecord,
    EpochRecord,
    FloatTensor,
    GateRecord,
    RunResult,
    TensorRecord,
    TrialRecord,
    Verdict,
)

RECIPE = """\
name: quickstart
seed: 0
target: onnxruntime
model:
  name: digits_mobilenet
precision:
  weights: 8
  activations: 8
steps:
  fold_batch_norms: {}
  equalize:
    absorb_bias: true
gate:
  metric: accuracy
  max_drop: 0.01
qat:
  when: missed
run:
  dir: null
"""
ENVIRONMENT = {
    "qatflow": "0.1.0",
    "python": "3.11.9",
    "platform": "Linux-6.1-x86_64",
    "device": "cpu",
    "packages": {"torch": "2.11.0", "numpy": "2.1.0"},
    "git_revision": None,
    "command": ["qatflow", "recipe=quickstart"],
}
GATE = GateRecord(
    metric="accuracy",
    higher_is_better=True,
    max_drop=0.01,
    max_drop_text="0.01",
    strict=False,
    confidence=0.95,
    samples=540,
)
FP32 = CandidateRecord(
    id="fp32",
    stage="fp32",
    value=0.9859,
    fp32=0.9859,
    drop=0.0,
    drop_low=0.0,
    drop_high=0.0,
    verdict=Verdict.BASELINE,
    passed=True,
    sqnr_db=None,
    kept=True,
    seconds=0.41,
)


def rung(name: str, value: float | None, verdict: Verdict, noise: float = 0.012, **changes: object) -> CandidateRecord:
    """Return a candidate whose drop and interval follow from its value."""
    drop = None if value is None else round(0.9859 - value, 6)
    values: dict[str, object] = {
        "id": name,
        "stage": "ptq",
        "steps": (name,),
        "value": value,
        "fp32": 0.9859,
        "drop": drop,
        "drop_low": None if drop is None else round(drop - noise / 2, 6),
        "drop_high": None if drop is None else round(drop + noise / 2, 6),
        "verdict": verdict,
        "passed": verdict is Verdict.MET,
        "sqnr_db": 21.5,
        "kept": True,
        "seconds": 3.25,
    }
    return CandidateRecord.model_validate({**values, **changes})


def trial(number: int, lr: float, best: float, epochs: int = 16, **changes: object) -> TrialRecord:
    """Return a trial that climbs from the PTQ start at 0.62 towards `best`."""
    climb = [0.62 + (best - 0.62) * (1 - math.exp(-epoch / 2.5)) for epoch in range(epochs + 1)]
    history = tuple(
        EpochRecord(
            epoch=epoch, lr=lr, train_loss=None if epoch == 0 else 1 / epoch, value=round(value, 6), seconds=4.0
        )
        for epoch, value in enumerate(climb)
    )
    values: dict[str, object] = {
        "number": number,
        "state": "complete",
        "lr": lr,
        "epochs": epochs,
        "decay_period": 5,
        "range_learning": number % 2 == 0,
        "value": round(climb[-1], 6),
        "best_epoch": epochs,
        "seconds": 4.0 * epochs,
        "history": history,
    }
    return TrialRecord.model_validate({**values, **changes})


def tensor(index: int, kind: str, bits: int = 8) -> TensorRecord:
    """Return a quantized tensor of the `index`-th layer, the more SQNR the later."""
    is_weight = kind == "weight"
    return TensorRecord(
        layer=f"features.{index}.conv",
        tensor="weight" if is_weight else "output",
        kind="weight" if is_weight else "activation",
        bits=bits,
        signed=is_weight,
        symmetric=is_weight,
        channels=32 if is_weight else 1,
        scale_min=0.00125 + index / 1000,
        scale_max=(0.0115 if is_weight else 0.00125) + index / 1000,
        range_min=-1.5 if is_weight else 0.0,
        range_max=1.5 if is_weight else 6.0,
        zero_point=0 if index % 2 == 0 else None,
        sqnr_db=None if index == 7 else round(12.5 + 1.75 * index, 2),
    )


@pytest.fixture
def met_run() -> RunResult:
    """A ladder that meets its gate on the third rung; no training."""
    return RunResult(
        name="quickstart",
        description="A small classifier of handwritten digits to INT8.",
        status="finished",
        verdict=Verdict.MET,
        passed=True,
        gate=GATE,
        fp32=0.9859,
        best="equalize",
        candidates=(
            FP32,
            rung("naive", 0.1130, Verdict.MISSED, 0.05, steps=(), sqnr_db=-2.25),
            rung("fold_batch_norms", 0.1204, Verdict.MISSED, 0.05, notes={"folded": 17}, sqnr_db=-1.5),
            rung("equalize", 0.9815, Verdict.MET, 0.009, notes={"pairs": 12, "relu6_swapped": 3}, seconds=8.125),
        ),
        tensors=tuple(tensor(index, kind) for index in range(12) for kind in ("weight", "activation")),
        float_tensors=(
            FloatTensor(
                layer="head.softmax", tensor="output", op="softmax", reason="the target has no rule for softmax"
            ),
        ),
        timings={"load": 0.9, "capture": 2.6, "fp32": 0.41, "naive": 3.25, "equalize": 8.125, "export": 0.3},
        artefacts={"weights": "export/model.safetensors", "encodings": "export/model.encodings"},
        export_notes={"loads_into_model": True},
        started="2026-01-31T12:00:00+00:00",
        seconds=21.0,
    )


@pytest.fixture
def trained_run() -> RunResult:
    """Every kind of row: four rungs of which one is left out, QAT with three trials of which one failed."""
    failed = trial(1, 1e-4, 0.9, epochs=4, state="failed", value=None, best_epoch=None)
    steps = [EpochRecord(epoch=4, lr=1e-4, train_loss=None, value=None, seconds=4.0)]
    failed = failed.model_copy(update={"history": (*failed.history[:4], *steps), "reason": "the loss was not finite"})
    return RunResult(
        name="digits-w4a4",
        status="finished",
        verdict=Verdict.WITHIN_NOISE,
        passed=True,
        gate=GATE,
        fp32=0.9859,
        best="qat",
        candidates=(
            FP32,
            rung("naive", 0.0907, Verdict.MISSED, 0.05, steps=(), sqnr_db=None),
            rung("fold_batch_norms", 0.1019, Verdict.MISSED, 0.05, notes={"folded": 17}),
            rung("equalize", 0.5870, Verdict.MISSED, 0.06, resumed=True),
            rung(
                "adaround",
                0.5611,
                Verdict.MISSED,
                0.06,
                kept=False,
                reason="left out: worse than equalize",
                notes={"layers": 17, "mean_error": 0.01234567},
            ),
            rung("qat", 0.9778, Verdict.WITHIN_NOISE, stage="qat", passed=True, seconds=196.5, notes={"trial": 2}),
        ),
        trials=(trial(0, 1e-6, 0.951), failed, trial(2, 1e-5, 0.974, epochs=20)),
        tensors=tuple(tensor(index, kind, bits=4) for index in range(10) for kind in ("weight", "activation")),
        timings={"load": 0.9, "naive": 3.25, "qat": 196.5},
        artefacts={"weights": "export/model.safetensors"},
        started="2026-01-31T12:00:00+00:00",
        seconds=3725.0,
    )


@pytest.fixture
def empty_run() -> RunResult:
    """A run that has only just begun."""
    return RunResult(
        name="fresh",
        status="running",
        verdict=None,
        passed=False,
        gate=None,
        fp32=None,
        best=None,
        started="2026-01-31T12:00:00+00:00",
        seconds=0.0,
    )


def leave(folder: Path, result: RunResult, recipe: str = RECIPE) -> Path:
    """Make a run folder that holds `result`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(result.model_dump_json(indent=1), encoding="utf-8")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT), encoding="utf-8")
    return folder


@pytest.fixture
def leave_run() -> Callable[..., Path]:
    """Give tests `leave`."""
    return leave


@pytest.fixture
def met_folder(tmp_path: Path, met_run: RunResult) -> Path:
    return leave(tmp_path / "met", met_run)


@pytest.fixture
def trained_folder(tmp_path: Path, trained_run: RunResult) -> Path:
    return leave(tmp_path / "trained", trained_run)
