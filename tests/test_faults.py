"""What goes wrong while a run is running, each fault arranged for real, and the sentence that is said of it.

`docs/faults.md` is made of the same rows.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from qatflow.tasks.batches import SAMPLE
from tests.fault_places import (
    FULL,
    LONG,
    TASK,
    Place,
    full_at,
    full_at_log,
    full_at_onnx,
    full_at_report,
    full_at_study,
    in_folder,
    linked_log,
    little_memory,
    locked,
    of,
    once,
    reports_is_a_file,
)
from tests.made_tables import check_table

NO_ROOM = "the memory does not suffice"
SMALLER = (
    "take a smaller data.batch_size (qat.batch_size for training), or fewer samples (calibration.samples, those of the "
    "steps)"
)
HARMLESS = (
    "data.kwargs={calibration: zero, train: shared}",
    "qat.when=missed",
)
RAISED = "tests/faulty_task.py:LINE, in raises: ValueError: sample 20 is corrupt"
ELSEWHERE = "choose another folder with run.dir=FOLDER"
READING = "tests/faulty_task.py:LINE, in __getitem__: IndexError: no such sample (reading the data"


class Fault(NamedTuple):
    """A row of the table: what goes wrong, what is said, and how it is arranged."""

    wrong: str
    says: str
    arrange: Callable[[Place], str]


FAULTS = [
    Fault("`run.dir` is a file", f"FOLDER/file is no folder; {ELSEWHERE}", in_folder("file")),
    Fault(
        "`run.dir` is below a file",
        f"cannot make the folder FOLDER/file/x: Not a directory; {ELSEWHERE}",
        in_folder("file/x"),
    ),
    Fault("`run.dir` is a device", f"/dev/null is no folder; {ELSEWHERE}", in_folder("/dev/null")),
    Fault(
        "`run.dir` is below a device",
        f"cannot make the folder /dev/null/x: Not a directory; {ELSEWHERE}",
        in_folder("/dev/null/x"),
    ),
    Fault(
        "`run.dir` has too long a name",
        f"cannot make the folder FOLDER/NNN: File name too long; {ELSEWHERE}",
        in_folder(LONG),
    ),
    Fault(
        "`run.dir` is in a folder without permission",
        f"cannot make the folder FOLDER/locked/run: Permission denied; {ELSEWHERE}",
        locked,
    ),
    Fault(
        "`reports` is a file",
        f"cannot make the folder reports/faulty: Not a directory; {ELSEWHERE}",
        reports_is_a_file,
    ),
    Fault(
        "a sweep's folder is a file",
        "FOLDER/file is no folder; choose another folder with hydra.sweep.dir=FOLDER",
        in_folder("file", "-m", "seed=1,2", key="hydra.sweep.dir"),
    ),
    Fault("the disk is full at the start", f"cannot write FOLDER/run/run.lock: {FULL}", full_at(0)),
    Fault(
        "the disk is full at a candidate's weights",
        f"cannot write FOLDER/run/candidates/naive/model.safetensors: {FULL}",
        full_at(20_000, "model.kwargs.width=1000"),
    ),
    Fault(
        "the disk is full at the ONNX file",
        f"cannot write FOLDER/run/export/model_float.onnx: {FULL}",
        full_at_onnx,
    ),
    Fault(
        "the disk is full at the study",
        f"QAT failed, and the best rung of the ladder is shipped: cannot write FOLDER/run/study.db: {FULL}",
        full_at_study,
    ),
    Fault("the disk is full at the report", f"cannot write FOLDER/run/report.html: {FULL}", full_at_report),
    Fault("the disk is full at the log", f"FOLDER/run/log.txt is not complete: {FULL}", full_at_log),
    Fault(
        "something in the run folder is a link",
        "FOLDER/run/log.txt leads elsewhere; remove it, or choose another folder with run.dir=FOLDER",
        linked_log,
    ),
    Fault(
        "the model's factory raises",
        "model.factory: 'tests.faulty_task:model' failed: tests/faulty_task.py:LINE, in model: FileNotFoundError: "
        "checkpoints/best.pt; call it in Python with model.kwargs to see the whole traceback",
        of("model.kwargs.what=raise"),
    ),
    Fault(
        "a sample cannot be read",
        f"{RAISED} (reading the data; the data's test part, batch 3)",
        of("data.kwargs.test=raise"),
    ),
    Fault(
        "a sample cannot be read, in a process of its own",
        f"{RAISED} (reading the data; the data's test part, batch 3)",
        of("data.kwargs.test=raise", "data.workers=1"),
    ),
    Fault(
        "a process that reads the data is killed",
        "a process that reads the data died, often for want of memory; try data.workers=0",
        of("data.kwargs.test=die", "data.workers=1"),
    ),
    Fault(
        "samples differ in shape",
        "the data's test part, batch 3: the samples of a batch cannot be stacked (stack expects each tensor to be "
        "equal size, but got [1, 8, 8] at entry 0 and [1, 4, 8] at entry 4); give all of them the same shape and type. "
        f"One of them is tuple of (tuple, Tensor), and {SAMPLE}",
        of("data.kwargs.test=shape"),
    ),
    Fault(
        "a part has fewer samples than it says",
        f"{READING}; its length is given as 50; the data's test part)",
        of("data.kwargs.test=long"),
    ),
    Fault(
        "a part says a length below zero",
        "the data's test part has a length that is no number of samples (__len__() should return >= 0); correct its "
        "`__len__`",
        of("data.kwargs.test=negative"),
    ),
    Fault(
        "a part is empty",
        "the data's test part has no samples; give it at least one, or check the path it is read from",
        of("data.kwargs.test=empty"),
    ),
    Fault(
        "a calibration sample of 1e38",
        "a calibration sample makes a value that is not finite; look for NaN, infinite and far too large values in "
        "the calibration part",
        of("data.kwargs.calibration=far"),
    ),
    Fault(
        "a calibration sample that is NaN",
        "a calibration sample makes a value that is not finite; look for NaN, infinite and far too large values in "
        "the calibration part",
        of("data.kwargs.calibration=no_number"),
    ),
    Fault(
        "a test sample that is infinite",
        "FP32's accuracy is not finite on the test part: check model, data and metric",
        of("data.kwargs.test=infinite"),
    ),
    Fault(
        "the metric raises",
        "tests/faulty_task.py:LINE, in score: ZeroDivisionError: no score (gate.metric: tests.faulty_task:metric, "
        "given the model's outputs and the data's targets; the data's validation part, batch 1)",
        of(f"gate.metric='{TASK}:metric'", "gate.direction=higher"),
    ),
    Fault(
        "the loss raises",
        "tests/faulty_task.py:LINE, in of: TypeError: this loss wants weights (qat.loss: tests.faulty_task:loss, given "
        "the model's outputs [8, 3] and targets [8])",
        of(f"qat.loss='{TASK}:loss'", "qat.when=missed"),
    ),
    Fault(
        "a training sample cannot be read",
        f"training cannot work as it is: {RAISED} (reading the data; the data's train part, batch 1); the ladder is "
        "climbed all the same",
        of("data.kwargs.train=raise", "data.batch_size=40", "qat.when=missed", code=0),
    ),
    Fault(
        "the batch is too large for the memory",
        f"{NO_ROOM} for a batch of 40 samples: one of N took N MiB and 40 would take about N MiB, N MiB is available; "
        "write data.batch_size=N",
        little_memory,
    ),
    Fault(
        "a sample takes more memory than there is",
        f"tests/faulty_task.py:LINE, in takes_too_much: {NO_ROOM} (PyTorch asked for 4,194,304 TiB); {SMALLER}",
        of("data.kwargs.test=memory"),
    ),
    Fault(
        "the model takes more memory than there is",
        f"tests/faulty_task.py:LINE, in forward: {NO_ROOM} (PyTorch asked for 1,048,576 TiB); {SMALLER}",
        of("model.kwargs.what=huge"),
    ),
    Fault(
        "an input is 0 in all calibration samples",
        "the model's input extra is 0 in all 32 calibration samples, so that the quantized model will know it as "
        "nothing else; give samples like those that it will be used for",
        once(*HARMLESS),
    ),
    Fault(
        "training samples are in `test`",
        "40 of 40 train samples that were looked at are in the test part as well, which the gate is judged on: what is "
        "fitted to them or chosen by them looks better there than it is; give `test` samples of its own",
        once(*HARMLESS),
    ),
    Fault(
        "calibration samples are in `test`",
        "32 of 32 calibration samples that were looked at are in the test part as well, which the gate is judged on: "
        "what is fitted to them or chosen by them looks better there than it is; give `test` samples of its own",
        of("data.kwargs.calibration=shared", code=0),
    ),
    Fault(
        "`test` is augmented at random",
        "samples of the test part come out otherwise each time they are read (random augmentation?): figures cannot "
        "be compared, and a later start knows the part by its length and form only; leave augmentation to `train`",
        of("data.kwargs.test=random", code=0),
    ),
]


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(sys, "argv", ["qatflow"])
    return Place(tmp_path, capsys)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.wrong)
def test_a_fault_is_told_in_one_sentence(fault: Fault, place: Place) -> None:
    said = fault.arrange(place)
    assert fault.says in [re.sub(r"^(error: |note: |  - )", "", line) for line in said.splitlines()], said


def test_the_page_has_every_fault() -> None:
    rows = [(fault.wrong, fault.says) for fault in FAULTS]
    check_table("docs/faults.md", "faults", ("what goes wrong", "what qatflow says"), rows)
