"""The shape of the code: small files, short functions, a story on one screen, nouns for names."""

import ast
import re
from pathlib import Path

import pytest

import qatflow
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.steps import STEPS

ROOT = Path(qatflow.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def functions(path: Path) -> list[tuple[str, int]]:
    """Return every function of a file with its lines of code, docstring not counted."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            first = body[0].lineno if body else node.lineno
            found.append((node.name, (node.end_lineno or first) - first + 1))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_small_and_functions_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert not [(name, length) for name, length in functions(path) if length > 40 and name != "run"]


def test_the_run_fits_on_one_screen() -> None:
    lengths = dict(functions(ROOT / "engine.py"))
    assert lengths["run"] <= 60


def test_no_drawer_for_odds_and_ends() -> None:
    names = {path.stem for path in FILES} | {path.name for path in ROOT.rglob("*") if path.is_dir()}
    assert not names & {"utils", "util", "helpers", "helper", "misc", "common"}


def test_errors_are_not_swallowed() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"except( Exception| BaseException)?:\s*\n\s*pass", text), path


def test_tables_of_steps_are_literal_and_agree() -> None:
    assert list(STEPS) == list(STEP_CONFIGS)
    assert all(step.__name__ == name for name, step in STEPS.items())
    tree = ast.parse((ROOT / "recipe" / "steps.py").read_text(encoding="utf-8"))
    tables = [node for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    table = next(node for node in tables if node.target.id == "STEP_CONFIGS")
    assert isinstance(table.value, ast.Dict)
    assert all(isinstance(key, ast.Constant) and isinstance(value, ast.Name) for key, value in zip(
        table.value.keys, table.value.values, strict=True
    ))  # fmt: skip


def test_nothing_heavy_is_imported_by_the_package_alone() -> None:
    import subprocess
    import sys

    code = "import sys, qatflow; sys.exit(bool({'torch', 'hydra', 'pandas', 'optuna'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
