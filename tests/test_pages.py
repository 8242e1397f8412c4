"""Every code block of every page does what the page says; pages are as short as promised and find one another.

`bash` is checked line by line, and carried out where that takes seconds; `yaml` composes; the `python` of a page runs
from its first block to its last; `text` is what qatflow says. The project that pages speak of is made for them.
"""

import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from qatflow import encodings, inspect, worker
from qatflow.door import cli
from qatflow.door.command_line import read_flags
from qatflow.door.composing import plan
from qatflow.recipe import Recipe
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.recipe.targets import TARGETS
from qatflow.report import __main__ as report

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "examples/README.md", *(f"docs/{one.name}" for one in ROOT.glob("docs/*.md"))]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in sorted([*PAGES, "CHANGELOG.md"])}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
CODE = re.compile(r"```.*?```", re.DOTALL)
SUFFIXES = (".onnx", ".encodings", ".safetensors", ".pt2", ".pte")
BASIS = """# @package _global_
defaults:
  - override /model: digits_mobilenet
  - override /data: digits
"""
"""What a block of a few sections stands on."""


class Block(NamedTuple):
    """One code block."""

    page: str
    language: str
    text: str


BLOCKS = [
    Block(page, language, text)
    for page in PAGES
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", TEXTS[page], flags=re.DOTALL | re.MULTILINE)
]


def blocks(language: str, page: str | None = None) -> list[str]:
    return [one.text for one in BLOCKS if one.language == language and page in (None, one.page)]


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
        assert cli.main(["recipe=tiny", "run.dir=reports/mine", "export.pt2=true"]) == 0
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
        assert PROJECT["project"]["scripts"]["qatflow"] == "qatflow.door.cli:main"
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
    path = ROOT / f"{module.replace('.', '/')}.py"
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
    "qatflow.report": carried_out(report.main),
    "qatflow.encodings": carried_out(encodings.main),
    "qatflow.worker": check_worker,
}


# -- Python


def carry_out(source: str, scope: dict[str, Any]) -> None:
    exec(compile(source, "a page's example", "exec"), scope)


def accuracy(scope: dict[str, Any]) -> float:
    """Return the share of digits of the test part that a `Quantizer` sorts right."""
    images, labels = scope["data"]["test"].tensors
    with torch.no_grad():
        return float((scope["q"].model(images).argmax(1) == labels).double().mean())


def trained(block: str, line: str, scope: dict[str, Any]) -> tuple[float, float]:
    """Carry out a block that trains from a line on; returns the accuracy before and afterwards."""
    untrained, start, training = block.partition(f"\n{line}")
    carry_out(untrained, scope)
    before = accuracy(scope)
    carry_out(start + training, scope)
    return before, accuracy(scope)


