"""`python -m benchmarks.hostile`: it notices what it looks for, and finds nothing in a part of its inputs."""

import copy
import functools
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hostile.__main__ import main, wrongs_of
from benchmarks.hostile.mutation import VALUES, bytes_of, json_of, yaml_of
from qatflow.recipe.check import check, recipe_from
from qatflow.recipe.steps import STEP_CONFIGS

QUIET: dict[str, Any] = {"code": 1, "traceback": False, "work": 0.1, "ran": [], "outside": []}
DEEDS = """\
import sys
from pathlib import Path
from benchmarks.hostile.canary import Watch
home, folder = map(Path, sys.argv[1:])
watch = Watch(home)
watch.begin(folder)
(folder / "inside").write_text("x")
watch.end()
print(watch.ran, watch.outside)
watch.begin(folder)
(folder.parent / "outside").write_text("x")
watch.end()
print(watch.ran, [Path(one.split()[1]).name for one in watch.outside])
watch.begin(folder)
import hostile_canary
watch.end()
print(watch.ran, watch.outside)
watch.begin(folder)
hostile_canary.run()
watch.end()
print(watch.ran, watch.outside)
"""


def test_inputs_are_the_same_for_the_same_seed() -> None:
    text = "seed: 1\nmodel: {name: x}\n"
    for make, content in ((yaml_of, text), (bytes_of, text.encode()), (json_of, b'{"a": [1, {"b": 2}]}')):
        first, again = ([make(random.Random(f"0-{one}"), content) for one in range(50)] for _ in range(2))
        assert first == again
        assert len(set(first)) > 10


def test_files_outside_and_code_that_runs_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "input").mkdir()
    command = [sys.executable, "-B", "-c", DEEDS, str(tmp_path / "home"), str(tmp_path / "input")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[] []",
        "[] ['outside']",
        "['hostile_canary was imported'] []",
        "['hostile_canary was called'] []",
    ]


@pytest.mark.parametrize(
    ("did", "wrongs"),
    [
        (QUIET, []),
        ({**QUIET, "code": 3}, ["tracebacks"]),
        ({**QUIET, "code": 0, "traceback": True}, ["tracebacks"]),
        ({**QUIET, "work": 5.1}, ["hangs"]),
        ({**QUIET, "ran": ["os.system"], "outside": ["open /x"]}, ["codes run", "files outside"]),
        ({"hung": True, "died": False}, ["hangs"]),
        ({"hung": False, "died": True}, ["tracebacks"]),
    ],
)
def test_what_counts_as_wrong(did: dict[str, Any], wrongs: list[str]) -> None:
    assert wrongs_of(did) == wrongs


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict):
            yield from places(inner, (*path, key))


def test_anything_may_stand_anywhere_in_a_recipe() -> None:
    steps = {name: config().model_dump(mode="json") for name, config in STEP_CONFIGS.items()}
    named = {"model": {"name": "digits_mobilenet"}, "data": {"name": "digits"}, "steps": steps}
    whole = recipe_from(named).model_dump(mode="json")
    for path in places(whole):
        for value in VALUES:
            recipe = copy.deepcopy(whole)
            section = functools.reduce(lambda inner, key: inner[key], path[:-1], recipe)
            section[path[-1]] = value
            _, mistakes = check(recipe)
            assert [str(mistake)[:400] for mistake in mistakes if len(str(mistake)) > 1000] == []


@pytest.mark.slow
def test_hostile_inputs_end_in_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--inputs", "154", "--seed", "1", "--keep", str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "| all | 154 | 0 | 0 | 0 | 0 |"
