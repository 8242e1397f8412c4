"""The shipped tree: every recipe, group and option composes, says what the types say, and can be found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from qatflow.door import config
from qatflow.door.overrides import groups
from qatflow.door.preflight import plan
from qatflow.recipe import LayerPrecision, Recipe
from qatflow.recipe.check import check, recipe_from
from qatflow.recipe.names import DATASETS, METRICS, MODELS
from qatflow.recipe.steps import STEP_CONFIGS

RECIPES = sorted(config.find_recipes())
OPTIONS = sorted(
    (group, path.stem) for group in groups() - {"recipe"} for path in (config.shipped("conf") / group).iterdir()
)


def composed(*overrides: str, config_dir: Path | None = None) -> DictConfig:
    """Compose strictly, as a run does."""
    config.register(config.find_recipes(config_dir), config_dir)
    with config.hydra_at(config_dir):
        cfg = compose("config", overrides=["name=tested", *overrides])
    return cfg


def recipe(*overrides: str) -> Recipe:
    return config.recipe_of(composed(*overrides))


def test_the_recipes_that_the_readme_names_are_there() -> None:
    assert {"quickstart", "quickstart_qat", "tiny"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_composes_and_describes_itself(name: str) -> None:
    found = recipe(f"recipe={name}")
    assert found.description
    assert "\n" not in found.description
    assert list(found.steps) == sorted(found.steps, key=list(STEP_CONFIGS).index)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes(group: str, option: str) -> None:
    choice = f"[{option}]" if group == "steps" else option
    assert isinstance(recipe("recipe=tiny", f"{group}={choice}"), Recipe)


def test_quickstart_composes_to_what_it_says() -> None:
    found = recipe("recipe=quickstart")
    assert list(found.steps) == ["fold_batch_norms", "equalize", "adaround"]
    assert (found.model.name, found.data.name, found.target) == ("digits_mobilenet_skewed", "digits", "onnxruntime")
    assert (found.precision.weights, found.precision.per_channel) == (8, False)
    assert (found.gate.metric, found.gate.max_drop.amount, found.qat.range_learning) == ("accuracy", 0.01, True)


@pytest.mark.parametrize(
    "steps", [["fold_batch_norms", "equalize", "adaround"], ["fold_batch_norms", "adaround"], ["equalize"], []]
)
def test_steps_keep_the_order_of_the_command_line(steps: list[str]) -> None:
    cfg = composed("recipe=quickstart", f"steps=[{','.join(steps)}]")
    assert list(cfg.get("steps", {})) == steps


def test_step_files_and_step_configs_are_the_same() -> None:
    files = {path.stem: path for path in (config.shipped("conf") / "steps").iterdir()}
    assert set(files) == set(STEP_CONFIGS)
    for name, path in files.items():
        assert path.read_text().startswith(f"# @package steps.{name}\n")
        written = OmegaConf.to_container(OmegaConf.load(path))
        assert written == yaml.safe_load(yaml.safe_dump(STEP_CONFIGS[name]().model_dump(mode="json")))


def test_the_base_holds_every_default_and_no_steps() -> None:
    base = config.base_recipe()
    assert list(base) == [name for name in Recipe.model_fields if name != "steps"]
    sources = {"model": {"name": "digits_mobilenet"}, "data": {"name": "digits"}}
    merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(base), sources))
    assert recipe_from(merged) == Recipe.model_validate(sources)


def test_a_composed_recipe_can_be_dumped_and_read_again() -> None:
    found = recipe("recipe=quickstart_qat", "gate.max_drop=2%")
    assert recipe_from(yaml.safe_load(yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False))) == found


def test_options_name_what_the_tables_have() -> None:
    named = {group: {option for found, option in OPTIONS if found == group} for group in ("model", "data", "gate")}
    assert named["model"] == set(MODELS)
    assert named["data"] == set(DATASETS)
    for option in named["gate"]:
        written = yaml.safe_load((config.shipped("conf") / "gate" / f"{option}.yaml").read_text())
        assert written["metric"] in METRICS


def test_no_file_name_is_a_word_that_yaml_reads_as_something_else() -> None:
    for _, option in OPTIONS:
        assert yaml.safe_load(option) == option


def test_hydra_leaves_no_files_of_its_own() -> None:
    config.register(config.find_recipes())
    with config.hydra_at(None):
        cfg = compose("config", overrides=["recipe=tiny"], return_hydra_config=True)
    assert cfg.hydra.output_subdir is None
    assert cfg.hydra.job.chdir is False
    assert cfg.hydra.job_logging.root is None
    assert cfg.hydra.hydra_logging.root is None


def test_recipes_are_registered_anew_each_time(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("seed: 1\n")
    config.register(config.find_recipes(tmp_path), tmp_path)
    config.register(config.find_recipes())
    assert sorted(name.removesuffix(".yaml") for name in ConfigStore.instance().repo["recipe"]) == RECIPES


def test_folders_are_found_in_a_wheel(tmp_path: Path) -> None:
    """In a wheel conf/ and recipes/ lie inside the package; a checkout elsewhere must not be needed."""
    installed = tmp_path / "site" / "qatflow"
    shutil.copytree(Path(config.__file__).parents[1], installed, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conf", "recipes"):
        shutil.copytree(config.shipped(name), installed / name)
    code = "from qatflow.door import config; import sys; sys.exit(str(config.shipped('conf')))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert found.stderr.strip() == str(installed / "conf")
    command = [sys.executable, "-m", "qatflow", "recipe=tiny", "--cfg", "job"]
    listed = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "digits_mobilenet" in listed.stdout


def test_a_broken_installation_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "__file__", str(tmp_path / "qatflow" / "door" / "config.py"))
    with pytest.raises(FileNotFoundError, match="without its folder 'conf'"):
        config.shipped("conf")


def test_what_the_preflight_lets_pass_composes_strictly() -> None:
    lines = ["recipe=quickstart_qat", "model.kwargs.width=2", "+seed=4", "steps=[fold_batch_norms]", "~qat.loss"]
    checked = plan(lines, multirun=False, config_dir=None)
    cfg = composed(*checked.lines)
    found = config.recipe_of(cfg, dropped=checked.dropped[0])
    assert (found.model.kwargs, found.seed, list(found.steps)) == ({"width": 2}, 4, ["fold_batch_norms"])


def test_base_defaults_pass_the_check_once_there_is_a_model() -> None:
    base = config.base_recipe()
    _, mistakes = check(base)
    assert [mistake.path for mistake in mistakes] == ["model", "data"]


def test_overrides_by_layer_from_the_command_line_and_from_a_file(tmp_path: Path) -> None:
    wanted = {"classifier.*": LayerPrecision(weights=8, activations=16), "features.0": LayerPrecision(quantized=False)}
    line = "precision.overrides={classifier.*: w8a16, features.0: float}"
    assert plan(["recipe=tiny", line], multirun=False, config_dir=None)
    assert recipe("recipe=tiny", "precision.overrides={}").precision.overrides == {}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: digits_mobilenet\n  - override /data: digits\n"
        "precision:\n  first_layer: w8a8\n  overrides:\n    classifier.*: w8a16\n    features.0: float\n"
    )
    plan(["recipe=mine"], multirun=False, config_dir=tmp_path)
    found = config.recipe_of(composed("recipe=mine", config_dir=tmp_path)).precision
    assert found.overrides == wanted
    assert list(found.overrides) == list(wanted)
    assert found.first_layer == LayerPrecision(weights=8, activations=8)
    (checked,) = plan(["recipe=mine", line], multirun=False, config_dir=tmp_path).lines[1:]
    assert checked.startswith("++precision.overrides=")
