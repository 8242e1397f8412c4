"""The examples do what their page says: its commands are carried out as they stand."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qatflow.results.result import RunResult

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, away from the checkout."""
    return Path(shutil.copytree(ROOT / "examples", tmp_path_factory.mktemp("user") / "examples"))


def carried_out(command: str, folder: Path) -> str:
    program, *arguments = shlex.split(command)
    assert program == "python"
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_are_commands() -> None:
    assert [command.split()[2] for command in COMMANDS] == ["pytest", "qatflow.inspect", "qatflow"]


def test_the_conformance_suites_pass(folder: Path) -> None:
    assert "2 passed" in carried_out(COMMANDS[0], folder)


def test_inspect_shows_the_table(folder: Path) -> None:
    shown = carried_out(COMMANDS[1], folder)
    assert "target small_npu: quantizers stand at each tensor's producer, biases are int32" in shown
    assert "int8 symmetric" in shown
    assert "hardtanh_12  clip  small_npu runs aten.hardtanh in float" in shown


def test_the_recipe_meets_its_gate_with_zeros(folder: Path) -> None:
    carried_out(COMMANDS[2], folder)
    left = RunResult.model_validate_json((folder / "reports" / "pruned_npu" / "result.json").read_text())
    rungs = {one.id: one for one in left.candidates}
    assert list(rungs)[:5] == ["fp32", "naive", "fold_batch_norms", "small_npu.pruning:prune", "correct_bias"]
    assert rungs["small_npu.pruning:prune"].notes["zeros"] == pytest.approx(0.27, abs=0.03)
    assert rungs["small_npu.pruning:prune"].sqnr_db < rungs["fold_batch_norms"].sqnr_db
    assert left.passed
    assert left.verification is not None
    assert (left.verification.is_target, left.verification.verdict) == (False, "verified")
