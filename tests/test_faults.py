"""What goes wrong while a run is running, each fault arranged for real, and the sentence that is said of it.

`docs/faults.md` is made of the same rows.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from qatflow import Recipe, run
from qatflow.door import cli
from qatflow.errors import RunFolderError
from qatflow.report.__main__ import main as report
from qatflow.results.memory import forget_peak, room
from qatflow.results.result import RunResult
from qatflow.tasks.batches import SAMPLE
from tests.made_tables import ROOT, check_table

resource = pytest.importorskip("resource", reason="limits of a process are POSIX's")
TASK = "tests.faulty_task"
RECIPE = {
    "defaults": [{"override /precision": "w8a8"}, {"override /steps": []}, {"override /qat": "never"}],
    "model": {"factory": f"{TASK}:model"},
    "data": {"factory": f"{TASK}:data", "batch_size": 8},
    "gate": {"max_drop": 0.5},
    "export": {"verify": False},
    "report": {"html": False},
}
LONG = "n" * 300
SAID: dict[tuple[str, ...], str] = {}
FULL = "the disk is full; make room there and run again: what is finished is kept"
NO_ROOM = "the memory does not suffice"
SMALLER = (
    "take a smaller data.batch_size (qat.batch_size for training), or fewer samples (calibration.samples, those of the "
    "steps)"
)


class Place:
    """Where one fault is arranged: a user's folder, and what the command line said there."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.run = folder / "run"
        self._capsys = capsys
        (folder / "recipes").mkdir()
        text = yaml.safe_dump(RECIPE, sort_keys=False)
        (folder / "recipes" / "faulty.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")

    def command(self, *given: str, code: int = 1) -> str:
        """Carry out the recipe; returns what was said, paths replaced."""
        return self.said(
            cli.main, "--config-dir", str(self.folder), "recipe=faulty", "trust=[tests]", *given, code=code
        )

    def said(self, main: Callable[[list[str]], int], *given: str, code: int = 1) -> str:
        found = main(list(given))
        text = "\n".join(self._capsys.readouterr())
        assert found == code, text
        assert "Traceback" not in text
        if (self.run / "result.json").exists():
            left = RunResult.model_validate_json((self.run / "result.json").read_text(encoding="utf-8"))
            ends = {"finished"} if code == 0 else {"failed"} if FULL not in text else {"failed", "running", "finished"}
            assert left.status in ends
            assert (left.status == "failed") == bool(left.error)
        return self.shortened(text)

    def shortened(self, text: str) -> str:
        """Return a text with paths and lines replaced."""
        text = text.replace(str(self.folder), "FOLDER").replace(LONG, "NNN").replace(f"{ROOT}{os.sep}", "")
        return re.sub(r"faulty_task\.py:\d+", "faulty_task.py:LINE", text)


class Fault(NamedTuple):
    """A row of the table: what goes wrong, what is said, and how it is arranged."""

    wrong: str
    says: str
    arrange: Callable[[Place], str]


@contextmanager
def limit(name: str, most: int) -> Iterator[None]:
    """Let this process have no more of something for a while."""
    kind = getattr(resource, name)
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


full = partial(limit, "RLIMIT_FSIZE")
"""A disk that takes no file larger than this: what is written beyond it fails as on a full one."""


def of(*given: str, code: int = 1) -> Callable[[Place], str]:
    """Return what runs the recipe with overrides, in a run folder."""
    return lambda place: place.command(f"run.dir={place.run}", *given, code=code)


def once(*given: str) -> Callable[[Place], str]:
    """Return what runs the recipe with overrides to its end, for several rows once."""

    def arrange(place: Place) -> str:
        if given not in SAID:
            SAID[given] = of(*given, code=0)(place)
        return SAID[given]

    return arrange


def in_folder(path: str, *more: str, key: str = "run.dir") -> Callable[[Place], str]:
    """Return what runs the recipe in a folder that `path` names below the user's."""

    def arrange(place: Place) -> str:
        (place.folder / "file").touch()
        return place.command(*more, f"{key}={place.folder / path}")

    return arrange


def locked(place: Place) -> str:
    """Run in a folder without permission; root is let everything, so that it steps back for this."""
    within = place.folder / "locked"
    within.mkdir()
    within.chmod(0o555)
    recipe = Recipe.model_validate({"model": RECIPE["model"], "data": RECIPE["data"], "qat": {"when": "never"}})
    with _somebody() if os.geteuid() == 0 else nullcontext(), pytest.raises(RunFolderError) as raised:
        run(recipe, within / "run", trust=("tests",))
    return place.shortened(str(raised.value))


@contextmanager
def _somebody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def reports_is_a_file(place: Place) -> str:
    (place.folder / "reports").touch()
    before = Path.cwd()
    os.chdir(place.folder)
    try:
        return place.command()
    finally:
        os.chdir(before)


def full_at(most: int, *given: str) -> Callable[[Place], str]:
    """Return what runs the recipe on a disk that takes no larger file."""

    def arrange(place: Place) -> str:
        with full(most):
            return of(*given)(place)

    return arrange


def full_at_onnx(place: Place) -> str:
    """Go on with a finished run where its weights still fit, and a file with a graph besides does not."""
    of("model.kwargs.width=1000", code=0)(place)
    weights = (place.run / "export" / "model.safetensors").stat().st_size
    with full(weights + 100):
        return of("model.kwargs.width=1000")(place)


def full_at_report(place: Place) -> str:
    of(code=0)(place)
    with full(8000):
        return place.said(report, str(place.run))


def full_at_log(place: Place) -> str:
    place.run.mkdir()
    (place.run / "log.txt").symlink_to("/dev/full")
    return of(code=0)(place)


def full_at_study(place: Place) -> str:
    with full(30_000):
        return of("qat.when=always", "search.max_trials=1", code=0)(place)


def little_memory(place: Place) -> str:
    """Leave so much that single images fit, and a batch of all does not."""
    left = room()
    if not forget_peak() or left is None:
        pytest.skip("this system does not tell what memory a process takes")
    with limit("RLIMIT_AS", _addresses() + 400 * 2**20):
        said = of("model.kwargs.what=wide", "model.kwargs.width=128", "data.batch_size=40")(place)
    return re.sub(r"(one of |write data\.batch_size=)\d+", r"\1N", re.sub(r"[\d.]+ [MG]iB", "N MiB", said))


def _addresses() -> int:
    found = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found
    return int(found[1]) * 1024


HARMLESS = (
    "data.kwargs={calibration: zero, train: shared}",
    "qat.when=missed",
)
RAISED = "tests/faulty_task.py:LINE, in raises: ValueError: sample 20 is corrupt"
ELSEWHERE = "choose another folder with run.dir=FOLDER"
READING = "tests/faulty_task.py:LINE, in __getitem__: IndexError: no such sample (reading the data"

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
    Fault("the disk is full at the start", f"cannot write FOLDER/run/recipe.yaml: {FULL}", full_at(0)),
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
