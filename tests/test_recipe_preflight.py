"""The preflight: mistakes of the command line, of a recipe's defaults and of its values, all told together."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from qatflow.door.command_line import for_hydra, read_overrides, take_trust
from qatflow.door.composing import Plan, plan
from qatflow.door.files import find_recipes
from qatflow.door.hydra_parts import hydra_at
from qatflow.errors import RecipeError
from qatflow.recipe import Recipe
from qatflow.recipe.steps import STEP_CONFIGS

PRECISIONS = "w2a4, w2a8_per_tensor, w3a4, w4a4, w4a8, w4a8_per_tensor, w8a16, w8a8, w8a8_per_tensor"
TOP = f"{', '.join(Recipe.model_fields)}, recipe, trust"
Project = Callable[[str, str], Path]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    def write(path: str, text: str) -> Path:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        return tmp_path

    return write


def planned(*lines: str, multirun: bool = False, config_dir: Path | None = None) -> Plan:
    trust, rest = take_trust(lines)
    return plan(rest, multirun, config_dir, trust)


def steps_of(found: Plan) -> list[list[str]]:
    return [list(job.recipe.steps) for job in found.jobs]


def told(*lines: str, multirun: bool = False, config_dir: Path | None = None) -> list[str]:
    with pytest.raises(RecipeError) as error:
        planned(*lines, multirun=multirun, config_dir=config_dir)
    assert not GlobalHydra.instance().is_initialized()
    return [str(mistake) for mistake in error.value.mistakes]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("foo", "foo: has no value; write foo=VALUE, or recipe=foo if it is a recipe"),
        ("seedd=1", f"seedd: unknown key; did you mean 'seed'? allowed: {TOP}"),
        ("recipes=quickstart", f"recipes: unknown key; did you mean 'recipe'? allowed: {TOP}"),
        ("precision=w8a9", f"precision: 'w8a9' is not an option; did you mean 'w8a8'? allowed: {PRECISIONS}"),
        ("precision=4", f"precision: 4 is not an option; allowed: {PRECISIONS}"),
        ("precision=null", f"precision: null is not an option; allowed: {PRECISIONS}"),
        ("precision=w8a8,w4a8", "precision: w8a8,w4a8 is several values; "
         "add -m to run one after the other, or write [w8a8,w4a8] for a list"),
        ("precision.weigths=4", "precision.weigths: unknown key; did you mean 'weights'? "
         "allowed: weights, activations, per_channel, "
         "weights_symmetric, activations_symmetric, first_layer, last_layer, overrides"),
        ("+precision.bits=4", "precision.bits: unknown key; allowed: weights, activations, per_channel, "
         "weights_symmetric, activations_symmetric, first_layer, last_layer, overrides"),
        ("model=digits_mobilnet", "model: 'digits_mobilnet' is not an option; did you mean 'digits_mobilenet'? "
         "allowed: digits_mobilenet, digits_mobilenet_skewed, digits_mobilenet_thin"),
        ("data=digit", "data: 'digit' is not an option; did you mean 'digits'? allowed: digits"),
        ("target=onnx_runtime", "target: 'onnx_runtime' is not an option; did you mean 'onnxruntime'? "
         "allowed: onnxruntime, openvino, qnn, tensorrt, xnnpack"),
        ("calibration=min_max", "calibration: 'min_max' is not an option; did you mean 'minmax'? "
         "allowed: entropy, minmax, percentile, sqnr"),
        ("gate=acuracy", "gate: 'acuracy' is not an option; did you mean 'accuracy'? "
         "allowed: accuracy, accuracy_strict, agreement, mean_squared_error, sqnr_db, top5_accuracy"),
        ("ladder=all", "ladder: 'all' is not an option; allowed: all_rungs, stop_at_gate"),
        ("qat=off", "qat: 'off' is not an option; allowed: both, fixed_ranges, never, range_learning"),
        ("search=slow", "search: 'slow' is not an option; allowed: quick, standard, thorough"),
        (
            "export=onnx",
            "export: 'onnx' is not an option; "
            "allowed: encodings_0_6_1, encodings_1_0_0, encodings_2_0_0, pt2",
        ),
        ("report=htm", "report: 'htm' is not an option; did you mean 'html'? allowed: html, tables"),
        ("steps=[fold_batch_norm]", "steps: unknown step 'fold_batch_norm'; did you mean 'fold_batch_norms'? "
         f"allowed: {', '.join(sorted(STEP_CONFIGS))}"),
        ("steps=[equalize,equalize]", "steps: 'equalize' is listed 2 times; a step runs once: list it once"),
        ("steps.adaround.iterations=5", "steps.adaround: the recipe does not select this step; "
         "select it: steps=[fold_batch_norms,adaround]"),
        ("steps.adaroundd.iterations=5", "steps.adaroundd: unknown step; did you mean 'adaround'? "
         f"allowed: {', '.join(STEP_CONFIGS)}"),
        ("~qat.losss", "qat.losss: cannot be removed, for it is not there"),
        ("gate.metric.x=1", "gate.metric: {'x': 1} is not text"),
        ("recipe=quikstart", "recipe: 'quikstart' is not a recipe; did you mean 'quickstart'? "
         "allowed: quickstart, quickstart_qat, tiny"),
        ("recipe=[tiny,quickstart]", "recipe: ['tiny', 'quickstart'] is not one recipe; "
         "there are: quickstart, quickstart_qat, tiny"),
        ("recipe=gone.yaml", "gone.yaml: cannot be read: No such file or directory"),
        ("seed=${nowhere}", "seed: Interpolation key 'nowhere' not found; correct the ${...} in it"),
        ("hydra.nope=1", "recipe tiny: cannot be composed: Could not override 'hydra.nope'. "
         "To append to your config use +hydra.nope=1"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_sentence(line: str, sentence: str) -> None:
    assert told("recipe=tiny", line) == [sentence]


def test_an_override_that_cannot_be_read() -> None:
    (sentence,) = told("recipe=tiny", "seed=[")
    assert sentence.startswith("seed: '[' cannot be read as a value; quote text")


def test_no_recipe_lists_the_recipes_and_checks_the_rest() -> None:
    sentences = told("seed=x")
    assert sentences == [
        "recipe: none is given; write recipe=NAME; there are: quickstart, quickstart_qat, tiny",
        "seed: 'x' is not an integer",
    ]


def test_mistakes_of_all_kinds_are_told_in_one_go() -> None:
    lines = ("recipe=quikstart", "steps=[foldd]", "precision.weights=1", "model.weights=nope.pt", "qat.optimiser=sgd")
    assert [sentence.split(":")[0] for sentence in told(*lines)] == [
        "recipe",
        "steps",
        "model.weights",
        "precision.weights",
        "qat.optimiser",
    ]


def test_stand_ins_are_gone_afterwards() -> None:
    before = {name: set(entry) for name, entry in ConfigStore.instance().repo.items() if isinstance(entry, dict)}
    told("recipe=tiny", "model=xyz", "steps=[foldd]")
    after = {name: set(entry) for name, entry in ConfigStore.instance().repo.items() if isinstance(entry, dict)}
    assert {name: entry for name, entry in after.items() if name != "recipe"} == {
        name: entry for name, entry in before.items() if name != "recipe"
    }
    assert told("recipe=tiny", "model=xyz")[0].endswith(
        "allowed: digits_mobilenet, digits_mobilenet_skewed, digits_mobilenet_thin"
    )


def test_a_list_of_steps_on_the_command_line_drops_the_recipes_options(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    lines = ["defaults:", "  - override /model: digits_mobilenet", "  - override /data: digits"]
    lines += ["  - override /steps: [fold_batch_norms, adaround]", "steps:", "  adaround:", "    iterations: 500"]
    (folder / "mine.yaml").write_text("# @package _global_\n" + "\n".join(lines) + "\n")
    assert steps_of(planned("recipe=mine", "steps=[fold_batch_norms]", config_dir=tmp_path)) == [["fold_batch_norms"]]
    assert steps_of(planned("recipe=mine", config_dir=tmp_path)) == [["fold_batch_norms", "adaround"]]
    swept = planned("recipe=mine", "steps=[fold_batch_norms],[adaround]", multirun=True, config_dir=tmp_path)
    assert steps_of(swept) == [["fold_batch_norms"], ["adaround"]]
    assert swept.jobs[1].recipe.steps["adaround"].iterations == 500


def test_every_job_of_a_sweep_is_checked() -> None:
    sentences = told("recipe=tiny", "precision=w8a8,w4a9", "seed=range(2)", "qat.batch_size=choice(0,1)", multirun=True)
    assert [sentence.split(":")[0] for sentence in sentences] == ["qat.batch_size", "precision"]


def test_a_sweep_with_globs_and_ranges() -> None:
    assert len(planned("recipe=tiny", "precision=glob(w4*)", "seed=range(2)", multirun=True).jobs) == 6


def test_the_jobs_of_a_sweep_may_not_share_a_folder() -> None:
    assert told("recipe=tiny", "seed=1,2", "run.dir=x", multirun=True) == [
        "run.dir: is one folder, and each job of a sweep has its own; "
        "drop it; hydra.sweep.dir=FOLDER says where the whole sweep goes"
    ]


def test_sweeps_that_only_a_plugin_can_enumerate() -> None:
    assert told("recipe=tiny", "seed=interval(1,2)", "precision=glob(x*)", multirun=True) == [
        "seed: interval(1,2) does not stand for a list of values; list them, as in key=1,2,3 or key=range(1,4)",
        "precision: glob(x*) does not stand for a list of values; list them, as in key=1,2,3 or key=range(1,4)",
    ]


def test_a_listed_value_that_cannot_be_read_is_told() -> None:
    assert told("recipe=tiny", 'data=choice("☺")', multirun=True) == [
        "data: '☺' cannot be read as a value; quote text that has special characters, and the whole for the "
        "shell: 'key=\"a, b\"'"
    ]


def test_a_sweeper_that_is_not_there() -> None:
    assert told("recipe=tiny", "seed=1,2", "hydra/sweeper=nope", multirun=True) == [
        "hydra/sweeper: 'nope' is not an option; allowed: basic"
    ]


def test_what_hydra_refuses_in_a_recipe_does_not_hide_the_rest(project: Project) -> None:
    folder = project("recipes/mine.yaml", "defaults: [tiny]\nhydra: {nope: 1}\nseed: x\n")
    first, second = told("recipe=mine", config_dir=folder)
    assert first.startswith("hydra: recipe mine says something to Hydra, which no recipe and no option may; drop it")
    assert second == "seed: 'x' is not an integer"


def test_what_hydra_wants_a_plus_for_gets_one() -> None:
    found = planned("recipe=tiny", "model.kwargs.width=2", "+seed=3", "+precision=w4a4")
    recipe = found.jobs[0].recipe
    assert (recipe.model.kwargs, recipe.seed, recipe.precision.weights) == ({"width": 2}, 3, 4)
    assert [for_hydra(override) for override in found.overrides] == [
        "recipe=tiny",
        "++model.kwargs.width=2",
        "++seed=3",
        "precision=w4a4",
    ]


def test_a_users_step_and_target_pass_the_reading(project: Project) -> None:
    """Whether they may be named is the recipe check's business."""
    folder = project("recipes/mine.yaml", "defaults: [tiny]\nsteps: {own.steps:prune: {amount: 0.1}}\n")
    hydra = hydra_at(folder, find_recipes(folder))
    cfg = hydra.compose_config("config", ["recipe=mine", "target=own.npu:TABLE"], RunMode.RUN)
    assert (cfg.target, cfg.steps["own.steps:prune"].amount) == ("own.npu:TABLE", 0.1)
    chosen = hydra.compose_config("config", ["recipe=tiny", "steps=[fold_batch_norms,own.steps:prune]"], RunMode.RUN)
    assert list(chosen.steps) == ["fold_batch_norms", "own.steps:prune"]
    (line,) = read_overrides(["steps.own.steps:prune.amount=0.2"], hydra.config_loader, False).read
    assert (line.key_or_group, line.value()) == ("steps[own.steps:prune].amount", 0.2)
    assert told("recipe=tiny", "steps.own.steps:prune.amount=0.2")[0] == (
        "steps.own.steps:prune: the recipe does not select this step; "
        "select it: steps=[fold_batch_norms,own.steps:prune]"
    )


