"""`docs/tools.md` says which file goes into which tool: every line is run by a test, or says that it is not tried."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "tools.md").read_text(encoding="utf-8")


def test_every_line_is_run_by_a_test_that_exists_or_not_tried() -> None:
    table = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(table) > 10
    there = set(re.findall(r"^def (test_\w+)", "\n".join(one.read_text() for one in TESTS.rglob("*.py")), re.MULTILINE))
    for line in table:
        last = line.strip("|").split("|")[-1].strip()
        assert last == "not tried" or last.strip("`") in there, line


def test_every_file_of_an_export_is_there() -> None:
    for name in ("model.onnx", "model_float.onnx", "model.encodings", "model.safetensors", "model.pt2", "model.pte"):
        assert f"| `{name}`" in PAGE or f", `{name}` |" in PAGE
