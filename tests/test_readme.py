"""The README's Python examples run as they stand, and its recipe is the shipped one in short."""

import re
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


LOOP, LIGHTNING = 2, 3


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("index", [0, 1])
def test_example_runs(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(EXAMPLES[index], f"README example {index + 1}", "exec"), scope)
    if "result" in scope:
        assert scope["result"].best == "equalize"
        assert list(tmp_path.glob("reports/from_python/*/report.html"))
    else:
        assert scope["scores"].shape == (8, 1000)


@pytest.mark.parametrize("index", [LOOP, LIGHTNING])
def test_training_examples_recover_accuracy(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    untrained, _, training = EXAMPLES[LOOP].partition("loader = ")
    scope: dict[str, Any] = {}
    run(untrained, scope)
    before = accuracy(scope)
    if index == LOOP:
        run(f"loader = {training}", scope)
    else:
        run(f"loader = {training.splitlines()[0]}", scope)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's hints
            run(EXAMPLES[LIGHTNING], scope)
    assert accuracy(scope) > before + 0.01
    if index == LOOP:
        (session,) = [onnxruntime.InferenceSession(path) for path in tmp_path.glob("trained.onnx")]
        with torch.no_grad():
            wanted = scope["simulation"].model(scope["images"])
        (got,) = session.run(None, {session.get_inputs()[0].name: scope["images"].numpy()})
        assert float((torch.from_numpy(got).argmax(1) == wanted.argmax(1)).float().mean()) > 0.99


def run(source: str, scope: dict[str, Any]) -> None:
    exec(compile(source, "README example", "exec"), scope)


def accuracy(scope: dict[str, Any]) -> float:
    """Return the share of digits of the test part that the simulation of an example sorts right."""
    images, labels = (torch.stack(list(one)) for one in zip(*scope["data"].test, strict=True))
    with torch.no_grad():
        return float((scope["simulation"].model(images).argmax(1) == labels).double().mean())