def test_trust_is_taken_off_the_command_line() -> None:
    assert take_trust(["trust=[a, b]", "seed=1", "+trust=c"]) == (("a", "b", "c"), ["seed=1"])
    assert take_trust(["trusts=[a]", "model.trust=1"]) == ((), ["trusts=[a]", "model.trust=1"])


def test_a_users_package_needs_trust(project: Project) -> None:
    folder = project("recipes/mine.yaml", "model: {factory: 'json.decoder:loads'}\ndata: {factory: 'json:loads'}\n")
    assert [sentence.split(";")[0] for sentence in told("recipe=mine", config_dir=folder)] == [
        "model.factory: the package 'json' is not trusted",
        "data.factory: the package 'json' is not trusted",
    ]
    assert planned("recipe=mine", "trust=[json]", config_dir=folder).jobs[0].recipe.name == "mine"


def test_a_recipe_cannot_trust_by_itself(project: Project) -> None:
    folder = project(
        "recipes/mine.yaml", "defaults: [tiny]\ntrust: [json]\nmodel: {name: null, factory: 'json:loads'}\n"
    )
    assert [sentence.split(":")[0] for sentence in told("recipe=mine", config_dir=folder)] == ["trust", "model.factory"]


@pytest.mark.parametrize("place", ["recipes", "recipe"])
def test_a_users_recipe_is_found_in_both_places(project: Project, place: str) -> None:
    folder = project("model/foo.yaml", "name: digits_mobilenet\n")
    body = "defaults: [{override /model: foo}, {override /data: digits}]\nseed: 7\n"
    project(f"{place}/mine.yaml", body)
    assert planned("recipe=mine", config_dir=folder).jobs[0].file == folder / place / "mine.yaml"
    assert told("recipe=mine", "seed=x", config_dir=folder) == ["seed: 'x' is not an integer"]


