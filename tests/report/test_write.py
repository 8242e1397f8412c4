"""The files in a run folder: what is written, from what, and what is said where that is not possible."""

from __future__ import annotations

import errno
import json
import tempfile
from pathlib import Path

import pytest

from qatflow.errors import RunFolderError
from qatflow.report.html import render
from qatflow.report.read import read_result
from qatflow.report.write import write
from qatflow.results.result import RunResult

NAMES = ["results.csv", "layers.csv", "trials.csv", "report.html"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_writes_tables_and_page_and_nothing_else(met_folder: Path) -> None:
    before = set(contents(met_folder))
    written = write(met_folder)
    assert [path.name for path in written] == NAMES
    assert set(contents(met_folder)) == before | set(NAMES)


def test_rebuilding_gives_the_same_files(trained_folder: Path) -> None:
    write(trained_folder)
    first = contents(trained_folder)
    for name in NAMES:
        (trained_folder / name).write_text("old", encoding="utf-8")
    write(trained_folder)
    assert contents(trained_folder) == first


def test_the_page_is_the_rendering_of_what_is_in_the_folder(met_folder: Path, met_run: RunResult) -> None:
    write(met_folder)
    recipe = (met_folder / "recipe.yaml").read_text(encoding="utf-8")
    environment = json.loads((met_folder / "environment.json").read_text(encoding="utf-8"))
    assert (met_folder / "report.html").read_text(encoding="utf-8") == render(met_run, recipe, environment)


def test_the_page_can_be_left_out(met_folder: Path) -> None:
    assert [path.name for path in write(met_folder, html=False)] == NAMES[:3]
    assert not (met_folder / "report.html").exists()


def test_recipe_and_environment_may_be_missing(met_folder: Path) -> None:
    (met_folder / "recipe.yaml").unlink()
    (met_folder / "environment.json").unlink()
    write(met_folder)
    page = (met_folder / "report.html").read_text(encoding="utf-8")
    assert "has no recipe.yaml" in page and "has no environment.json" in page


@pytest.mark.parametrize(("text", "remark"), [("{", "is damaged"), ("[1]", "is not a mapping")])
def test_a_damaged_environment_is_said_to_be(text: str, remark: str, met_folder: Path) -> None:
    (met_folder / "environment.json").write_text(text, encoding="utf-8")
    write(met_folder)
    assert remark in (met_folder / "report.html").read_text(encoding="utf-8")


def test_a_recipe_in_another_encoding_is_shown_as_far_as_it_goes(met_folder: Path) -> None:
    (met_folder / "recipe.yaml").write_bytes(b"name: caf\xe9\n")
    write(met_folder)
    assert "name: caf\ufffd" in (met_folder / "report.html").read_text(encoding="utf-8")


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"nowhere is not a folder; give the folder of a run"):
        write(tmp_path / "nowhere")


def test_no_result(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"has no result\.json, so it is not a run folder; give the folder"):
        write(tmp_path)


def test_damaged_json(met_folder: Path) -> None:
    path = met_folder / "result.json"
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")
    with pytest.raises(
        RunFolderError, match=r"result\.json is not valid JSON \(.*\); start the run again on this folder"
    ):
        write(met_folder)
    assert "results.csv" not in contents(met_folder)


@pytest.mark.parametrize(("version", "shown"), [(4, "4"), (None, "None"), ("1", "1"), (0, "0")])
def test_another_schema_version(version: object, shown: str, met_folder: Path) -> None:
    path = met_folder / "result.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "schema_version": version, "new_field": 1}), encoding="utf-8")
    with pytest.raises(RunFolderError, match=rf"has schema_version {shown}, this qatflow reads up to 3; rebuild"):
        write(met_folder)


def test_json_that_is_no_object(met_folder: Path) -> None:
    (met_folder / "result.json").write_text("[]", encoding="utf-8")
    with pytest.raises(RunFolderError, match="schema_version None"):
        write(met_folder)


def test_a_field_of_the_wrong_kind_is_named(met_folder: Path) -> None:
    path = met_folder / "result.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["candidates"][1]["value"] = "much"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"is not a qatflow result \(candidates\.1\.value: input should be"):
        write(met_folder)


def test_an_interrupted_write_leaves_the_old_file(met_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(met_folder)
    before = contents(met_folder)

    def fail(self: Path, target: Path) -> Path:
        message = "no space left"
        raise OSError(message)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write(met_folder)
    assert contents(met_folder) == before


def test_a_disk_that_is_full(met_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> tuple[int, str]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkstemp", fail)
    with pytest.raises(RunFolderError, match=r"cannot write .*results.csv: the disk is full"):
        write(met_folder)


def test_read_result_is_what_was_written(trained_folder: Path, trained_run: RunResult) -> None:
    assert read_result(trained_folder) == trained_run


def test_control_characters_of_a_foreign_run_reach_no_file(met_folder: Path) -> None:
    path = met_folder / "result.json"
    path.write_text(path.read_text().replace('"fold_batch_norms"', '"\\u001b]0;title\\u0007\\u202e"'))
    for written in write(met_folder):
        text = written.read_text()
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert r"\x1b]0;title\x07\u202e" in (met_folder / "results.csv").read_text()