def agrees(scope: dict[str, Any]) -> bool:
    """Tell whether the exported file sorts images as the trained model does, but for one in a hundred."""
    images = scope["images"]
    session = onnxruntime.InferenceSession("trained.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        wanted = scope["q"].model(images)
    return float((torch.from_numpy(got).argmax(1) == wanted.argmax(1)).double().mean()) > 0.99


def test_the_readme_quantizes_and_trains(inside: Path) -> None:
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    whole, loop = blocks("python", "README.md")
    carry_out(whole, scope)
    assert (scope["result"].passed, scope["result"].verdict.value) == (True, "met")
    assert (scope["result"].folder / "report.html").is_file()
    assert sum(line.startswith(("import ", "from ")) for line in loop.splitlines()) <= 2
    before, after = trained(loop, "weights, ranges", scope)
    assert round(before, 2) == 0.97 and after > 0.985
    assert agrees(scope)
    scope["q"] = scope["Quantizer"](scope["model"], scope["images"], calibration=scope["loader"], precision="w3a4")
    scope["q"].apply("fold_batch_norms")
    scope["q"].apply("equalize")
    assert accuracy(scope) > 0.985, "without training"


def test_python_from_the_first_block_to_the_last(inside: Path) -> None:
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    whole, result, loop, lightning, recipe, parts = blocks("python", "docs/python.md")
    carry_out(whole, scope)
    assert scope["result"].folder == Path("reports/digits_w4a8")
    carry_out(result, scope)
    before, after = trained(loop, "weights, ranges", scope)
    assert after > before + 0.01
    assert agrees(scope)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's hints
        before, after = trained(lightning, "trainer = ", scope)
    assert after > before + 0.01
    carry_out(recipe, scope)
    assert scope["result"].best == "equalize"
    carry_out(parts, scope)
    assert scope["scores"].shape == (32, 10)


@pytest.mark.parametrize("page", ["docs/targets.md", "docs/steps.md", "docs/export.md"])
def test_other_python_runs(page: str, inside: Path) -> None:
    scope: dict[str, Any] = {}
    (block,) = blocks("python", page)
    carry_out(block, scope)
    if "model" in scope:
        assert scope["model"](torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_no_python_is_left_out() -> None:
    tested = {"README.md": 2, "docs/python.md": 6, "docs/targets.md": 1, "docs/steps.md": 1, "docs/export.md": 1}
    found = {page: len(blocks("python", page)) for page in PAGES if blocks("python", page)}
    assert found == {**tested, "docs/data.md": 1}, "that of docs/data.md is the project's data"


# -- what qatflow says


DETECTOR = """
import torch
from torch import nn


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(4, 2)

    def forward(self, x):
        scores = self.scores(x)
        if scores.max() > 0.5:
            scores = scores * 2
        return scores


def samples():
    return {name: [(torch.randn(4), torch.tensor(0)) for _ in range(8)] for name in ("calibration", "test")}
"""
CORRUPT = """
from qatflow.tasks.digits import digits


class Corrupt:
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if index == 7:
            raise ValueError(f"sample {index} is corrupt")
        return self.samples[index]


def splits():
    parts = digits()
    return {"calibration": parts.calibration, "test": Corrupt(parts.test), "train": parts.train}
"""


def at_line(source: str, statement: str, line: int) -> str:
    """Return a source with a statement at a line."""
    before = source[: source.index(statement)].count("\n") + 1
    return "\n" * (line - before) + source


def words(text: str) -> list[str]:
    return text.split()


def test_a_model_that_cannot_be_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "detector.py").write_text(at_line(DETECTOR, "if scores.max", 41))
    told = {"model": "{factory: detector:Detector}", "data": "{factory: detector:samples}", "gate": "{max_drop: 0.1}"}
    (tmp_path / "detect.yaml").write_text("".join(f"{name}: {value}\n" for name, value in told.items()))
    assert cli.main(["recipe=detect.yaml", "trust=[detector]", "qat=never", "run.dir=run"]) == 1
    said = capsys.readouterr().err.replace(str(tmp_path), "/home/me")
    (block,) = blocks("text", "docs/data.md")
    pattern = r"\s+".join(map(re.escape, words(block))).replace(re.escape("(...);"), r"\(.*?\);")
    assert re.search(pattern, said, flags=re.DOTALL), said


def test_a_run_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_package", "my_project/recipes"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "my_package" / "data.py").write_text(at_line(CORRUPT, "raise ValueError", 31))
    head = BASIS.replace("  - override /data: digits\n", "  - override /steps: [fold_batch_norms]\n")
    (tmp_path / "my_project" / "recipes" / "mine.yaml").write_text(f"{head}data: {{factory: my_package.data:splits}}\n")
    (block,) = blocks("text", "docs/recipes.md")
    argv = words(block.partition("python -m qatflow ")[2].replace("'", ""))
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    monkeypatch.delitem(sys.modules, "my_package.data", raising=False)
    assert cli.main(argv) == 1
    said = capsys.readouterr().err.replace(str(tmp_path), "/home/me")
    assert words(said) == words(block)
