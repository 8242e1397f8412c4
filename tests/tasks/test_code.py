"""The code behind a factory: all of the user's own that it uses counts, installed packages by their version."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qatflow.errors import RecipeError
from qatflow.tasks import code
from qatflow.tasks.code import code_fingerprint
from qatflow.tasks.task import factory_fingerprint

FILES = {
    "__init__.py": "",
    "metric.py": "import numpy\nfrom codecase import shared as s\nfrom codecase.base import Base\n"
    "from codecase.settings import LIMIT\n\ndef make(scale=1.0):\n    from codecase.late import late\n"
    "    return lambda outputs, target, fp32: late(s.score(outputs) * scale * LIMIT)\n\n"
    "class Metric(Base):\n    pass\n",
    "shared.py": "from codecase.deep import deep\n\ndef score(x):\n    return deep(x)\n",
    "deep.py": "def deep(x):\n    return x.mean(1)\n",
    "base.py": "class Base:\n    higher_is_better = True\n",
    "settings.py": "LIMIT = 0.5\n",
    "late.py": "def late(x):\n    return x\n",
    "training.py": "EPOCHS = 3\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of the user's, from scratch for every test."""
    folder = tmp_path / "codecase"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "codecase"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def fingerprint(name: str = "make") -> str:
    """Return the hash as a new process would have it."""
    forget()
    for one in ("training", "late"):
        importlib.import_module(f"codecase.{one}")
    return code_fingerprint(getattr(importlib.import_module("codecase.metric"), name))


@pytest.mark.parametrize("changed", [name for name in FILES if name not in ("__init__.py", "training.py")])
def test_every_module_that_a_metric_uses_counts(changed: str, package: Path) -> None:
    before = fingerprint()
    assert before == fingerprint()
    (package / changed).write_text(FILES[changed] + "# changed\n")
    assert fingerprint() != before
    (package / changed).write_text(FILES[changed])
    assert fingerprint() == before


def test_a_module_that_it_does_not_use_counts_nothing(package: Path) -> None:
    before = fingerprint()
    (package / "training.py").write_text("EPOCHS = 30\n")
    assert fingerprint() == before


def test_what_is_behind_a_partial_and_an_object_counts(package: Path) -> None:
    fingerprint()
    metric = importlib.import_module("codecase.metric")
    assert code_fingerprint(functools.partial(metric.make, 2)) == code_fingerprint(metric.make)
    assert code_fingerprint(metric.Metric()) == code_fingerprint(metric.Metric) == code_fingerprint(metric)


def test_installed_packages_count_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.classification import MulticlassF1Score

    before = code_fingerprint(MulticlassF1Score)
    assert before == code_fingerprint(MulticlassF1Score)
    monkeypatch.setattr(code.metadata, "version", lambda package: "99")
    assert code_fingerprint(MulticlassF1Score) != before


def in_a_notebook(source: str) -> object:
    """Return the function `metric` of a module without a file."""
    scope: dict[str, object] = {"__name__": "__main__"}
    exec(compile(source, "<cell>", "exec"), scope)
    return scope["metric"]


def test_code_without_a_file_counts_by_what_it_does() -> None:
    text = (
        "SCALE = {scale}\ndef half(x):\n    return x / {by}\ndef metric(x):\n    return [half(y) * SCALE for y in x]\n"
    )
    known = code_fingerprint(in_a_notebook(text.format(scale=1, by=2)))
    assert known == code_fingerprint(in_a_notebook(text.format(scale=1, by=2) + "unused = 3\n"))
    for scale, by in ((2, 2), (1, 3)):
        assert known != code_fingerprint(in_a_notebook(text.format(scale=scale, by=by)))


def test_names_of_ours_and_untrusted_factories() -> None:
    assert factory_fingerprint("accuracy", (), "metric") == ""
    with pytest.raises(RecipeError, match="not trusted"):
        factory_fingerprint("my_package:loss", (), "loss")
    assert factory_fingerprint("torch.nn:CrossEntropyLoss", (), "loss") == code_fingerprint(torch.nn.MSELoss)
