"""Files that appear whole or not at all, and keys that stand for what they are made of."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatflow.errors import RunFolderError
from qatflow.results import store
from qatflow.results.store import (
    check_digests,
    code_version,
    digests,
    key_of,
    read_json,
    read_usable,
    write_atomically,
    write_json,
    write_text,
)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_its_folder_and_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    assert write_text(path, "grün\n") == path
    assert path.read_text(encoding="utf-8") == "grün\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["a.txt"]


def test_a_writer_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def fail(aside: Path) -> None:
        aside.write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_until_it_is_whole_a_file_has_its_old_content(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")
    seen = []

    def write(aside: Path) -> None:
        aside.write_text("new")
        seen.append(path.read_text())

    write_atomically(path, write)
    assert (seen, path.read_text()) == (["old"], "new")


def test_an_interrupt_leaves_no_litter_either(tmp_path: Path) -> None:
    def interrupt(aside: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.txt", interrupt)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write .*a\.txt: .*; choose another folder with run\.dir=FOLDER"):
        write_text(tmp_path / "file" / "a.txt", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunFolderError, match="cannot write"):
        write_text(tmp_path / "folder", "")
    assert names(tmp_path) == ["file", "folder"]


@settings(max_examples=40)
@given(value=plain)
def test_json_comes_back(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_json(tmp_path_factory.getbasetemp() / "any.json", value)
    assert read_json(path) == value


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_refused_and_the_old_file_stays(tmp_path: Path, bad: float) -> None:
    path = write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": bad})
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    "content",
    [
        *(b'{"a": 1', b"", b"\xff\xfe", b'{"a": 1e999}', b'{"a": NaN}', b'{"a": 9223372036854775808}', b'"\\ud800"'),
        *(b"9" * 5000, b"[" * 51 + b"]" * 51, b"[" * 100_000),
    ],
)
def test_a_damaged_file_is_told_of(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"a\.json is damaged \(.*\); remove it and run again"):
        read_json(path)


def test_what_json_holds_within_bounds_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[-9223372036854775807, 1e308, "\\ud83d\\ude00", ' + "[" * 49 + "]" * 49 + "]")
    assert read_json(path)[:3] == [-(2**63) + 1, 1e308, "\U0001f600"]


def test_what_is_no_file_is_told_of_and_made_anew(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    (tmp_path / "b.json").symlink_to("nowhere")
    told: list[str] = []
    assert [read_usable(tmp_path / name, told.append) for name in ("a.json", "b.json", "c.json")] == [None] * 3
    assert told == [
        f"cannot read {tmp_path / 'a.json'}: it is not a file; it is made anew",
        f"cannot read {tmp_path / 'b.json'}: No such file or directory; it is made anew",
    ]


def test_digests_that_are_none_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"meta\.json does not tell the SHA-256 of its files"):
        check_digests(tmp_path, ["model.safetensors"])


def test_a_missing_file_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"cannot read .*a\.json: No such file"):
        read_json(tmp_path / "a.json")


@given(plain, plain)
def test_keys_differ_exactly_where_the_parts_do(one: object, other: object) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (key_of(one) == key_of(other)) == same
    assert key_of(one, other) != key_of([one, other])
    assert key_of(one, "a") != key_of(one, "b")


def test_the_order_of_a_mapping_does_not_matter_and_paths_have_keys() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of(Path("x")) == key_of("x")
    assert key_of("a", "b") != key_of("b", "a")


def test_a_key_is_the_same_in_every_process() -> None:
    code = "from qatflow.results.store import *; print(key_of({'b': [1, 2.5, None], 'a': 'x'}), code_version())"
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1] == [key_of({"b": [1, 2.5, None], "a": "x"}), code_version()]


def test_the_version_of_the_code_changes_with_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("a = 1")
    monkeypatch.setattr(store, "__file__", str(tmp_path / "results" / "store.py"))
    versions = []
    for text in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / "sub" / "a.py").write_text(text)
        versions.append(code_version.__wrapped__())
    assert versions[0] == versions[2] != versions[1]


def test_only_the_places_that_compute_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("quant/grid.py", "quantiles/a.py", "report/page.py", "bench.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a = 1")
    monkeypatch.setattr(store, "__file__", str(tmp_path / "results" / "store.py"))

    def versions() -> tuple[str, str]:
        return code_version.__wrapped__("quant", "bench.py"), code_version.__wrapped__()

    before = versions()
    (tmp_path / "quantiles" / "a.py").write_text("a = 2")
    (tmp_path / "report" / "page.py").write_text("a = 2")
    assert versions()[0] == before[0]
    assert versions()[1] != before[1]
    (tmp_path / "quant" / "grid.py").rename(tmp_path / "quant" / "grids.py")
    renamed = versions()[0]
    assert renamed != before[0]
    (tmp_path / "bench.py").write_text("a = 2")
    assert versions()[0] != renamed


def folder_of(tmp_path: Path) -> Path:
    for name, text in {"a.json": "{}", "b.bin": "bytes", "meta.json": "{}", ".b.bin.x": "half"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "within").mkdir()
    return tmp_path


def test_digests_are_of_every_file_but_the_one_that_holds_them(tmp_path: Path) -> None:
    found = digests(folder_of(tmp_path))
    assert found == {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.json", "b.bin")}
    check_digests(tmp_path, found)
    (tmp_path / "c.txt").write_text("written later")
    check_digests(tmp_path, found)


@pytest.mark.parametrize("content", ["", "byte", "bytes ", "BYTES"])
def test_a_file_with_other_content_is_named(tmp_path: Path, content: str) -> None:
    found = digests(folder_of(tmp_path))
    (tmp_path / "b.bin").write_text(content)
    with pytest.raises(RunFolderError, match=r"b\.bin is not what was written there: its SHA-256 is another one"):
        check_digests(tmp_path, found)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(RunFolderError, match=r"b\.bin is missing"):
        check_digests(tmp_path, found)