def test_a_users_recipe_hides_ours(project: Project) -> None:
    for place in ("recipes", "recipe"):
        folder = project(f"{place}/tiny.yaml", "# @package _global_\nseed: x\n")
        assert "seed: 'x' is not an integer" in told("recipe=tiny", config_dir=folder)
        (folder / place / "tiny.yaml").unlink()


def test_a_users_option_cannot_hide_ours(project: Project) -> None:
    folder = project("model/digits_mobilenet.yaml", "name: digits_mobilenet_skewed\n")
    (sentence,) = told("recipe=tiny", config_dir=folder)
    assert sentence.startswith(f"{folder}/model/digits_mobilenet.yaml: has the name of one of qatflow's own options")


def test_a_recipe_can_build_on_another(project: Project) -> None:
    folder = project("recipes/mine.yaml", "defaults: [quickstart, {override /precision: w4a9}]\n")
    assert told("recipe=mine", config_dir=folder) == [
        f"precision: 'w4a9' is not an option; did you mean 'w4a8'? allowed: {PRECISIONS}"
    ]


def test_mistakes_in_a_recipes_defaults(project: Project) -> None:
    defaults = ["tiny", "override /percision: w8a8", "override /steps: [foldd]", "override /gate: acuracy"]
    lines = "".join(f"  - {entry}\n" for entry in defaults)
    folder = project("recipes/mine.yaml", f"defaults:\n{lines}seed: x\n")
    sentences = told("recipe=mine", config_dir=folder)
    assert sorted(sentence.split(";")[0] for sentence in sentences) == [
        "defaults of recipe mine: there is no group 'percision'",
        "gate: 'acuracy' is not an option",
        "seed: 'x' is not an integer",
        "steps: unknown step 'foldd'",
    ]


