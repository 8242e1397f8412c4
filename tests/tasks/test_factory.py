"""Factories: what is trusted is imported and called, and nothing else is."""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qatflow.errors import RecipeError
from qatflow.recipe.trust import Role
from qatflow.tasks.factory import call, load_factory
from qatflow.tasks.openings import opened

Write = Callable[[str, str], None]


def load(written: str, *trust: str, role: Role = "model", **kwargs: object) -> Callable[..., Any]:
    return load_factory(written, trust, "m.factory", role, kwargs, "m.kwargs")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Make a user's project the current directory; yield a function that writes a module into it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("users_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("written", "role"),
    [
        ("torchvision.models:resnet18", "model"),
        ("torchvision.models:get_model", "model"),
        ("torchvision.models.segmentation:lraspp_mobilenet_v3_large", "model"),
        ("torchvision.models:MobileNetV2", "model"),
        ("torchvision.models.quantization:resnet18", "model"),
        ("timm:create_model", "model"),
        ("timm.models:mobilenetv3_small_100", "model"),
        ("timm.models.vision_transformer:VisionTransformer", "model"),
        ("transformers:BertModel.from_pretrained", "model"),
        ("transformers:AutoModelForImageClassification.from_pretrained", "model"),
        ("torchmetrics:Accuracy", "metric"),
        ("torchmetrics.classification:MulticlassF1Score", "metric"),
        ("torch.nn:BCEWithLogitsLoss", "loss"),
        ("timm.loss:LabelSmoothingCrossEntropy", "loss"),
        ("torch.optim:RMSprop", "optimizer"),
        ("timm.optim:Lion", "optimizer"),
        ("transformers:Adafactor", "optimizer"),
    ],
)
def test_what_every_recipe_may_name(written: str, role: Role) -> None:
    pytest.importorskip(written.split(":")[0])
    assert load(written, role=role).__name__ == written.split(":")[1].split(".")[-1]


@pytest.mark.parametrize(
    ("written", "role", "kind"),
    [
        ("torchvision.models:list_models", "model", "a model's class, or a builder that the package lists"),
        ("torchvision.models.resnet:partial", "model", "a model's class, or a builder that the package lists"),
        ("torchvision.models._api:load_state_dict_from_url", "model", ""),
        ("timm.models:load_checkpoint", "model", "a model's class, or a builder that the package lists"),
        ("transformers:AutoConfig.from_pretrained", "model", "a pretrained model's class"),
        ("transformers:pipeline", "model", ""),
        ("torchmetrics.utilities:rank_zero_warn", "metric", "a metric's class"),
        ("torch.nn:Linear", "loss", "a loss's class"),
        ("torch.nn.modules.module:OrderedDict", "loss", "a loss's class"),
        ("torch.optim.optimizer:cast", "optimizer", "an optimizer's class"),
        ("torch.nn:BCEWithLogitsLoss", "model", ""),
        ("torchvision.datasets:MNIST", "data", ""),
    ],
)
def test_what_is_no_constructor_of_that_kind(written: str, role: Role, kind: str) -> None:
    pytest.importorskip(written.split(":")[0])
    with pytest.raises(RecipeError, match=f"is not {kind}" if kind else "is not open to every recipe"):
        load(written, role=role)


def test_a_trusted_package_is_found_in_the_current_directory(project: Write) -> None:
    project(
        "users_own",
        "def model():\n    return 1\n\nclass Net:\n    @classmethod\n    def small(cls):\n        return 2\n",
    )
    assert load("users_own:model", "users_own")() == 1
    assert load("users_own:Net.small", "users_own")() == 2


def test_the_current_directory_is_no_place_to_import_from_before_something_there_is_trusted(project: Write) -> None:
    pytest.importorskip("torchvision")
    load("torchvision.models:resnet18")
    assert str(Path.cwd()) not in sys.path


def test_a_package_without_trust_is_not_imported(project: Write) -> None:
    project("users_secret", "raise SystemExit('imported')\n")
    with pytest.raises(RecipeError, match=r"m.factory: .*'users_secret' is not trusted; .*trust=\[users_secret\]"):
        load("users_secret:model")
    assert "users_secret" not in sys.modules


