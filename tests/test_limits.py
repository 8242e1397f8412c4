"""What a recipe may hold: a file or command line with more is refused in a sentence, at once, and stops no other."""

import os
import sys
from pathlib import Path

import pytest

from qatflow.door import cli
from qatflow.door.composing import plan
from qatflow.door.hydra_parts import ENDLESS
from qatflow.errors import RecipeError
from qatflow.recipe.yaml_file import read_yaml

SOUND = "defaults:\n  - override /model: digits_mobilenet\n  - override /data: digits\n"
MILD_NESTING = "model:\n  kwargs:\n    a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"    {b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in ("ab", "bc", "cd")
)
"""Ten lists of ten lists of ten lists of ten texts, by aliases."""
MANY = "there are more than 10,000 values, aliases counted as what they stand for, which no recipe has"
LONG = "a text has 20,001 characters, and none in a recipe has more than 20,000"
KEY_FIX = "quote it: YAML reads words such as off, on, yes, no and ~ as something else"


def mistakes_of(*lines: str, folder: Path | None = None, multirun: bool = False) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        plan(lines, multirun, folder)
    return [str(one) for one in caught.value.mistakes]


def config_dir(folder: Path, content: str | bytes, place: str = "recipes/theirs.yaml") -> Path:
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "line", "sentence"),
    [
        (MILD_NESTING, 6, MANY),
        ("seed: &a [*a]", 1, "the alias 'a' stands for nothing, or for what holds it"),
        ("a: " + "[" * 21 + "]" * 21, 1, "lists and mappings are nested more than 20 deep, which no recipe is"),
        ("seed: 1\nnull: 3", 2, f"the key null is no text but of type null; {KEY_FIX}"),
        ("off: 3", 1, f"the key off is no text but of type bool; {KEY_FIX}"),
        ("? [a, b]\n: 3", 1, "a list or mapping is no key; a key is text"),
        ("description: '" + "x" * 20_001 + "'", 1, LONG),
        ('description: "\\ud800"', 1, "a text has the character '\\ud800', which cannot be written or shown"),
        ('run: {dir: "a\\0b"}', 1, "a text has the character '\\x00', which cannot be written or shown"),
        (f"seed: {10**30}", 1, "a whole number has 100 bits, and 63 are the most"),
        ("seed: " + "9" * 5000, 1, f"'{'9' * 56}... cannot be read as a number"),
        ("seed: 0x_", 1, "'0x_' cannot be read as a number"),
        ("x" * 1001 + ": 1", 1, "a key has 1,001 characters, and none has more than 1,000"),
        ("seed: !!binary x", 1, "the tag 'tag:yaml.org,2002:binary' has no place in a recipe; quote what is text"),
        ("seed: [", 1, "cannot be read: expected the node content, but found '<stream end>'"),
    ],
)  # fmt: skip
def test_what_no_recipe_holds_is_told_with_its_line(tmp_path: Path, content: str, line: int, sentence: str) -> None:
    path = config_dir(tmp_path, content)
    assert mistakes_of("recipe=theirs", folder=tmp_path)[0] == f"{path}, line {line}: {sentence}"
    with pytest.raises(RecipeError) as caught:
        read_yaml(path)
    assert [str(one) for one in caught.value.mistakes] == [f"{path}, line {line}: {sentence}"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"#" * 262_145, "is 262,145 bytes long, and no recipe is longer than 262,144"),
        (b"\xff\xfe", "cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"hello", "is a text, and a recipe is a mapping; write `key: value` lines"),
        (b"- a", "is a list, and a recipe is a mapping; write `key: value` lines"),
    ],
)
def test_a_file_that_is_no_recipe_is_told(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = config_dir(tmp_path, content)
    assert mistakes_of("recipe=theirs", folder=tmp_path)[0] == f"{path}: {sentence}"


def test_what_is_within_bounds_is_read_as_ever(tmp_path: Path) -> None:
    config_dir(tmp_path, f"{SOUND}model: {{kwargs: {{a: &a [1, 2], b: *a, c: {{1: x}}}}}}\nseed: 9223372036854775807\n")
    recipe = plan(["recipe=theirs"], False, tmp_path).jobs[0].recipe
    assert recipe.model.kwargs == {"a": [1, 2], "b": [1, 2], "c": {1: "x"}}
    assert recipe.seed == 2**63 - 1


@pytest.mark.parametrize(
    ("body", "sentences"),
    [
        ("steps: {fold_batch_norms: x}", ["steps.fold_batch_norms: 'x' is not a section; write its keys below it"]),
        (
            "gate: {label: '${name}${name}'}\nmodel: {kwargs: {a: '" + "${name}" * 19 + "'}}",
            ["recipe theirs: cannot be composed: has 22 times ${...}, and no recipe has more than 20"],
        ),
        ("model: {weights: ~nobody_of_this_name/x}", ["model.weights: there is no file '~nobody_of_this_name/x'"]),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_told(tmp_path: Path, body: str, sentences: list[str]) -> None:
    config_dir(tmp_path, f"{SOUND}{body}\n")
    found = mistakes_of("recipe=theirs", folder=tmp_path)
    assert [one.split("; relative")[0] for one in found] == sentences


@pytest.mark.parametrize(
    ("defaults", "sentence"),
    [
        (
            "[{/recipe: tiny}]",
            "defaults of recipe theirs: a recipe cannot choose one; to build on another recipe, write its name alone: "
            "`- quickstart`",
        ),
        ("[theirs]", f"recipe theirs: cannot be composed: {ENDLESS}"),
    ],
)
def test_a_recipe_cannot_be_built_on_itself(tmp_path: Path, defaults: str, sentence: str) -> None:
    config_dir(tmp_path, f"defaults: {defaults}\n")
    assert mistakes_of("recipe=theirs", folder=tmp_path)[0] == sentence


def test_options_that_each_build_on_two_others_end(tmp_path: Path) -> None:
    config_dir(tmp_path, "defaults:\n  - override /model: m0\n  - override /data: digits\n")
    for number in range(12):
        config_dir(tmp_path, f"defaults: [m{number + 1}@a, m{number + 1}@b]\n", f"model/m{number}.yaml")
    config_dir(tmp_path, "name: digits_mobilenet\n", "model/m12.yaml")
    found = mistakes_of("recipe=theirs", folder=tmp_path)
    assert found[0] == f"recipe theirs: cannot be composed: {ENDLESS}"


def test_an_option_is_looked_through_as_a_recipe_is(tmp_path: Path) -> None:
    path = config_dir(tmp_path, "null: 1\n", "model/odd.yaml")
    config_dir(tmp_path, "# @package\nname: x\n", "model/headless.yaml")
    assert mistakes_of("recipe=tiny", "model=odd", folder=tmp_path) == [
        f"{path}, line 1: the key null is no text but of type null; {KEY_FIX}"
    ]
    assert mistakes_of("recipe=tiny", "model=headless", folder=tmp_path) == [
        f"{path.with_name('headless.yaml')}: cannot be read: Expected header format: KEY VALUE, got '@package'"
    ]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("model.kwargs=" + "{a:" * 21 + "1" + "}" * 21, "model.kwargs: lists and mappings are nested"),
        ("model.kwargs." + "a." * 21 + "b=1", f"model.kwargs.{'a.' * 21}b: lists and mappings are nested"),
        (f"seed={10**30}", "seed: a whole number has 100 bits, and 63 are the most"),
        ("seed=" + "9" * 5000, f"seed: '{'9' * 56}... cannot be read as a value; quote text"),
        ('seed="${"', "seed: '\"${\"' cannot be read as a value; quote text"),
        ("seed=\udcff", "seed: a text has the character '\\udcff', which cannot be written or shown"),
        ("~calibration=1", "calibration: cannot be removed, for it is not 1; write ~calibration to remove whatever"),
        ("=1", "'': unknown key; allowed: name"),
    ],
)  # fmt: skip
def test_what_no_value_on_the_command_line_is_is_told(line: str, sentence: str) -> None:
    (found,) = mistakes_of("recipe=tiny", line)
    assert found.startswith(sentence)


@pytest.mark.parametrize("values", ["range(1,1e9)", "range(0,1,1e-300)", "shuffle(range(1,1e9))"])
def test_a_sweep_has_so_many_jobs(values: str) -> None:
    found = mistakes_of("recipe=tiny", f"seed={values}", multirun=True)
    assert found == ["-m: asks for more than 1,000 jobs; give fewer values"]


def test_a_range_without_steps_is_told() -> None:
    (found,) = mistakes_of("recipe=tiny", "seed=range(0,1,0)", multirun=True)
    fix = "list them, as in key=1,2,3 or key=range(1,4)"
    assert found == f"seed: range(0,1,0) does not stand for a list of values; {fix}"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A config folder with a sound recipe, broken ones, a folder, a broken link and a pipe."""
    config_dir(tmp_path, f"{SOUND}description: the sound one\n", "recipes/sound.yaml")
    config_dir(tmp_path, MILD_NESTING, "recipes/aliases.yaml")
    config_dir(tmp_path, b"\xff", "recipes/binary.yaml")
    config_dir(tmp_path, "description: '${oc.env:HOME}'\nseed: '${'\n", "recipes/link.yaml")
    config_dir(tmp_path, "[", "model/broken.yaml")
    (tmp_path / "recipes" / "folder.yaml").mkdir()
    (tmp_path / "precision" / "w8a8.yaml").mkdir(parents=True)
    (tmp_path / "recipes" / "nowhere.yaml").symlink_to("nowhere.txt")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "recipes" / "pipe.yaml")
    return tmp_path


def test_broken_files_do_not_stop_the_other_recipes(
    broken: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["--config-dir", str(broken), "recipe=sound", "--cfg", "job"]) == 0
    for arguments in ([], ["--help"]):
        capsys.readouterr()
        assert cli.main(["--config-dir", str(broken), *arguments]) == 0
        assert "the sound one" in capsys.readouterr().out
    monkeypatch.setenv("COMP_LINE", f"qatflow --config-dir {broken} recipe=so")
    assert cli.main(["--config-dir", str(broken), "-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == ["recipe=sound"]


def test_a_description_is_shown_as_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_dir(tmp_path, f"{SOUND}description: '${{oc.env:HOME}}'\n")
    assert cli.main(["--config-dir", str(tmp_path)]) == 0
    assert "  theirs          ${oc.env:HOME}\n" in capsys.readouterr().out


def test_completion_without_a_line_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMP_LINE", raising=False)
    assert cli.main(["-sc", "query=bash"]) == 1
    assert "--shell-completion: 'COMP_LINE'; see --hydra-help" in capsys.readouterr().err


def test_a_path_that_no_console_can_show_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config-dir", "\udcff", "recipe=tiny"]) == 1
    assert "there is no folder" in capsys.readouterr().err


def test_a_recipe_that_is_built_on_itself_ends_however_deep_a_process_may_recurse(tmp_path: Path) -> None:
    config_dir(tmp_path, "defaults: [theirs]\n")
    before = sys.getrecursionlimit()
    for limit in (before, 20_000):
        sys.setrecursionlimit(limit)
        try:
            assert mistakes_of("recipe=theirs", folder=tmp_path)[0] == f"recipe theirs: cannot be composed: {ENDLESS}"
        finally:
            sys.setrecursionlimit(before)
