"""What somebody's recipe, options and files may not do: the table of guards of `SECURITY.md` is made here.

Every guard is tried with something harmless that would leave a file named `ran`.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from rich.console import Console

from qatflow import inspect
from qatflow.door.cli import main
from qatflow.errors import QatflowError
from qatflow.recipe import Model
from qatflow.recipe.trust import OPEN
from qatflow.report.console import say
from qatflow.tasks.models import load_model
from tests.made_tables import check_table

TINY = {"defaults": ["tiny"]}
TOUCH = {"_target_": "pathlib.Path.touch", "self": "ran"}


class Guard(NamedTuple):
    """Something that is tried, and what is said of it."""

    tried: str
    files: dict[str, Any]
    """By path in a folder of options: texts, or what YAML is written from. The recipe is `recipes/theirs.yaml`."""
    said: str


def recipe(**sections: Any) -> dict[str, Any]:
    return {"recipes/theirs.yaml": {**TINY, **sections}}


def named(section: str, factory: str, **more: Any) -> dict[str, Any]:
    return recipe(**{section: {"name": None, "factory": factory, **more}})


HYDRA = (
    "hydra: {} says something to Hydra, which no recipe and no option may; drop it; what is meant for Hydra stands on "
)
HYDRA += "the command line, as in hydra.verbose=true"
MODELS = "open to all for a model: torchvision.models:NAME, timm:create_model, timm.models:NAME, "
MODELS += "transformers:NAME.from_pretrained"
OURS = "digits_mobilenet, digits_mobilenet_skewed, digits_mobilenet_thin"
GUARDS = [
    Guard(
        "a factory of a package that nobody trusts",
        named("model", "subprocess:run", kwargs={"args": ["touch", "ran"]}),
        "model.factory: the package 'subprocess' is not trusted; if you trust it, add trust=[subprocess] on "
        "the command "
        f"line; {MODELS}",
    ),
    Guard(
        "a recipe that trusts for you",
        recipe(trust=["subprocess"]),
        "trust: a recipe cannot vouch for packages itself; put trust=[my_package] on the command line instead",
    ),
    Guard(
        "a function within qatflow that starts processes",
        named("data", "qatflow.qat.launch:_run", kwargs={"line": ["touch", "ran"]}),
        "data.factory: 'qatflow.qat.launch:_run' is within qatflow, whose own things go by their names; write the name "
        "alone; allowed: digits",
    ),
    Guard(
        "one that loads functions and trusts them itself",
        named("model", "qatflow.tasks.factory:load_factory", kwargs={"trust": ["os"]}),
        "model.factory: 'qatflow.tasks.factory:load_factory' is within qatflow, whose own things go by their "
        "names; write "
        f"the name alone; allowed: {OURS}",
    ),
    Guard(
        "qatflow's command line as a factory, with its own trust",
        named("model", "qatflow.door.cli:main", kwargs={"argv": ["trust=[os]"]}),
        "model.factory: 'qatflow.door.cli:main' is within qatflow, whose own things go by their names; write the name "
        f"alone; allowed: {OURS}",
    ),
    Guard(
        "a private name of a well-known package",
        named("model", "torchvision.models._api:load_state_dict_from_url"),
        "model.factory: 'torchvision.models._api:load_state_dict_from_url' is not open to every recipe; if "
        "you trust it, "
        f"add trust=[torchvision] on the command line; {MODELS}",
    ),
    Guard(
        "a function of a well-known package that makes no model",
        named("model", "transformers:pipeline"),
        "model.factory: 'transformers:pipeline' is not open to every recipe; if you trust it, add "
        "trust=[transformers] on "
        f"the command line; {MODELS}",
    ),
    Guard(
        "what a well-known package merely imports",
        named("model", "torchvision.models.resnet:partial"),
        "model.factory: 'torchvision.models.resnet:partial' is not a model's class, or a builder that the "
        "package lists; "
        "if you trust it, add trust=[torchvision] on the command line",
    ),
    Guard(
        "code that lies beside a model's weights",
        named("model", "transformers:AutoModel.from_pretrained", kwargs={"trust_remote_code": True}),
        "model.kwargs.trust_remote_code: would run code that lies beside the weights; if you trust it, add "
        "trust=[remote_code] on the command line",
    ),
    Guard(
        "kernels or adapters from elsewhere",
        named("model", "transformers:AutoModel.from_pretrained", kwargs={"attn_implementation": "their/kernel"}),
        "model.kwargs.attn_implementation: 'their/kernel' is not an option; allowed: eager, sdpa; if you trust this "
        "recipe, add trust=[transformers] on the command line",
    ),
    Guard(
        "a file or server that a constructor would use",
        named("model", "timm:create_model", kwargs={"model_name": "resnet18", "checkpoint_path": "theirs.pt"}),
        "model.kwargs.checkpoint_path: no recipe may say this to timm:create_model without trust; a checkpoint is "
        "model.weights; if you trust this recipe, add trust=[timm] on the command line",
    ),
    Guard(
        "a `_target_`",
        recipe(model={"kwargs": {"norm": TOUCH}}),
        "model.kwargs.norm._target_: a recipe is data, and a `_target_` would let it call any code; name a function as "
        "`factory: package.module:function`; its package must be a trusted one",
    ),
    Guard(
        "Hydra's callbacks, environment, folders, in a recipe",
        recipe(hydra={"callbacks": {"theirs": TOUCH}, "job": {"env_set": {"PATH": "theirs"}}}),
        HYDRA.format("recipe theirs"),
    ),
    Guard(
        "the same in an option that a recipe chooses",
        {
            **recipe(defaults=["tiny", {"override /precision": "theirs"}]),
            "precision/theirs.yaml": f"# @package _global_\nhydra: {{launcher: {TOUCH}}}\n",
        },
        HYDRA.format("precision/theirs"),
    ),
    Guard(
        "an option of Hydra's that a recipe chooses for it",
        {
            **recipe(defaults=["tiny", {"/report@hydra.callbacks": "theirs"}]),
            "report/theirs.yaml": {"callbacks": TOUCH},
        },
        HYDRA.format("recipe theirs"),
    ),
    Guard(
        "a YAML tag that makes an object",
        {"recipes/theirs.yaml": "model: !!python/object/apply:pathlib.Path.touch [ran]\n"},
        "theirs/recipes/theirs.yaml, line 1: the tag 'tag:yaml.org,2002:python/object/apply:pathlib.Path.touch' has no "
        "place in a recipe; remove it",
    ),
    Guard(
        "control characters, for whoever looks at a terminal",
        {"recipes/theirs.yaml": 'description: "red\\e[31m, \\e]0;title"\n'},
        "theirs/recipes/theirs.yaml, line 1: a text has the character '\\x1b', which cannot be written or shown",
    ),
    Guard(
        "files outside of the current folder",
        recipe(run={"dir": "../ran"}),
        "run.dir: '../ran' is outside of the current folder, where no recipe may write; give it on the command line: "
        "run.dir=...",
    ),
    Guard(
        "a database outside of the current folder",
        recipe(search={"storage": "sqlite:///../ran"}),
        "search.storage: 'sqlite:///../ran' is outside of the current folder, where no recipe may write; "
        "give it on the "
        "command line: search.storage=...",
    ),
    Guard(
        "a database's file by another spelling",
        recipe(search={"storage": "sqlite:///file:/tmp/ran?uri=true"}),
        "search.storage: 'sqlite:///file:/tmp/ran?uri=true' is no plain sqlite:///FILE, and a recipe may not choose a "
        "server, which gets passwords; give it on the command line: search.storage=...",
    ),
    Guard(
        "a server that asks for passwords",
        recipe(search={"storage": "postgresql://theirs/db"}),
        "search.storage: 'postgresql://theirs/db' is no plain sqlite:///FILE, and a recipe may not choose a server, "
        "which gets passwords; give it on the command line: search.storage=...",
    ),
    Guard(
        "a secret of the environment, sent to a server",
        recipe(search={"storage": "postgresql://${oc.env:HOME}@theirs/db"}),
        "search.storage: a recipe may not name an environment variable here; give it on the command line: "
        "search.storage=...",
    ),
    Guard(
        "a secret of the environment, as the name of an option",
        recipe(defaults=["tiny", {"override /precision": "${oc.env:HOME}"}]),
        "defaults of recipe theirs: a `${...:...}` is looked up before anything is checked; write the name",
    ),
    Guard(
        "a launcher of Hydra's",
        recipe(defaults=["tiny", {"override /hydra/launcher": "joblib"}]),
        HYDRA.format("recipe theirs"),
    ),
    Guard(
        "an option outside of the folders of options",
        {
            **recipe(defaults=["tiny", {"override /precision": "../../../../../../../../../../proc/self/cwd/evil"}]),
            "../evil.yaml": f"# @package hydra.callbacks\ntheirs: {TOUCH}\n",
        },
        "precision: '../../../../../../../../../../proc/self/cwd/evil' is outside of the folders of options; write the "
        "option's name",
    ),
]


def write(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        path = folder / "theirs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))


@pytest.mark.parametrize("command", [main, inspect.main], ids=["qatflow", "inspect"])
@pytest.mark.parametrize("guard", GUARDS, ids=[guard.tried for guard in GUARDS])
def test_what_is_tried_is_told_and_nothing_runs(
    guard: Guard,
    command: Callable[[list[str]], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "resnet:partial" in guard.said:
        pytest.importorskip("torchvision")
    home = tmp_path / "home"
    home.mkdir()
    write(home, guard.files)
    monkeypatch.chdir(home)
    assert command(["--config-dir", "theirs", "recipe=theirs"]) == 1
    assert guard.said in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.rglob("ran"))


def test_the_table_of_guards_is_the_pages() -> None:
    check_table("SECURITY.md", "guards", ("tried", "said"), [(guard.tried, f"`{guard.said}`") for guard in GUARDS])


def test_the_table_of_what_recipes_may_name_is_the_pages() -> None:
    rows = [
        (one.role, f"`{one.written}`", one.kind if one.arguments is None else f"{one.kind}, with certain arguments")
        for one in OPEN
    ]
    for page in ("README.md", "SECURITY.md"):
        check_table(page, "open to all", ("what for", "written", "what it has to be"), rows)


@pytest.mark.parametrize(
    "module",
    ["qatflow", "qatflow.inspect", "qatflow.sensitivity", "qatflow.worker", "qatflow.report", "qatflow.encodings"],
)
def test_modules_beside_a_recipe_are_not_imported(module: str, tmp_path: Path) -> None:
    for name in ("yaml", "rich", "hydra", "pydantic", "torch", "timm", "hydra_plugins", "flash_attn", "onnx"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\n")
    line = [sys.executable, "-m", module, "--help"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not (tmp_path / "ran").exists()


def test_hydras_own_options_are_not_taken_from_a_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = {"_target_": "pathlib.Path.touch", "self": "ran"}
    write(
        tmp_path, {"recipes/theirs.yaml": TINY, "hydra/launcher/basic.yaml": launcher, "config.yaml": {"hydra": TOUCH}}
    )
    monkeypatch.chdir(tmp_path)
    assert main(["--config-dir", "theirs", "recipe=theirs", "--cfg", "hydra"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["hydra"]["launcher"] == {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
    assert "_target_" not in shown["hydra"]


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say(Console(), "red\x1b[31m, over\rwritten, \x1b]0;title\x07")
    assert capsys.readouterr().out == "red\\x1b[31m, over\\rwritten, \\x1b]0;title\\x07\n"


def test_words_of_trust_are_no_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, named("model", "remote_code:touch"))
    (tmp_path / "remote_code.py").write_text("open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert main(["--config-dir", "theirs", "recipe=theirs", "trust=[remote_code]"]) == 1
    assert "the package 'remote_code' is not trusted" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_weights_are_not_unpickled(tmp_path: Path) -> None:
    torch.save({"weight": Touch(tmp_path / "ran")}, tmp_path / "weights.pt")
    with pytest.raises(QatflowError, match=r"model\.weights"):
        load_model(Model(name="digits_mobilenet", weights=str(tmp_path / "weights.pt")))
    assert not (tmp_path / "ran").exists()
