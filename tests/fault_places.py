"""Arranges faults of a run for real: folders that cannot be used, full disks, little memory, and a user's own code."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import yaml

from qatflow import Recipe, run
from qatflow.door import cli
from qatflow.errors import RunFolderError
from qatflow.report.__main__ import main as report
from qatflow.results.memory import forget_peak, room
from qatflow.results.result import RunResult
from tests.made_tables import ROOT

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
MOST = 2_000_000
"""Bytes of a file, more than any other file of a run of `RECIPE` has."""
FULL = "the disk is full; make room there and run again: what is finished is kept"


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
    """Let the log be as long as a file may be, before the run adds to it."""
    place.run.mkdir()
    (place.run / "log.txt").write_bytes(bytes(MOST))
    with full(MOST):
        return of(code=0)(place)


def linked_log(place: Place) -> str:
    place.run.mkdir()
    (place.run / "log.txt").symlink_to("/dev/full")
    return of()(place)


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
