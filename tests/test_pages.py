"""Pages are as short as promised and find one another; their commands and recipes are right.

`bash` is checked line by line, and carried out where that takes seconds; `yaml` composes. The project that pages speak
of is made for them. `python` and `text` are tested in `test_page_examples`.
"""

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from qatflow import encodings, inspect, sensitivity, worker
from qatflow.door import cli
from qatflow.door.command_line import read_flags
from qatflow.door.composing import plan
from qatflow.recipe import Recipe
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.recipe.targets import TARGETS
from qatflow.report import __main__ as report
from tests.pages import BASIS, BLOCKS, CODE, PAGES, ROOT, TEXTS, blocks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
SUFFIXES = (".onnx", ".encodings", ".safetensors", ".pt2", ".pte")


def commands() -> Iterator[Any]:
    """Yield every command of a `bash` block, and every `python -m ...` of the prose."""
    for page in PAGES:
        lines = [line for block in blocks("bash", page) for line in block.splitlines()]
        lines += re.findall(r"`(python -m [^`]+)`", CODE.sub("", TEXTS[page]))
        for line in dict.fromkeys(lines):
            for one in line.split(" && "):
                yield pytest.param(one, id=f"{page}: {one}")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pages speak of, with the user's package and recipe in it, and a finished run."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "examples", folder, dirs_exist_ok=True)
    for name in ("my_package", "my_project/recipes", "checkpoints"):
        (folder / name).mkdir(parents=True)
    (data,) = blocks("python", "docs/data.md")
    (folder / "my_package" / "data.py").write_text(data, encoding="utf-8")
    (recipe,) = {block for block in blocks("yaml") if "my_project/recipes/mine.yaml" in block and "splits\n" in block}
    (folder / "my_project" / "recipes" / "mine.yaml").write_text(recipe, encoding="utf-8")
    import torchvision

    save_file(torchvision.models.resnet18(num_classes=10).state_dict(), folder / "checkpoints" / "best.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        line = ["recipe=tiny", "run.dir=reports/mine", "export.pt2=true", "export.verify=false", "report=tables"]
        assert cli.main(line) == 0
    shutil.copytree(folder / "reports" / "mine" / "export", folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, as the folder that a test works in."""
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    return project


# -- pages


def test_pages_are_as_short_as_promised() -> None:
    assert len(TEXTS["README.md"].split()) <= 1500
    assert len(TEXTS["docs/architecture.md"].split()) <= 700
    assert len(TEXTS["CONTRIBUTING.md"].splitlines()) <= 80


def test_every_block_says_what_it_is() -> None:
    assert {one.language for one in BLOCKS} == {"bash", "python", "text", "yaml"}
    assert len(BLOCKS) * 2 == sum(text.count("```") for page, text in TEXTS.items() if page in PAGES)


def headings(page: str) -> set[str]:
    """Return the anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", CODE.sub("", TEXTS[page]), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        name, _, anchor = link.partition("#")
        place = (ROOT / page).parent / name if name else ROOT / page
        assert place.exists(), link
        assert not anchor or anchor in headings(str(place.resolve().relative_to(ROOT))), link


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", TEXTS["README.md"]))
    assert set(PAGES) - {"README.md"} <= linked
    assert (ROOT / "docs" / "report.png").stat().st_size < 300_000


def test_the_rooms_are_those_of_the_import_contract() -> None:
    (contract,) = [one for one in PROJECT["tool"]["importlinter"]["contracts"] if one["type"] == "layers"]
    rooms = TEXTS["docs/architecture.md"].partition("| room |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rooms) == len(contract["layers"])
    for layer, room in zip(contract["layers"], rooms, strict=True):
        named = re.findall(r"`(\w+)(?:\.py)?`", room.split("|")[1])
        assert {one.removeprefix("qatflow.") for one in layer.split(" | ")} <= set(named)


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_are_named_exist(page: str) -> None:
    named = re.findall(r"`([\w./]*(?:\.py|\.j2|\.toml|/))`", TEXTS[page])
    found = [one for one in named if not re.search("NAME|name|GROUP", one)]
    assert found
    assert [
        one for one in found if not any((ROOT / place / one).exists() for place in ("", "qatflow", "qatflow/report"))
    ] == []


def test_the_readme_quotes_figures_that_are_in_the_tables() -> None:
    table = TEXTS["README.md"].partition("## Beside other tools")[2].partition("By `python")[0]
    figures = re.findall(r"-?\d+\.\d+(?= (?:dB|%|times))", table)
    assert len(figures) == 18
    assert [one for one in figures if one not in re.findall(r"-?\d+\.\d+", TEXTS["docs/benchmarks.md"])] == []


# -- recipes


@pytest.mark.parametrize("block", blocks("yaml"), ids=range(len(blocks("yaml"))))
def test_a_recipe_composes(block: str, inside: Path, tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "one.yaml").write_text(block if "@package" in block else BASIS + block)
    (job,) = plan(["recipe=one"], config_dir=tmp_path, trust=["my_package", "small_npu"]).jobs
    if "# recipes/" in block:
        (shipped,) = plan([f"recipe={re.findall(r'# recipes/(.*).yaml', block)[0]}"]).jobs
        told = {"name": shipped.recipe.name, "description": shipped.recipe.description}
        assert job.recipe.model_copy(update=told) == shipped.recipe


def is_key(path: list[str]) -> bool:
    """Tell whether there is such a key of a recipe, or such a file of an export."""
    if path[0] == "model" and f".{path[1]}" in SUFFIXES:
        return True
    if path[0] == "steps":
        return path[1] in STEP_CONFIGS and (len(path) == 2 or path[2] in STEP_CONFIGS[path[1]].model_fields)
    section = Recipe.model_fields[path[0]].annotation
    assert isinstance(section, type) and issubclass(section, BaseModel)
    return path[1] in section.model_fields


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("docs/run_folder.md", "CONTRIBUTING.md")])
def test_keys_of_recipes_exist(page: str) -> None:
    sections = "|".join((*Recipe.SECTIONS, "steps"))
    said = re.findall(rf"`'?((?:{sections})\.[a-z]\w*(?:\.[a-z]\w*)?)(?=[`=:])", TEXTS[page])
    assert [one for one in said if not is_key(one.split("."))] == []


def test_the_sections_are_all_of_a_recipe() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXTS["docs/recipes.md"], flags=re.MULTILINE))
    assert list(table) == [name for name in Recipe.model_fields if name in table]
    assert set(table) | {"name", "description", "seed", "device"} == set(Recipe.model_fields)
    for name in set(Recipe.SECTIONS):
        fields = Recipe.model_fields[name].annotation.model_fields
        assert set(fields) <= set(re.findall(r"`(\w+)`", table[name])), name


