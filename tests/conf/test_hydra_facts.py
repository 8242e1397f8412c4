"""Facts about Hydra that the tree in `conf/` rests on.

Each is pinned on a tree of its own, so that a new Hydra which behaves differently fails here and by name.
"""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import qatflow

CONFIG = """
defaults:
  - steps: []
  - recipe: ???
"""
RECIPE = """
# @package _global_
defaults:
  - override /steps: [c, a]
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "steps").mkdir()
    (tmp_path / "recipe").mkdir()
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "recipe" / "plain.yaml").write_text(RECIPE)
    for name in "abc":
        (tmp_path / "steps" / f"{name}.yaml").write_text(f"# @package steps.{name}\nsize: 1\nspan: [1, 2, 3]\n")
    return tmp_path


def composed(tree: Path, *overrides: str, recipe: str = "plain") -> DictConfig:
    with initialize_config_dir(str(tree), version_base="1.3"):
        return compose("config", overrides=[f"recipe={recipe}", *overrides])


def recipe(tree: Path, body: str, name: str = "own") -> str:
    (tree / "recipe" / f"{name}.yaml").write_text(RECIPE + body)
    return name


def test_a_list_of_options_becomes_an_ordered_mapping(tree: Path) -> None:
    assert list(composed(tree).steps) == ["c", "a"]
    assert composed(tree).steps.c == {"size": 1, "span": [1, 2, 3]}


def test_order_is_that_of_first_mention(tree: Path) -> None:
    (tree / "config.yaml").write_text(CONFIG.replace("  - steps: []", "  - _self_\n  - steps: []") + "steps: {a: {}}\n")
    assert list(composed(tree).steps) == ["a", "c"]


def test_a_list_on_the_command_line_replaces_the_recipes(tree: Path) -> None:
    assert list(composed(tree, "steps=[b,a]").steps) == ["b", "a"]


def test_an_empty_list_gives_no_steps_at_all(tree: Path) -> None:
    assert "steps" not in composed(tree, "steps=[]")


def test_duplicates_collapse_silently(tree: Path) -> None:
    assert list(composed(tree, "steps=[b,a,b]").steps) == ["b", "a"]


def test_an_option_in_a_recipe_keeps_the_position(tree: Path) -> None:
    assert list(composed(tree, recipe=recipe(tree, "steps: {a: {size: 5}, c: {size: 6}}")).steps) == ["c", "a"]


def test_a_recipe_that_mentions_an_unselected_step_adds_it(tree: Path) -> None:
    own = recipe(tree, "steps: {b: {size: 5}}")
    assert list(composed(tree, recipe=own).steps) == ["c", "a", "b"]
    assert list(composed(tree, "steps=[a]", recipe=own).steps) == ["a", "b"]


def test_lists_are_replaced_and_mappings_merged(tree: Path) -> None:
    steps = composed(tree, recipe=recipe(tree, "steps: {a: {span: [9]}}")).steps
    assert steps.a == {"size": 1, "span": [9]}


def test_the_choices_do_not_record_a_list_but_the_defaults_list_does(tree: Path) -> None:
    with initialize_config_dir(str(tree), version_base="1.3"):
        cfg = compose("config", overrides=["recipe=plain", "steps=[b,b]"], return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        listed = loader.compute_defaults_list("config", ["recipe=plain", "steps=[b,b]"], RunMode.RUN)
    assert "steps" not in cfg.hydra.runtime.choices
    assert [d.config_path for d in listed.defaults if str(d.config_path).startswith("steps/")] == ["steps/b"] * 2
    assert {d.package for d in listed.defaults if str(d.config_path).startswith("steps/")} == {"steps.b"}


def test_an_unknown_option_names_its_file(tree: Path) -> None:
    with pytest.raises(MissingConfigException) as error:
        composed(tree, "steps=[foo]")
    assert error.value.missing_cfg_file == "steps/foo"


def test_a_stored_recipe_applies_its_own_overrides(tree: Path) -> None:
    node = OmegaConf.create({"defaults": [{"override /steps": ["b", "c"]}], "extra": 1})
    ConfigStore.instance().store(group="recipe", name="stored", node=node, package="_global_")
    try:
        cfg = composed(tree, recipe="stored")
    finally:
        del ConfigStore.instance().repo["recipe"]
    assert list(cfg.steps) == ["b", "c"]
    assert cfg.extra == 1
    assert "defaults" not in cfg


def test_yaml_reads_off_as_false_so_that_no_option_may_be_called_so(tree: Path) -> None:
    (tree / "steps" / "off.yaml").write_text("# @package steps.off\n")
    (tree / "recipe" / "off.yaml").write_text("# @package _global_\ndefaults: [{override /steps: off}]\n")
    with pytest.raises(ValueError, match="Unsupported item value in defaults : bool"):
        composed(tree, recipe="off")


def test_an_unknown_group_in_a_recipe_names_the_group(tree: Path) -> None:
    (tree / "recipe" / "own.yaml").write_text("# @package _global_\ndefaults: [{override /step: a}]\n")
    with pytest.raises(ConfigCompositionException, match=r"In 'recipe/own': Could not override 'step'\."):
        composed(tree, recipe="own")


def test_one_file_knows_hydras_private_parts() -> None:
    package = Path(qatflow.__file__).parent
    files = [path for path in package.rglob("*.py") if "hydra._internal" in path.read_text(encoding="utf-8")]
    assert files == [package / "door" / "hydra_parts.py"]
