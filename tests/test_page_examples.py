"""The Python of pages runs from the first block of a page to its last, and what it promises holds; `text` is what
qatflow says.
"""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from qatflow.door import cli
from tests.pages import BASIS, PAGES, blocks


def carry_out(source: str, scope: dict[str, Any]) -> None:
    exec(compile(source, "a page's example", "exec"), scope)


def accuracy(scope: dict[str, Any]) -> float:
    """Return the share of digits of the test part that a `Quantizer` sorts right."""
    images, labels = scope["data"]["test"].tensors
    with torch.no_grad():
        return float((scope["q"].model(images).argmax(1) == labels).double().mean())


def trained(block: str, line: str, scope: dict[str, Any]) -> tuple[float, float]:
    """Carry out a block that trains from a line on; returns the accuracy before and afterwards."""
    untrained, start, training = block.partition(f"\n{line}")
    carry_out(untrained, scope)
    before = accuracy(scope)
    carry_out(start + training, scope)
    return before, accuracy(scope)


def agrees(scope: dict[str, Any]) -> bool:
    """Tell whether the exported file sorts images as the trained model does, but for one in a hundred."""
    images = scope["images"]
    session = onnxruntime.InferenceSession("trained.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        wanted = scope["q"].model(images)
    return float((torch.from_numpy(got).argmax(1) == wanted.argmax(1)).double().mean()) > 0.99


def test_the_readme_quantizes_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    whole, loop = blocks("python", "README.md")
    carry_out(whole, scope)
    assert (scope["result"].passed, scope["result"].verdict.value) == (True, "met")
    assert (scope["result"].folder / "report.html").is_file()
    assert sum(line.startswith(("import ", "from ")) for line in loop.splitlines()) <= 2
    before, after = trained(loop, "weights, ranges", scope)
    assert round(before, 2) == 0.97 and after > 0.985
    assert agrees(scope)
    scope["q"] = scope["Quantizer"](scope["model"], scope["images"], calibration=scope["loader"], precision="w3a4")
    scope["q"].apply("fold_batch_norms")
    scope["q"].apply("equalize")
    assert accuracy(scope) > 0.985, "without training"


def test_python_from_the_first_block_to_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    whole, result, opened, lightning, recipe, parts = blocks("python", "docs/python.md")
    carry_out(whole, scope)
    assert scope["result"].folder == Path("reports/digits_w4a8")
    carry_out(result, scope)
    carry_out(opened, scope)
    assert {one.name for one in Path("for_the_converter").iterdir()} == {"model.encodings", "model_float.onnx"}
    assert accuracy(scope) > 0.985
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's hints
        before, after = trained(lightning, "trainer = ", scope)
    assert after > before + 0.01
    carry_out(recipe, scope)
    assert scope["result"].best == "equalize"
    carry_out(parts, scope)
    assert scope["scores"].shape == (32, 10)


@pytest.mark.parametrize("page", ["docs/targets.md", "docs/steps.md"])
def test_a_conformance_suite_passes(page: str) -> None:
    scope: dict[str, Any] = {}
    (block,) = blocks("python", page)
    carry_out(block, scope)


def test_no_python_is_left_out() -> None:
    tested = {"README.md": 2, "docs/python.md": 6, "docs/targets.md": 1, "docs/steps.md": 1}
    found = {page: len(blocks("python", page)) for page in PAGES if blocks("python", page)}
    assert found == {**tested, "docs/data.md": 1, "docs/export.md": 1}, (
        "those of docs/data.md and docs/export.md run in test_pages"
    )


# -- what qatflow says


DETECTOR = """
import torch
from torch import nn


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(4, 2)

    def forward(self, x):
        scores = self.scores(x)
        if scores.max() > 0.5:
            scores = scores * 2
        return scores


def samples():
    return {name: [(torch.randn(4), torch.tensor(0)) for _ in range(8)] for name in ("calibration", "test")}
"""
CORRUPT = """
from qatflow.tasks.digits import digits


class Corrupt:
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if index == 7:
            raise ValueError(f"sample {index} is corrupt")
        return self.samples[index]


def splits():
    parts = digits()
    return {"calibration": parts.calibration, "test": Corrupt(parts.test), "train": parts.train}
"""


def at_line(source: str, statement: str, line: int) -> str:
    """Return a source with a statement at a line."""
    before = source[: source.index(statement)].count("\n") + 1
    return "\n" * (line - before) + source


def words(text: str) -> list[str]:
    return text.split()


def test_a_model_that_cannot_be_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "detector.py").write_text(at_line(DETECTOR, "if scores.max", 41))
    told = {"model": "{factory: detector:Detector}", "data": "{factory: detector:samples}", "gate": "{max_drop: 0.1}"}
    (tmp_path / "detect.yaml").write_text("".join(f"{name}: {value}\n" for name, value in told.items()))
    assert cli.main(["recipe=detect.yaml", "trust=[detector]", "qat=never", "run.dir=run"]) == 1
    said = capsys.readouterr().err.replace(str(tmp_path), "/home/me")
    (block,) = blocks("text", "docs/data.md")
    pattern = r"\s+".join(map(re.escape, words(block))).replace(re.escape("(...);"), r"\(.*?\);")
    assert re.search(pattern, said, flags=re.DOTALL), said


def test_a_run_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_package", "my_project/recipes"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "my_package" / "data.py").write_text(at_line(CORRUPT, "raise ValueError", 31))
    head = BASIS.replace("  - override /data: digits\n", "  - override /steps: [fold_batch_norms]\n")
    (tmp_path / "my_project" / "recipes" / "mine.yaml").write_text(f"{head}data: {{factory: my_package.data:splits}}\n")
    (block,) = blocks("text", "docs/recipes.md")
    argv = words(block.partition("python -m qatflow ")[2].replace("'", ""))
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    monkeypatch.delitem(sys.modules, "my_package.data", raising=False)
    assert cli.main(argv) == 1
    said = capsys.readouterr().err.replace(str(tmp_path), "/home/me")
    assert words(said) == words(block)
