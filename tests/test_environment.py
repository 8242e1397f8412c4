"""`environment.json`: a command to paste, every imported version, the machine, and the user's own revisions."""

import json
import shlex
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
import torch

import qatflow
from qatflow.ladder.environment import Origin, environment, git_revisions, imported_packages
from qatflow.recipe import Recipe
from qatflow.results.store import sha256
from qatflow.tasks.models import shipped_weights
from tests.users_task import DATA, MODEL

CPU = torch.device("cpu")


def digits(**changes: object) -> Recipe:
    return Recipe.model_validate({"model": {"name": "digits_mobilenet"}, "data": {"name": "digits"}, **changes})


def checkout(folder: Path) -> Path:
    """Make a git checkout of one file."""
    folder.mkdir()
    (folder / "code.py").write_text("def model(): ...\n")
    for line in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -q -m a"):
        subprocess.run(["git", "-C", str(folder), *line.split()], check=True)
    return folder


def test_the_command_can_be_pasted() -> None:
    found = environment(digits(), Origin("again"), CPU, None)
    assert shlex.split(found["command"]) == sys.orig_argv
    assert found["directory"] == str(Path.cwd())


def test_the_machine_and_the_weights() -> None:
    weights = shipped_weights("digits_mobilenet")
    found = environment(digits(seed=7), Origin("again", Path("mine.yaml")), CPU, weights)
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] >= 1
    assert found["memory_gib"] > 0
    assert (found["device"], found["seed"], found["recipe_file"]) == ("cpu", 7, "mine.yaml")
    assert found["weights"] == {"file": str(weights), "sha256": sha256(weights)}
    assert json.loads(json.dumps(found)) == found


def test_a_gpu_is_named_with_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024\n")
    monkeypatch.setattr("qatflow.ladder.environment.DRIVER", tmp_path / "version")
    made = types.SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, major=9, minor=0)
    answers = {"is_available": True, "current_device": 0, "device_count": 2, "get_device_properties": made}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    found = environment(digits(), Origin("again"), CPU, None)["gpu"]
    assert (found["name"], found["count"], found["memory_gib"]) == ("NVIDIA H100", 2, 80.0)
    assert found["driver"] == "550.54.15"


def test_every_imported_distribution_is_there_and_no_other() -> None:
    found = imported_packages()
    for name in ("torch", "pydantic", "pytest", "PyYAML"):
        assert found[name] == metadata.version(name)
    assert ("ray" in found) == ("ray" in sys.modules)


def test_the_revision_is_that_of_the_users_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, recipes = checkout(tmp_path / "users_checkout"), checkout(tmp_path / "recipes")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(str(package))
    (package / "code_of_mine.py").write_text("")
    made = digits(model={"factory": "code_of_mine:model"}, gate={"metric": "torchmetrics:Accuracy"})
    found = environment(made, Origin("again", recipes / "mine.yaml"), CPU, None)["git_revisions"]
    assert set(found) == {str(package), str(recipes)}
    (package / "code.py").write_text("changed")
    assert git_revisions([package]) == {str(package): found[str(package)]}
    assert git_revisions([tmp_path]) == {}


def test_a_run_notes_hashes_of_model_and_data_and_what_it_imported(tmp_path: Path) -> None:
    def hashes(name: str, **changes: object) -> dict[str, str]:
        base = {"model": {"factory": MODEL}, "data": {"factory": DATA, "batch_size": 8}, "steps": {}}
        made = {**base, "qat": {"when": "never"}, "export": {"onnx": False}, "report": {"html": False}, **changes}
        qatflow.run(Recipe.model_validate(made), tmp_path / name, ("tests",))
        return json.loads((tmp_path / name / "environment.json").read_text())["hashes"]

    first, again = hashes("a"), hashes("b", precision={"weights": 4})
    assert list(first) == ["model", "calibration", "validation", "test"]
    assert first == again
    other = hashes("c", data={"factory": "tests.test_environment:more", "batch_size": 8})
    assert {name for name in first if other[name] != first[name]} == {"test"}


def more() -> dict[str, object]:
    """Data with another test part."""
    from tests.users_task import Samples, data

    return {**data(), "test": Samples("other", 40, "")}


def test_git_runs_nothing_that_a_checkout_names(tmp_path: Path) -> None:
    script = tmp_path / "theirs.sh"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\ncat\n")
    script.chmod(0o755)
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    (folder / ".gitattributes").write_text("*.txt filter=theirs\n")
    for line in ("init -q", "add .gitattributes", "-c user.name=a -c user.email=a@b commit -qm one", "add -N a.txt"):
        subprocess.run(["git", "-C", str(folder), *line.split()], check=True)
    for key in ("core.fsmonitor", "filter.theirs.clean"):
        subprocess.run(["git", "-C", str(folder), "config", key, str(script)], check=True)
    (folder / "a.txt").write_text("b")
    assert len(git_revisions([folder])[str(folder)]) == 12
    assert not (tmp_path / "ran").exists()
