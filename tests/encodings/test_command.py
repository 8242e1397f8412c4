"""`python -m qatflow.encodings`: exit codes, one line for a mistake, and no torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qatflow.encodings import main
from tests.encodings.golden_files import MODEL, entry_of, golden, golden_path

ROOT = Path(__file__).parents[2]


def command(*arguments: object, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-W", "error", "-m", "qatflow.encodings", *map(str, arguments)]
    return subprocess.run(
        line,
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        encoding=encoding,
        env={"PYTHONIOENCODING": encoding, "PATH": ""},
    )


def outcome(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The same within this process, which is faster."""
    try:
        code = main([str(one) for one in arguments])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def written(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_convert_writes_the_file_and_says_what_was_lost(tmp_path: Path) -> None:
    target = tmp_path / "new" / "m.encodings"
    done = command("convert", golden_path("1.0.0"), target, "--version", "2.0.0", "--model", MODEL)
    assert (done.returncode, done.stdout) == (0, f"{target}\n")
    assert done.stderr.splitlines() == [
        "note: 1.0.0 has no 32-bit biases: none are written, the runtime finds them itself",
        "note: 2.0.0 has no quantizer_args: left out",
    ]
    wanted = [one for one in golden("2.0.0")["encodings"] if not one["name"].endswith("bias")]
    found = json.loads(target.read_text(encoding="utf-8"))["encodings"]
    assert sorted(found, key=str) == sorted(wanted, key=str)


def test_convert_may_write_over_what_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "m.encodings", golden("0.6.1"))
    assert outcome("convert", path, path, "--version", "1.0.0", capsys=capsys) == (0, f"{path}\n", "")
    assert json.loads(path.read_text(encoding="utf-8")) == golden("1.0.0")


