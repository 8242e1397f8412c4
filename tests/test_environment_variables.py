"""Environment variables in recipes: read where they are used, and written nowhere."""

from pathlib import Path

import pytest
import yaml

from qatflow.door.cli import main
from qatflow.errors import RecipeError
from qatflow.recipe.variables import OPEN_TO_THEM, as_written, read

SECRET = "cellar-of-the-castle"
DATA = """
from qatflow.tasks.digits import digits

def splits(root, fail=False):
    assert root.endswith("-castle/images"), root
    if fail:
        raise FileNotFoundError(f"there is nothing in {root}")
    return digits()
"""
RECIPE = """
defaults: [tiny]
data:
  name: null
  factory: castle.data:splits
  kwargs: {root: "${oc.env:CASTLE}/images"}
gate: {max_drop: 0.5}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "castle").mkdir()
    (tmp_path / "castle" / "data.py").write_text(DATA)
    (tmp_path / "mine" / "recipes").mkdir(parents=True)
    (tmp_path / "mine" / "recipes" / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CASTLE", SECRET)
    return tmp_path


def run(*line: str) -> int:
    return main(["--config-dir", "mine", "recipe=mine", "trust=[castle]", "run.dir=run", *line])


def files_with(folder: Path, text: str) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes())


def test_a_run_reads_it_and_no_file_has_it(project: Path) -> None:
    assert run() == 0
    assert files_with(project / "run", SECRET) == []
    written = yaml.safe_load((project / "run" / "recipe.yaml").read_text())
    assert written["data"]["kwargs"] == {"root": "${oc.env:CASTLE}/images"}
    assert files_with(project / "run", "${oc.env:CASTLE}/images") >= ["recipe.yaml"]
    again = main(["recipe=run/recipe.yaml", "run.dir=run", "trust=[castle]"])
    assert again == 0


def test_what_quotes_it_is_told_as_it_is_written(project: Path) -> None:
    assert run("data.kwargs.fail=true") == 1
    assert files_with(project / "run", SECRET) == []
    assert "there is nothing in ${oc.env:CASTLE}/images" in (project / "run" / "result.json").read_text()
    assert "there is nothing in ${oc.env:CASTLE}/images" in (project / "run" / "log.txt").read_text()


def test_a_recipe_is_shown_as_it_is_written(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--cfg", "job", "--resolve") == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["kwargs"]["root"] == "${oc.env:CASTLE}/images"


def test_other_interpolations_lead_to_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("description=${data.kwargs.root}", "--cfg", "job", "--resolve")
    assert run(*line) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert (
        f"description: '${{oc.env:CASTLE}}/images' is an environment variable, and none may stand here; {STAND}" in said
    )


STAND = f"write the value itself; they may stand in {', '.join(OPEN_TO_THEM)}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "seed=${oc.env:SEED}",
            f"seed: '${{oc.env:SEED}}' is an environment variable, and none may stand here; {STAND}",
        ),
        (
            "data.kwargs.root=${oc.env:NOWHERE}",
            "data.kwargs.root: the environment variable 'NOWHERE' is not set; set it, or write a default as in "
            "${oc.env:NOWHERE,value}",
        ),
        (
            "run.dir=${oc.env:CASTLE}",
            f"run.dir: '${{oc.env:CASTLE}}' is an environment variable, and none may stand here; {STAND}",
        ),
    ],
)
def test_where_none_may_stand(project: Path, line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line) == 1
    assert capsys.readouterr().err.splitlines() == ["error: the recipe has 1 mistake:", f"  - {said}"]


def test_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASTLE", SECRET)
    value = {"roots": ["${oc.env:CASTLE}/a", "b"], "size": 3, "else": "${oc.env:NOWHERE,'there is none'}"}
    assert read(value, "k") == {"roots": [f"{SECRET}/a", "b"], "size": 3, "else": "there is none"}
    with pytest.raises(RecipeError, match=r"k\.root\[0\]: the environment variable 'NOWHERE' is not set"):
        read({"root": ["${oc.env:NOWHERE}"]}, "k")


def test_writing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASTLE", SECRET)
    monkeypatch.setenv("SHORT", "1")
    value = {"a": ["${oc.env:CASTLE}"], "b": "${oc.env:SHORT}"}
    assert as_written(f"no {SECRET.upper()} on 1 hill", value) == "no ${oc.env:CASTLE} on 1 hill"
    monkeypatch.setenv("CASTLE", "first line\nsecond line\n")
    assert as_written("first line: second line", value) == "${oc.env:CASTLE}: ${oc.env:CASTLE}"
    assert as_written(r"'first line\nsecond line\n'", value) == "'${oc.env:CASTLE}'"
