"""Signals end every command like Ctrl-C: one sentence, their exit code, no traceback; from its first import on."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qatflow.report.read import read_result
from qatflow.results import signals
from qatflow.results.signals import carried_out, terminated_like_interrupted, undisturbed
from tests.test_unfinished import ROOT, command

CODES = {"SIGTERM": 143, "SIGHUP": 129, "SIGINT": 130}
NAMES = {"SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP", "SIGINT": "Ctrl-C"}
COMMANDS = {
    "qatflow": ["recipe=tiny", "--cfg", "job"],
    "qatflow.inspect": ["recipe=tiny"],
    "qatflow.sensitivity": ["recipe=tiny"],
    "qatflow.worker": ["nowhere"],
    "qatflow.report": ["nowhere"],
    "qatflow.encodings": ["check", "nowhere"],
}
AT_IMPORT = """
import signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.{name})
sys.meta_path.insert(0, Finder())
"""
"""Sends a signal when a module is about to be imported."""


def run(line: list[str], folder: Path, at: str = "", name: str = "SIGTERM", **options: Any) -> Any:
    """Run a Python command; `folder` gets a `sitecustomize` that sends it a signal at an import."""
    (folder / "sitecustomize.py").write_text(AT_IMPORT.format(module=at, name=name))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    line = [sys.executable, "-W", "error", *line]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("name", CODES)
def test_a_signal_while_modules_are_imported_is_one_sentence(name: str, tmp_path: Path) -> None:
    done = run(["-m", "qatflow", *COMMANDS["qatflow"]], tmp_path, "hydra", name)
    assert (done.returncode, done.stdout, done.stderr) == (CODES[name], "", f"stopped by {NAMES[name]}\n")


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_hears_a_signal_at_its_first_import(module: str, tmp_path: Path) -> None:
    first = {"qatflow.worker": "yaml", "qatflow.encodings": "qatflow.export.encodings", "qatflow.report": "pandas"}
    done = run(["-m", module, *COMMANDS[module]], tmp_path, first.get(module, "rich"))
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "stopped by SIGTERM\n")


@pytest.mark.parametrize("name", CODES)
def test_a_signal_while_torch_is_imported_is_one_sentence(name: str, tmp_path: Path) -> None:
    done = run(["-m", "qatflow", *command(tmp_path / "mine", "")], tmp_path, "torch.nn", name)
    assert (done.returncode, done.stderr) == (CODES[name], f"stopped by {NAMES[name]}\n")
    assert not (tmp_path / "mine" / "run" / "result.json").exists()


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As `nohup` does it."""
    code = (
        "import signal, os, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    line = ["-c", code, sys.executable, "-m", "qatflow", *COMMANDS["qatflow"]]
    done = run(line, tmp_path, "omegaconf", "SIGHUP")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_run_is_stopped_with_a_result(name: str, tmp_path: Path) -> None:
    done = run(["-m", "qatflow", *command(tmp_path / "mine", f"test:{name}")], tmp_path)
    assert done.returncode == CODES[name]
    assert done.stderr.startswith(f"stopped by {name}\n\nStopped before the gate was decided.")
    assert "Traceback" not in done.stderr
    left = read_result(tmp_path / "mine" / "run")
    assert (left.status, left.error) == ("interrupted", name)


def test_a_terminal_that_is_closed_stops_a_run_with_a_result(tmp_path: Path) -> None:
    argv = command(tmp_path, "test:hang")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-m", "qatflow", *argv], {**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        shown = b""
        while b"hangs" not in shown:
            shown += os.read(terminal, 4096)
    finally:
        os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    left = read_result(tmp_path / "run")
    assert (left.status, left.error) == ("interrupted", "SIGHUP")
    assert (tmp_path / "run" / "report.html").exists()


def test_a_signal_waits_until_the_end_is_written_down(capsys: pytest.CaptureFixture[str]) -> None:
    written = []

    def work() -> int:
        with undisturbed():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            written.append("all")
        return 0

    before = {name: signal.getsignal(getattr(signal, name)) for name in signals.ENDING}
    assert carried_out(work, "the rest") == 143
    assert written == ["all"]
    assert capsys.readouterr().err == "stopped by SIGTERM: the rest\n"
    assert {name: signal.getsignal(getattr(signal, name)) for name in signals.ENDING} == before


def test_what_another_program_handles_is_left_to_it() -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with undisturbed():
            signal.raise_signal(signal.SIGTERM)
        with terminated_like_interrupted():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert heard == [1, 1]
    finally:
        signal.signal(signal.SIGTERM, before)