def test_check_without_a_model_says_that_coverage_was_not_checked() -> None:
    done = command("check", golden_path("0.6.1"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{golden_path('0.6.1')}: version 0.6.1, 6 entries, 0 wrong; "
        "which tensors need an entry was not checked: that needs --model\n"
    )


@pytest.mark.parametrize(("version", "entries"), [("0.6.1", 6), ("1.0.0", 6), ("2.0.0", 8), ("2.1.0", 8)])
def test_check_with_its_model_finds_nothing_in_aimets_file(
    version: str, entries: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = outcome("check", golden_path(version), "--model", MODEL, capsys=capsys)
    summary = f"version {version}, {entries} entries, 0 wrong; 0 missing, 0 unknown to the model"
    assert found == (0, f"{golden_path(version)}: {summary}\n", "")


def test_check_tells_what_is_wrong_missing_and_unknown_a_line_each(tmp_path: Path) -> None:
    content = golden("1.0.0")
    entry_of(content, "x")["scale"] = [0.0]
    entry_of(content, "conv.weight").update(scale=[0.1] * 3, offset=[-128] * 3)
    entry_of(content, "y")["name"] = "z"
    path = written(tmp_path / "m.encodings", content)
    done = command("check", path, "--model", MODEL)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.splitlines() == [
        'wrong: "x": scale is 0.0; expected a positive, finite number',
        'wrong: "conv.weight": has 3 scales along axis 0, but the model\'s tensor has shape [2, 3, 3, 3]',
        "missing: y",
        "unknown: z",
        f"{path}: version 1.0.0, 6 entries, 2 wrong; 1 missing, 1 unknown to the model",
    ]


def test_check_without_a_model_still_finds_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = golden("2.0.0")
    entry_of(content, "x")["y_zero_point"] = 300
    code, out, err = outcome("check", written(tmp_path / "m.encodings", content), capsys=capsys)
    assert (code, err) == (2, "")
    assert out.startswith('wrong: "x": zero point is 300, off the grid; expected 0 to 255')
    assert "8 entries, 1 wrong; which tensors" in out


MISTAKES = [
    ([], "the following arguments are required: convert|check"),
    (["look"], "invalid choice: 'look'"),
    (["convert", "a", "b"], "the following arguments are required: --version"),
    (["convert", golden_path("1.0.0"), "b", "--version", "2.1.0"], "invalid choice: '2.1.0'"),
    (["check", golden_path("1.0.0"), "--loud"], "unrecognized arguments: --loud"),
    (["check", "nowhere"], "cannot read nowhere: No such file or directory"),
    (["check", "tests"], "cannot read tests: Is a directory"),
    (["check", MODEL], "is not JSON"),
    (["check", "README.md"], "README.md is not JSON"),
    (["check", golden_path("1.0.0"), "--model", "nowhere"], "cannot read nowhere: No such file"),
    (["check", golden_path("1.0.0"), "--model", golden_path("1.0.0")], "is no ONNX model"),
    (["check", golden_path("1.0.0"), "--model", "pyproject.toml"], "pyproject.toml is no ONNX model"),
    (["convert", golden_path("1.0.0"), "tests", "--version", "2.0.0"], "cannot write tests: Is a directory"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=[told for _, told in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_1(
    arguments: list[object], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, out, err = outcome(*arguments, capsys=capsys)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert told in err


def test_a_mistake_is_one_line_in_a_process_of_its_own(tmp_path: Path) -> None:
    content = golden("1.0.0")
    entry_of(content, "x")["bw"] = None
    entry_of(content, "y")["enc_type"] = "LPBQ"
    path = written(tmp_path / "two\nlines.encodings", content)
    done = command("convert", path, tmp_path / "out", "--version", "0.6.1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert 'activation_encodings[0] "x": bw is null' in done.stderr
    assert 'activation_encodings[2] "y": LPBQ is not supported' in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_mistake_in_the_command_line_is_one_line_in_a_process_of_its_own() -> None:
    done = command("convert", "a", "b", "--version", "3\n4")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: argument --version: invalid choice: ")
    assert done.stderr.endswith("see python -m qatflow.encodings convert --help\n")
    done = command("check", "a", "b\nc")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["convert", "--help"], ["check", "--help"]):
        code, out, err = outcome(*arguments, capsys=capsys)
        assert (code, err) == (0, "")
        assert out.startswith("usage: python -m qatflow.encodings")


def test_names_that_the_output_cannot_show_are_escaped(tmp_path: Path) -> None:
    content = golden("1.0.0")
    entry_of(content, "y")["name"] = "größe\ud800\nnext\x1b[1m"
    path = written(tmp_path / "m.encodings", content)
    done = command("check", path, "--model", MODEL, encoding="ascii")
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.splitlines()[:2] == ["missing: y", r"unknown: gr\xf6\xdfe\ud800\nnext\x1b[1m"]
    assert len(done.stdout.splitlines()) == 3


def test_torch_is_never_imported(tmp_path: Path) -> None:
    program = f"""
import sys
from qatflow.encodings import main
model = {str(MODEL)!r}
for source in {[str(golden_path(version)) for version in ("0.6.1", "2.0.0")]!r}:
    assert main(["check", source]) == 0
    assert main(["check", source, "--model", model]) == 0
    assert main(["convert", source, {str(tmp_path / "out")!r}, "--version", "1.0.0", "--model", model]) == 0
loaded = {{name.partition(".")[0] for name in sys.modules}}
assert "onnx" in loaded
print(*(loaded & {{"torch", "pandas", "hydra", "omegaconf", "pydantic", "optuna"}}), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert [line for line in done.stderr.splitlines() if not line.startswith("note: ")] == [""]


def test_without_a_model_onnx_is_not_needed() -> None:
    program = f"""
import sys
sys.modules["onnx"] = None
from qatflow.encodings import main
assert main(["check", {str(golden_path("1.0.0"))!r}]) == 0
sys.exit(main(["check", {str(golden_path("1.0.0"))!r}, "--model", {str(MODEL)!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        1,
        "error: reading an ONNX model needs the package onnx: pip install onnx\n",
    )