def test_steps_and_targets_are_those_there_are() -> None:
    listed = re.findall(r"^- `(\w+)`", TEXTS["docs/steps.md"], flags=re.MULTILINE)
    assert sorted(listed) == sorted(STEP_CONFIGS)
    for place, name in enumerate(listed):
        assert not set(listed[:place]) & set(STEP_CONFIGS[name].not_after)
    assert re.findall(r"^\| `(\w+)` \|", TEXTS["README.md"], flags=re.MULTILINE) == list(TARGETS)
    assert f"| | {' | '.join(TARGETS)} |" in TEXTS["docs/targets.md"]


# -- commands


@pytest.mark.parametrize("command", list(commands()))
def test_a_command_is_right(command: str, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, *arguments = shlex.split(command, comments=True)
    if program == "eval":
        assert PROJECT["project"]["scripts"]["qatflow"] == "qatflow.__main__:main"
        assert cli.main(shlex.split(arguments[0].strip("$()"))[1:]) == 0
    elif program == "pip":
        check_pip(arguments)
    elif program == "python":
        flag, module, *rest = arguments
        assert flag == "-m"
        CHECKS.get(module, partial(check_module, module))(rest)
    elif program == "pytest":
        check_module("pytest", arguments)
    elif command == "bash .ci/run":
        assert (ROOT / ".ci" / "run").is_file()
    else:
        assert command in CI, "CI runs it as well"


def check_pip(arguments: list[str]) -> None:
    """Check that files, extras and packages are there."""
    extras = PROJECT["project"]["optional-dependencies"]
    tested = {re.split(r"[<>=]", one)[0] for one in extras["test"]}
    assert arguments.pop(0) == "install"
    for one in arguments:
        extra = re.fullmatch(r"(?:\.|qatflow)\[(\w+)\]", one)
        known = one in ("-c", "-e", "constraints.txt") or (extra is not None and extra[1] in extras)
        assert known or one in tested, one


def check_module(module: str, arguments: list[str]) -> None:
    """Check that there is a module of the repository's, and that it knows these options."""
    if module == "pytest":
        marks = [one.split(":")[0] for one in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
        assert arguments in ([], ["small_npu"]) or (arguments[0] == "-m" and arguments[1] in marks)
        return
    place = ROOT / module.replace(".", "/")
    path = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
    options = [one for one in arguments if one.startswith("--")]
    assert all(f'"{one}"' in path.read_text(encoding="utf-8") for one in options), options


def check_run(arguments: list[str]) -> None:
    """Check a run, or carry out what runs nothing."""
    flags = read_flags(arguments)
    if flags.overrides and not (flags.hydra.cfg or flags.hydra.shell_completion):
        assert plan(flags.overrides, flags.multirun, flags.config_dir, flags.trust).jobs
    else:
        assert cli.main(arguments) == 0


def check_worker(arguments: list[str]) -> None:
    """Check that a worker reads the line; what it is to work on is not there."""
    place, *rest = arguments or ["none"]
    assert worker.main([place.replace("postgresql://user@host/db", "none"), *rest]) == 1


def carried_out(main: Callable[[list[str]], int]) -> Callable[[list[str]], None]:
    """Return a check that carries out a command; of a report the project's run stands for `FOLDER`."""

    def check(arguments: list[str]) -> None:
        assert main([one.replace("FOLDER", "reports/mine") for one in arguments]) == 0

    return check


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "qatflow": check_run,
    "qatflow.inspect": carried_out(inspect.main),
    "qatflow.sensitivity": carried_out(lambda arguments: sensitivity.main([*arguments, "--samples", "2"])),
    "qatflow.report": carried_out(report.main),
    "qatflow.encodings": carried_out(encodings.main),
    "qatflow.worker": check_worker,
}


def test_the_program_needs_no_qatflow(inside: Path) -> None:
    scope: dict[str, Any] = {}
    (block,) = blocks("python", "docs/export.md")
    exec(compile(block, "docs/export.md", "exec"), scope)
    assert "qatflow" not in block
    assert scope["model"](torch.zeros(3, 1, 8, 8)).shape == (3, 10)