def test_off_in_a_recipes_defaults(project: Project) -> None:
    folder = project("recipes/mine.yaml", "defaults: [tiny, {override /qat: off}]\nseed: x\n")
    sentences = told("recipe=mine", config_dir=folder)
    assert len(sentences) == 2
    assert sentences[0].endswith("quote words such as off, on, yes and no: YAML reads them as true and false")
    assert sentences[1] == "seed: 'x' is not an integer"


@pytest.mark.parametrize("path", ["recipes/mine.yaml", "recipe/mine.yaml"])
def test_an_unreadable_recipe_names_file_and_line(project: Project, path: str) -> None:
    folder = project(path, "# @package _global_\nseed: 1\nname: [a\nqat: {}\n")
    sentences = told("recipe=mine", "precision.weights=1", config_dir=folder)
    assert sentences[0].startswith(f"{folder / path}, line 4: cannot be read: ")
    assert sentences[1:] == ["precision.weights: 1 is too small; allowed: 2 to 16"]
    assert planned("recipe=tiny", config_dir=folder).jobs[0].recipe.name == "tiny"


def test_an_unreadable_option_names_file_and_line(project: Project) -> None:
    folder = project("model/foo.yaml", "name: digits_mobilenet\nname: twice\n")
    sentences = told("recipe=tiny", "model=foo", "seed=x", config_dir=folder)
    assert sentences == [
        f"{folder}/model/foo.yaml, line 2: cannot be read: found duplicate key name",
        "seed: 'x' is not an integer",
    ]


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "steps: [fold_batch_norms]\n", "precision: [w8a8]\n", "just text\n", ""]
)
def test_recipes_of_the_wrong_shape(project: Project, text: str) -> None:
    folder = project("recipes/mine.yaml", text)
    assert told("recipe=mine", config_dir=folder)


