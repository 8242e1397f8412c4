"""Two at once in one run folder: one works, the other is told who does; a run that was cut off is in nobody's way."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from qatflow.errors import RunFolderError
from qatflow.report.read import CUT_OFF, read_result
from qatflow.results import lock
from qatflow.results.lock import FILE, Holder, held, holder
from tests.test_unfinished import ROOT, command, settings

HOLDING = """
import sys, time
from pathlib import Path
from qatflow.errors import RunFolderError
from qatflow.results.lock import held
notes = []
try:
    with held(Path(sys.argv[1]), notes.append):
        print("holds", *notes, flush=True)
        if len(sys.argv) > 2:
            {children}
        sys.stdin.readline()
except RunFolderError as error:
    print(error, flush=True)
"""
CHILDREN = "import os; child = os.fork(); print(child, flush=True) if child else time.sleep(600)"


def start(folder: Path, *more: str) -> "subprocess.Popen[str]":
    code = HOLDING.format(children=CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", code, str(folder), *more]
    return subprocess.Popen(line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: "subprocess.Popen[str]") -> None:
    process.communicate("\n", timeout=60)


def sign(folder: Path, **changes: object) -> None:
    """Leave a folder as a run on another machine does that was cut off."""
    left = {"pid": 77, "host": "elsewhere", "boot": "another", "since": "2026-01-31 12:00:00+00:00"}
    (folder / FILE).write_text(json.dumps({**left, **changes}))


def test_a_folder_is_held_by_one_and_free_afterwards(tmp_path: Path) -> None:
    notes: list[str] = []
    with held(tmp_path, notes.append):
        found = holder(tmp_path)
        assert found is not None
        assert (found.pid, found.host, found.is_near) == (os.getpid(), socket.gethostname(), True)
        assert json.loads((tmp_path / FILE).read_text()) == vars(found)
        with pytest.raises(RunFolderError) as error, held(tmp_path, notes.append):
            pytest.fail("it was held")
        assert str(error.value) == (
            f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}, since {found.since}: wait for "
            "its end or stop it, or choose another folder with run.dir=FOLDER"
        )
    assert holder(tmp_path) is None
    with held(tmp_path, notes.append):
        pass
    assert notes == []


def test_of_many_processes_that_start_at_the_same_moment_one_wins(tmp_path: Path) -> None:
    sign(tmp_path, host=socket.gethostname())
    processes = [start(tmp_path) for _ in range(4)]
    told = [said(process) for process in processes]
    (winner,) = [process for process, line in zip(processes, told, strict=True) if line.startswith("holds")]
    assert sum(f"is in use by process {winner.pid} on " in line for line in told) == 3
    for process in processes:
        end(process)
    assert (tmp_path / FILE).read_text() == ""


def test_a_killed_process_holds_nothing_though_its_children_live(tmp_path: Path) -> None:
    process = start(tmp_path, "with a child")
    assert said(process) == "holds"
    child = int(said(process))
    assert holder(tmp_path) is not None
    process.kill()
    process.wait()
    os.kill(child, 0)  # it is there
    deadline = time.time() + 10
    while holder(tmp_path) is not None and time.time() < deadline:
        time.sleep(0.05)  # the child lets go as soon as it runs
    try:
        assert holder(tmp_path) is None
        notes: list[str] = []
        with held(tmp_path, notes.append):
            found = holder(tmp_path)
        assert found is not None
        assert found.pid == os.getpid()
        said_before = (
            f"an earlier run in this folder was cut off (process {process.pid} on {socket.gethostname()}, since "
        )
        assert notes[0].startswith(said_before)
        assert notes[0].endswith("): what it finished is taken over")
    finally:
        os.kill(child, signal.SIGKILL)
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.close()
        process.stdin.close()


def test_a_number_that_another_process_has_by_now_is_not_believed(tmp_path: Path) -> None:
    sign(tmp_path, pid=os.getppid(), host=socket.gethostname())
    notes: list[str] = []
    with held(tmp_path, notes.append):
        assert len(notes) == 1


def test_another_machine_that_shows_signs_of_life_is_believed(tmp_path: Path) -> None:
    sign(tmp_path)
    assert holder(tmp_path) == Holder(77, "elsewhere", "another", "2026-01-31 12:00:00+00:00")
    done, notes = threading.Event(), []

    def beat() -> None:
        while not done.wait(0.2):
            os.utime(tmp_path / FILE)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunFolderError, match="in use by process 77 on elsewhere"), held(tmp_path, notes.append):
            pytest.fail("it was held")
    finally:
        done.set()
        thread.join()
    watched = "process 77 on elsewhere, since 2026-01-31 12:00:00+00:00, may still be at work in"
    assert notes == [f"{watched} {tmp_path}: watching for 60 s"]


@pytest.mark.parametrize(("age", "watched"), [(0.0, True), (2 * lock.LONG, False)])
def test_another_machine_that_shows_none_is_gone(age: float, watched: bool, tmp_path: Path) -> None:
    sign(tmp_path)
    os.utime(tmp_path / FILE, (time.time() - age,) * 2)
    notes: list[str] = []
    with held(tmp_path, notes.append, grace=0.4):
        found = holder(tmp_path)
    assert found is not None
    assert found.pid == os.getpid()
    assert ["watching" in note for note in notes] == ([True] if watched else []) + [False]


def test_a_container_that_was_started_again_need_not_wait(tmp_path: Path) -> None:
    with held(tmp_path, lambda _: None):
        mine = holder(tmp_path)
    assert mine is not None
    if not mine.boot:
        pytest.skip("this system does not number its starts")
    sign(tmp_path, boot=mine.boot)
    notes: list[str] = []
    with held(tmp_path, notes.append):
        assert ["cut off" in note for note in notes] == [True]


@pytest.mark.parametrize("said", ["", "{", "[]", '{"pid": 1}', '{"pid": 1e999, "host": "", "boot": "", "since": ""}'])
def test_a_damaged_file_is_nobodys(said: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(said)
    assert holder(tmp_path) is None
    with held(tmp_path, pytest.fail):
        pass


def test_what_is_no_file_of_ours_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / FILE).symlink_to(tmp_path / "theirs")
    with pytest.raises(RunFolderError, match=f"{tmp_path}/{FILE} leads elsewhere"), held(tmp_path, pytest.fail):
        pytest.fail("it was held")
    assert (tmp_path / "theirs").read_text() == "theirs"


def until_it_hangs(process: "subprocess.Popen[bytes]") -> None:
    """Read its standard error up to where `tests.users_task` says that it hangs."""
    assert process.stderr is not None
    assert any(line == b"hangs\n" for line in process.stderr)


def test_processes_that_read_the_data_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    """In the midst of a sample as well."""
    argv = [*command(tmp_path, "test:hang"), "data.workers=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "qatflow", *argv]
    run = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def processes() -> list[str]:
        found = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
        return found.stdout.split()

    try:
        until_it_hangs(run)
        assert len(processes()) == 2
    finally:
        run.kill()
        run.communicate()
    assert holder(tmp_path / "run") is None
    deadline = time.time() + 4  # PyTorch itself looks every 5 s, and only between two samples
    while processes():
        assert time.time() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_two_sweeps_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(
        f"# @package _global_\n{yaml.safe_dump(settings(), sort_keys=False)}"
    )
    line = [sys.executable, "-m", "qatflow", "-m", "--config-dir", ".", "recipe=mine", "trust=[tests]", "seed=1,2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    nowhere = subprocess.DEVNULL

    def both(*more: str) -> list[int]:
        one, other = (
            subprocess.Popen([*line, *more], cwd=tmp_path, env=environment, stdout=nowhere, stderr=nowhere)
            for _ in range(2)
        )
        return [one.wait(300), other.wait(300)]

    assert both() == [0, 0]
    sweeps = list((tmp_path / "reports" / "sweep").iterdir())
    assert len(sweeps) == 2
    for sweep in sweeps:
        assert list(pd.read_csv(sweep / "summary.csv")["status"]) == ["finished", "finished"]
        assert not list(sweep.rglob(".*"))
    same = tmp_path / "same"
    assert set(both(f"hydra.sweep.dir={same}")) <= {0, 1}  # a job that the other one has at work is refused
    assert [read_result(same / job).status for job in "01"] == ["finished", "finished"]
    assert list(pd.read_csv(same / "summary.csv")["run"].astype(str)) == ["0", "1"]


def test_a_second_run_is_refused_in_one_sentence_and_touches_nothing(tmp_path: Path) -> None:
    argv = command(tmp_path, "test:hang")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-W", "error", "-m", "qatflow", *argv]
    first = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        until_it_hangs(first)

        def files() -> dict[str, tuple[float, int]]:
            found = [path for path in (tmp_path / "run").rglob("*") if path.name != FILE]
            return {str(path): (path.stat().st_mtime, path.stat().st_size) for path in found}

        before = files()
        second = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert (second.returncode, second.stdout) == (1, "")
        assert second.stderr.startswith(f"error: {tmp_path}/run is in use by process {first.pid} on ")
        assert second.stderr.count("\n") == 1
        assert files() == before
        assert read_result(tmp_path / "run").status == "running"
    finally:
        first.kill()
        first.communicate()
    cut_off = read_result(tmp_path / "run")
    assert (cut_off.status, cut_off.error) == ("interrupted", CUT_OFF)


@pytest.mark.parametrize("name", ["log.txt", "candidates", "export/model.onnx"])
def test_a_folder_in_which_something_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    folder, theirs = tmp_path / "run", tmp_path / "theirs"
    (folder / name).parent.mkdir(parents=True)
    theirs.mkdir()
    (folder / name).symlink_to(theirs)
    with (
        pytest.raises(RunFolderError, match="leads elsewhere; remove it, or choose another folder"),
        held(folder, print),
    ):
        pass
    assert sorted(one.name for one in folder.iterdir()) == [name.split("/")[0]]