def test_a_package_beside_the_recipe_does_not_pass_for_a_well_known_one(
    project: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    project("timm", "raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(RecipeError, match="has a 'timm' of its own, which would be taken for the well-known one"):
        load("timm:create_model")
    assert "timm" not in sys.modules


def test_trust_is_by_the_whole_name(project: Write) -> None:
    project("users_own_other", "def model(): ...\n")
    with pytest.raises(RecipeError, match="is not trusted"):
        load("users_own_other:model", "users_own")


def test_a_misspelt_open_package_is_not_offered_for_trust_alone() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'torchvision'\?"):
        load("torchvison.models:resnet18")


def test_a_trusted_package_does_not_lend_out_what_it_imports(project: Write) -> None:
    lines = ["import functools", "from pathlib import Path", "touch = functools.partial(Path.touch, Path('ran'))"]
    project("users_lender", "\n".join([*lines, "def model(size): ...", "small = functools.partial(model, 3)"]))
    for name in ("Path", "touch", "Path.touch"):
        with pytest.raises(RecipeError, match=r"is not users_lender's own but comes from 'pathlib'"):
            load(f"users_lender:{name}", "users_lender")
    assert load("users_lender:Path", "users_lender", "pathlib") is Path
    assert isinstance(load("users_lender:small", "users_lender"), functools.partial)


def test_a_trusted_package_may_pass_on_what_is_open_to_all(project: Write) -> None:
    pytest.importorskip("torchvision")
    project("users_zoo", "from torchvision.models import list_models, resnet18\n")
    assert load("users_zoo:resnet18", "users_zoo").__name__ == "resnet18"
    with pytest.raises(RecipeError, match="comes from 'torchvision', which is not trusted"):
        load("users_zoo:list_models", "users_zoo")


def test_what_is_passed_on_keeps_its_bounds(project: Write) -> None:
    pytest.importorskip("timm")
    lines = ["import functools", "from timm import create_model", "from timm.models import resnet18"]
    lines += ["from transformers import AutoModel, BertModel", "cached = functools.partial(resnet18, cache_dir='ran')"]
    project("users_zoo", "\n".join(lines))
    for name, kwargs in {
        "resnet18": {"cache_dir": "ran"},
        "create_model": {"checkpoint_path": "ran"},
        "cached": {},
        "BertModel.from_pretrained": {"cache_dir": "ran"},
        "AutoModel.from_pretrained": {"trust_remote_code": True},
    }.items():
        with pytest.raises(RecipeError, match=r"without trust|would run code|not users_zoo's own"):
            load(f"users_zoo:{name}", "users_zoo", **kwargs)
    assert load("users_zoo:create_model", "users_zoo", model_name="resnet18").__name__ == "create_model"
    assert load("users_zoo:AutoModel.from_pretrained", "users_zoo").__name__ == "from_pretrained"


def test_what_is_open_to_all_unpickles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Touch(str(tmp_path / "ran")), tmp_path / "weights.pt")
    reading = opened(lambda: torch.load(tmp_path / "weights.pt", weights_only=False))
    with pytest.raises(RecipeError, match="Weights only load failed"):
        call(reading, {}, "model.kwargs", "model.factory", "torchvision.models:resnet18")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


def test_code_beside_the_weights_is_not_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "own.Net"}, "model_type": "own"}')
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    factory = load("transformers:AutoModel.from_pretrained")
    with pytest.raises(RecipeError, match=r"'transformers:AutoModel\.from_pretrained' failed: ValueError: "):
        call(
            factory,
            {"pretrained_model_name_or_path": str(tmp_path)},
            "model.kwargs",
            "model.factory",
            "transformers:AutoModel.from_pretrained",
        )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("written", ["model", "a.b:", ":f", "a.b:f.", "a b:f", "a:b:c"])
def test_what_names_no_function_is_told(written: str) -> None:
    with pytest.raises(RecipeError, match=r"write it as package\.module:function"):
        load(written)


def test_missing_things_are_told(project: Write) -> None:
    project("users_own", "import users_missing\n")
    project("users_broken", "1 / 0\n")
    project("users_typo", "def build_model(): ...\nSIZE = 3\n\nclass Net:\n    def small(self): ...\n")
    trust = ("users_own", "users_broken", "users_typo", "users_nowhere")
    for factory, message in {
        "users_nowhere.models:build": "there is no module 'users_nowhere'; check its spelling",
        "users_own:build": "needs a package that is missing: No module named 'users_missing'",
        "users_broken:build": r"importing 'users_broken' failed: .*users_broken.py:1, in <module>: ZeroDivisionError: ",
        "users_typo:build_modle": r"has no 'build_modle'; did you mean 'build_model'\?",
        "users_typo:zzz": "the module 'users_typo' has no 'zzz'; it has: build_model",
        "users_typo:Net.smal": r"the class 'Net' has no 'smal'; did you mean 'small'\?",
        "users_typo:SIZE": "is a int and cannot be called",
    }.items():
        with pytest.raises(RecipeError, match=message):
            load(factory, *trust)
