"""The shipped tree: every recipe, group and option composes, says what the types say, and can be found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from qatflow.door import files
from qatflow.door.composing import plan
from qatflow.door.files import find_recipes, shipped
from qatflow.door.hydra_parts import base_recipe, groups, hydra_at
from qatflow.recipe import LayerPrecision, Recipe
from qatflow.recipe.check import check, recipe_from
from qatflow.recipe.names import DATASETS, METRICS, MODELS
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.recipe.targets import TARGETS

RECIPES = sorted(find_recipes())
LOADER = hydra_at(None, find_recipes()).config_loader
OPTIONS = sorted((group, option) for group in groups() - {"recipe"} for option in LOADER.get_group_options(group))


def composed(*overrides: str, config_dir: Path | None = None) -> DictConfig:
    (job,) = plan(overrides, config_dir=config_dir).jobs
    return job.cfg


def recipe(*overrides: str, config_dir: Path | None = None) -> Recipe:
    (job,) = plan(overrides, config_dir=config_dir).jobs
    return job.recipe


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
    assert list(found.steps) == ["fold_batch_norms", "equalize", "adaround", "mixed_precision"]
    assert (found.model.name, found.data.name, found.target) == ("digits_mobilenet_skewed", "digits", "onnxruntime")
    assert (found.precision.weights, found.precision.per_channel) == (8, False)
    assert (found.gate.metric, found.gate.max_drop.amount, found.qat.range_learning) == ("accuracy", 0.01, True)


@pytest.mark.parametrize(
    "steps", [["fold_batch_norms", "equalize", "adaround"], ["fold_batch_norms", "adaround"], ["equalize"], []]
)
def test_steps_keep_the_order_of_the_command_line(steps: list[str]) -> None:
    cfg = composed("recipe=quickstart", f"steps=[{','.join(steps)}]")
    assert list(cfg.get("steps", {})) == steps


def test_options_of_steps_and_targets_are_those_of_the_tables() -> None:
    assert [option for group, option in OPTIONS if group == "steps"] == sorted(STEP_CONFIGS)
    assert [option for group, option in OPTIONS if group == "target"] == sorted(TARGETS)
    for name, config in STEP_CONFIGS.items():
        steps = OmegaConf.to_container(composed("recipe=tiny", f"steps=[{name}]").steps)
        assert steps == yaml.safe_load(yaml.safe_dump({name: config().model_dump(mode="json")}))


def test_a_users_own_option_of_a_step(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    text = "# @package steps.adaround\nsolver: gradient\niterations: 7\n"
    (tmp_path / "steps" / "short_adaround.yaml").write_text(text)
    found = recipe("recipe=tiny", "steps=[fold_batch_norms,short_adaround]", config_dir=tmp_path)
    assert list(found.steps) == ["fold_batch_norms", "adaround"]
    assert found.steps["adaround"].iterations == 7


def test_the_base_holds_every_default_and_no_steps() -> None:
    base = base_recipe()
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
        written = yaml.safe_load((shipped("conf") / "gate" / f"{option}.yaml").read_text())
        assert written["metric"] in METRICS


def test_no_file_name_is_a_word_that_yaml_reads_as_something_else() -> None:
    for _, option in OPTIONS:
        assert yaml.safe_load(option) == option


def test_hydra_leaves_no_files_of_its_own() -> None:
    cfg = composed("recipe=tiny")
    assert cfg.hydra.output_subdir is None
    assert cfg.hydra.job.chdir is False
    assert cfg.hydra.job_logging.root is None
    assert cfg.hydra.hydra_logging.root is None


def test_folders_are_found_in_a_wheel(tmp_path: Path) -> None:
    """In a wheel conf/ and recipes/ lie inside the package; a checkout elsewhere must not be needed."""
    installed = tmp_path / "site" / "qatflow"
    shutil.copytree(Path(files.__file__).parents[1], installed, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conf", "recipes"):
        shutil.copytree(shipped(name), installed / name)
    code = "from qatflow.door.files import shipped; import sys; sys.exit(str(shipped('conf')))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert found.stderr.strip() == str(installed / "conf")
    command = [sys.executable, "-m", "qatflow", "recipe=tiny", "--cfg", "job"]
    listed = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "digits_mobilenet" in listed.stdout


def test_a_broken_installation_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "__file__", str(tmp_path / "qatflow" / "door" / "files.py"))
    with pytest.raises(FileNotFoundError, match="without its folder 'conf'"):
        shipped("conf")


def test_base_defaults_pass_the_check_once_there_is_a_model() -> None:
    base = base_recipe()
    _, mistakes = check(base)
    assert [mistake.path for mistake in mistakes] == ["model", "data"]


def test_a_target_on_the_command_line_counts_more_than_the_body_of_a_recipe(tmp_path: Path) -> None:
    """As in a run folder's `recipe.yaml`, which has every key: a sweep over targets must not run one of them thrice."""
    (first,) = plan(["recipe=tiny", "target=openvino"]).jobs
    stored = tmp_path / "recipe.yaml"
    stored.write_text(yaml.safe_dump(first.recipe.model_dump(mode="json"), sort_keys=False))
    jobs = plan([f"recipe={stored}", "target=qnn,xnnpack"], multirun=True).jobs
    assert [job.recipe.target for job in jobs] == ["qnn", "xnnpack"]
    (kept,) = plan([f"recipe={stored}"]).jobs
    assert kept.recipe.target == "openvino"


def test_overrides_by_layer_from_the_command_line_and_from_a_file(tmp_path: Path) -> None:
    wanted = {"classifier.*": LayerPrecision(weights=8, activations=16), "features.0": LayerPrecision(quantized=False)}
    line = "precision.overrides={classifier.*: w8a16, features.0: float}"
    assert recipe("recipe=tiny", line).precision.overrides == wanted
    assert recipe("recipe=tiny", "precision.overrides={}").precision.overrides == {}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: digits_mobilenet\n  - override /data: digits\n"
        "precision:\n  first_layer: w8a8\n  overrides:\n    classifier.*: w8a16\n    features.0: float\n"
    )
    found = recipe("recipe=mine", config_dir=tmp_path).precision
    assert found.overrides == wanted
    assert list(found.overrides) == list(wanted)
    assert found.first_layer == LayerPrecision(weights=8, activations=8)
