"""A result is a value: it survives JSON, refuses what it does not know, and never changes."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qatflow.results.result import (
    SENTENCES,
    CandidateRecord,
    EpochRecord,
    FloatTensor,
    GateRecord,
    LatencyRecord,
    RunResult,
    TensorRecord,
    TrialRecord,
    Verdict,
)

texts = st.text(max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
maybe = st.none() | numbers
counts = st.integers(0, 2**40)
notes = st.dictionaries(texts, st.booleans() | counts | numbers | texts, max_size=3)


def some(record: type, **fields: st.SearchStrategy) -> st.SearchStrategy:
    return st.builds(record, **fields)


candidates = some(
    CandidateRecord,
    id=texts,
    stage=st.sampled_from(["fp32", "ptq", "qat", "deployed"]),
    steps=st.lists(texts, max_size=3).map(tuple),
    value=maybe,
    fp32=maybe,
    drop=maybe,
    drop_low=maybe,
    drop_high=maybe,
    verdict=st.sampled_from(Verdict),
    passed=st.booleans(),
    sqnr_db=maybe,
    kept=st.booleans(),
    reason=texts,
    seconds=numbers,
    resumed=st.booleans(),
    notes=notes,
)
epochs = some(EpochRecord, epoch=counts, lr=numbers, train_loss=maybe, value=maybe, seconds=numbers)
trials = some(
    TrialRecord,
    number=counts,
    state=st.sampled_from(["complete", "pruned", "failed", "running"]),
    lr=numbers,
    epochs=counts,
    decay_period=counts,
    range_learning=st.booleans(),
    value=maybe,
    best_epoch=st.none() | counts,
    seconds=numbers,
    reason=texts,
    history=st.lists(epochs, max_size=3).map(tuple),
)
tensors = some(
    TensorRecord,
    layer=texts,
    tensor=texts,
    kind=st.sampled_from(["weight", "activation"]),
    bits=counts,
    signed=st.booleans(),
    symmetric=st.booleans(),
    channels=counts,
    scale_min=numbers,
    scale_max=numbers,
    range_min=numbers,
    range_max=numbers,
    zero_point=st.none() | st.integers(-(2**15), 2**15),
    sqnr_db=maybe,
)
gates = some(
    GateRecord,
    metric=texts,
    higher_is_better=st.booleans(),
    max_drop=numbers,
    max_drop_text=texts,
    strict=st.booleans(),
    confidence=numbers,
    samples=counts,
)
results = some(
    RunResult,
    name=texts,
    description=texts,
    status=st.sampled_from(["running", "finished", "interrupted", "failed"]),
    error=texts,
    verdict=st.none() | st.sampled_from(Verdict),
    passed=st.booleans(),
    gate=st.none() | gates,
    fp32=maybe,
    best=st.none() | texts,
    deployed=maybe,
    candidates=st.lists(candidates, max_size=2).map(tuple),
    trials=st.lists(trials, max_size=2).map(tuple),
    tensors=st.lists(tensors, max_size=2).map(tuple),
    float_tensors=st.lists(some(FloatTensor, layer=texts, tensor=texts, op=texts, reason=texts), max_size=2).map(tuple),
    timings=st.dictionaries(texts, numbers, max_size=2),
    artefacts=st.dictionaries(texts, texts, max_size=2),
    notes=st.lists(texts, max_size=2).map(tuple),
    export_notes=notes,
    started=texts,
    seconds=numbers,
)


@given(results)
def test_it_comes_back_from_json_as_it_was(result: RunResult) -> None:
    text = result.model_dump_json()
    again = RunResult.model_validate_json(text)
    assert again == result
    assert again.model_dump_json() == text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@given(notes)
def test_notes_keep_their_types(found: dict[str, object]) -> None:
    record = candidate(notes=found)
    again = CandidateRecord.model_validate_json(record.model_dump_json())
    assert [type(value) for value in again.notes.values()] == [type(value) for value in found.values()]


def candidate(**changes: object) -> CandidateRecord:
    fields = {"id": "naive", "stage": "ptq", "value": 0.9, "fp32": 0.9, "drop": 0.0, "drop_low": None}
    fields |= {"drop_high": None, "verdict": "met", "passed": True, "sqnr_db": None, "kept": True, "seconds": 1.0}
    return CandidateRecord.model_validate({**fields, **changes})


def result(**changes: object) -> RunResult:
    fields = {"name": "r", "status": "finished", "verdict": None, "passed": False, "gate": None, "fp32": None}
    return RunResult.model_validate({**fields, "best": None, "started": "", "seconds": 0.0, **changes})


def test_an_unknown_key_is_refused_on_every_level() -> None:
    with pytest.raises(ValidationError, match="extra"):
        candidate(speed=3)
    stored = json.loads(result(candidates=[candidate()]).model_dump_json())
    stored["candidates"][0]["speed"] = 3
    with pytest.raises(ValidationError, match=r"candidates\.0\.speed"):
        RunResult.model_validate(stored)
    with pytest.raises(ValidationError, match="colour"):
        result(colour="red")


def test_it_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        result().name = "other"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["value", "drop", "seconds"])
def test_a_number_that_was_not_measured_is_null_and_never_a_stand_in(field: str, bad: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        candidate(**{field: bad})
    with pytest.raises(ValidationError, match="finite"):
        candidate(notes={"share": bad})


def test_the_winner_is_the_record_of_the_best() -> None:
    records = [candidate(id="naive"), candidate(id="qat", stage="qat")]
    assert result(candidates=records, best="qat").winner == records[1]
    assert result(candidates=records).winner is None


def test_every_verdict_has_a_sentence() -> None:
    assert SENTENCES.keys() == set(Verdict)
    assert all(verdict.sentence.endswith(".") for verdict in Verdict)
    assert len({verdict.sentence for verdict in Verdict}) == len(Verdict)


@pytest.mark.parametrize(
    ("int8", "fp32", "of_two", "small"),
    [
        (0.14, 0.04, (0.16, 0.08), True),
        (0.04, 0.14, (0.08, 0.16), True),
        (0.1, 0.1, (0.149, 0.2), True),
        (0.1, 0.1, (0.16, 0.16), False),
        (5.0, 6.0, (5.1, 6.1), False),
        (0.04, 0.04, (None, None), False),
    ],
)
def test_a_call_that_is_mostly_overhead_is_too_small_to_time(
    int8: float, fp32: float, of_two: tuple[float | None, float | None], small: bool
) -> None:
    quartiles = (0.0, 1.0)
    found = LatencyRecord(
        batch=1,
        int8=int8,
        int8_quartiles=quartiles,
        fp32=fp32,
        fp32_quartiles=quartiles,
        int8_of_two=of_two[0],
        fp32_of_two=of_two[1],
    )
    assert found.too_small is small


def test_the_winner_is_the_record_that_the_gate_judged_wherever_it_stands() -> None:
    def record(value: float, look: int | None, trial: int) -> CandidateRecord:
        return CandidateRecord(
            id="qat",
            stage="qat",
            value=value,
            fp32=1.0,
            drop=0.0,
            drop_low=None,
            drop_high=None,
            verdict=Verdict.MET,
            passed=True,
            sqnr_db=None,
            kept=True,
            seconds=0.0,
            look=look,
            notes={"trial": trial},
        )

    rows = (record(0.8, 2, 0), record(0.9, 3, 1), record(1.0, None, 1))
    result = RunResult(
        name="x", status="finished", verdict=Verdict.MET, passed=True, gate=None, fp32=1.0, best="qat",
        candidates=rows, started="", seconds=0.0,
    )  # fmt: skip
    assert result.winner == rows[1]
    assert result.model_copy(update={"candidates": (rows[0], rows[2])}).winner == rows[2]
