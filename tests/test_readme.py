"""The README's Python examples run as they stand, and its recipe is the shipped one in short."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_example_runs(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(EXAMPLES[index], f"README example {index + 1}", "exec"), scope)
    if "result" in scope:
        assert scope["result"].best == "equalize"
        assert list(tmp_path.glob("reports/from_python/*/report.html"))
    else:
        assert scope["scores"].shape == (8, 1000)
