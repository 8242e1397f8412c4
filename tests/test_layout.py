"""The shape of the code: small files, short functions, a story on one screen, nouns for names."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import qatflow
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.steps import STEPS

ROOT = Path(qatflow.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
BROAD = {"Exception", "BaseException"}
LOOKS_AGAIN = {"graph/called.py", "graph/capture_errors.py"}
"""They do once more what has failed, to find the line; that it fails again says nothing new."""
PRIVATE = {
    "door/hydra_parts.py": "how Hydra composes, and starts its plugins",
    "graph/tree.py": "how torch flattens nested values, and how a graph is called",
    "graph/caches.py": "what torch remembers of graphs",
    "graph/operators.py": "torch's class of operators, and their schemas",
    "export/torch_form.py": "registers torch's ops that quantize",
    "quant/compiled_files.py": "where torch.compile keeps what it compiled",
    "quant/quantizer.py": "which tensors were changed in place; what `to` and `cuda` call",
    "results/signals.py": "ends a process at once, whatever its threads do",
    "qat/study.py": "Optuna's signs of life from outside `optimize`, and the order of studies",
}
"""Files that touch what others keep private, and for what: a new version of theirs can break these only."""


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


def handlers(path: Path) -> Iterator[tuple[str, str]]:
    """Yield place and fault of every `except` of a file, and every `suppress`, that lets an error go unseen."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        place = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "suppress":
            yield from [(place, "suppresses everything")] if {ast.unparse(one) for one in node.args} & BROAD else []
        if not isinstance(node, ast.ExceptHandler):
            continue
        says_why = "#" in "".join(text.splitlines()[node.lineno - 1 : node.end_lineno])
        if all(map(is_nothing, node.body)) and not says_why:
            yield place, "does nothing and does not say why"
        inside = [one for line in node.body for one in ast.walk(line)]
        is_told = any(
            isinstance(one, ast.Raise)
            or (isinstance(one, ast.Name) and one.id == node.name)
            or (isinstance(one, ast.Call) and ast.unparse(one.func) == "traceback.print_exc")
            for one in inside
        )
        if (node.type is None or ast.unparse(node.type) in BROAD) and not is_told:
            yield place, "catches everything and tells nobody"


def is_nothing(line: ast.stmt) -> bool:
    is_constant = isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
    return is_constant or isinstance(line, (ast.Pass, ast.Continue, ast.Break))


def test_errors_are_not_swallowed() -> None:
    found = {str(path.relative_to(ROOT)): list(handlers(path)) for path in FILES}
    assert {name: faults for name, faults in found.items() if faults and name not in LOOKS_AGAIN} == {}
    assert {fault for name in LOOKS_AGAIN for _, fault in found[name]} == {"suppresses everything"}


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("except OSError: pass", "does nothing and does not say why"),
        ("except OSError: ...", "does nothing and does not say why"),
        ("except OSError: pass  # gone already", None),
        ("except: pass  # whatever", "catches everything and tells nobody"),
        ("except: x = 1", "catches everything and tells nobody"),
        ("except Exception as error: x = 1", "catches everything and tells nobody"),
        ("except Exception as error: x = error", None),
        ("except Exception: raise", None),
        ("except OSError: x = 1", None),
    ],
)
def test_a_swallowed_error_is_found(body: str, fault: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(f"try:\n    x = 0\n{body}\n", encoding="utf-8")
    assert [found for _, found in handlers(path)] == ([fault] if fault else [])
    path.write_text("with contextlib.suppress(Exception):\n    x = 0\n", encoding="utf-8")
    assert [found for _, found in handlers(path)] == ["suppresses everything"]


def private_names(path: Path) -> Iterator[str]:
    """Yield the private names that a file imports, or reads and does not define; `torch.ops.aten`'s are public."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    own = {node.attr for node in attributes if ast.unparse(node.value) in ("self", "cls")}
    own |= {node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr not in own and ast.unparse(node.value) != "aten":
            yield from filter(is_private, [node.attr])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = str(node.args[1].value) if isinstance(node.args[1], ast.Constant) else ""
            yield from filter(is_private, [name])
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names if any(map(is_private, one.name.split("."))))
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            whole = [f"{node.module}.{one.name}" for one in node.names]
            yield from (name for name in whole if any(map(is_private, name.split("."))))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in ("_replace", "_asdict", "_fields")


def test_what_others_keep_private_is_touched_in_one_file_each() -> None:
    found: dict[str, set[str]] = {}
    for path in FILES:
        for name in private_names(path):
            found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
    assert {file for files in found.values() for file in files} == set(PRIVATE)


def test_private_names_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    own = "self._e = f._e\n_k: int = 0\nl._k\n"
    path.write_text(f"import a._b\nfrom c import _d\n{own}f._g\naten._h\ngetattr(i, '_j')\n", encoding="utf-8")
    assert sorted(private_names(path)) == ["_g", "_j", "a._b", "c._d"]


def test_a_newcomer_finds_few_doors() -> None:
    commands = {"inspect", "sensitivity", "worker", "encodings"}
    modules = {path.stem for path in ROOT.glob("*.py") if not path.stem.startswith("__")} - commands
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert len(modules) <= 6, modules
    assert len(packages) <= 11, packages


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