def test_a_list_of_steps_in_the_body_says_where_it_belongs(project: Project) -> None:
    folder = project("recipes/mine.yaml", "defaults: [tiny]\nsteps: [equalize]\nqat: [never]\n")
    assert told("recipe=mine", config_dir=folder) == [
        "steps: is a mapping from each step's name to its options; "
        "write `override /steps: [equalize]` under `defaults`, or one key per step",
        "qat: ['never'] is not a section; write its keys below it",
    ]


def test_options_of_a_step_that_the_recipe_does_not_select(project: Project) -> None:
    folder = project("recipes/mine.yaml", "defaults: [tiny]\nsteps: {adaround: {iterations: 5}}\n")
    assert told("recipe=mine", config_dir=folder) == [
        "steps.adaround: the recipe sets its options without selecting it; "
        "add it to `override /steps: [...]` or drop them; selected: fold_batch_norms"
    ]


def test_steps_can_be_spelled_out_in_the_body(project: Project, tmp_path: Path) -> None:
    body = (
        "model: {name: digits_mobilenet}\ndata: {name: digits}\nsteps: {fold_batch_norms: {}, adaround: {samples: 4}}\n"
    )
    folder = project("recipes/mine.yaml", body)
    assert steps_of(planned("recipe=mine", config_dir=folder)) == [["fold_batch_norms", "adaround"]]
    assert steps_of(planned(f"recipe={tmp_path}/recipes/mine.yaml")) == [["fold_batch_norms", "adaround"]]
