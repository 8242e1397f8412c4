"""Steps and targets from outside: what is told, and when, and that nothing of another version is taken for theirs."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import qatflow
from qatflow.door.inspection import inspect_recipe
from qatflow.errors import RecipeError, RunFolderError, StepError, UserCodeError
from qatflow.ladder.lookup import complete, step_of, target_of
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Recipe
from qatflow.recipe.check import check, recipe_from
from qatflow.recipe.steps import STEP_CONFIGS, UntypedStep
from qatflow.recipe.targets import Road
from qatflow.results.result import RunResult
from qatflow.worker import work
from tests import outside
from tests.users_task import DATA, MODEL

TRUST = ("tests",)
SHRINK = "tests.outside:shrink"
SETTINGS = {
    "model": {"factory": MODEL},
    "data": {"factory": DATA, "batch_size": 8},
    "gate": {"max_drop": 0.5},
    "qat": {"when": "never"},
    "export": {"verify": False, "onnx": False},
}


def recipe(**changes: object) -> Recipe:
    return recipe_from({**SETTINGS, **changes}, TRUST)


def told(**changes: object) -> list[str]:
    """Return what a run says of a recipe before it does anything."""
    with pytest.raises(RecipeError) as error:
        complete(recipe(**changes), TRUST)
    return [str(mistake) for mistake in error.value.mistakes]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target": "os:TABLE"}, "target: the package 'os' is not trusted; if you trust it, add trust=[os] on the "
         "command line"),
        ({"target": "tests.npu:"}, "target: 'tests.npu:' names no TABLE; write it as package.module:TABLE"),
        ({"target": "nowhere.npu:TABLE"}, "target: the package 'nowhere' is not installed; install it, or run qatflow "
         "in the folder that holds it"),
        ({"steps": {"os:prune": {}}}, "steps.os:prune: the package 'os' is not trusted; if you trust it, add "
         "trust=[os] on the command line"),
        ({"steps": {"torchvison.x:prune": {}}}, "steps.torchvison.x:prune: the package 'torchvison' is not trusted; "
         "if you trust it, add trust=[torchvison] on the command line"),
        ({"steps": {"tests:a:b": {}}}, "steps.tests:a:b: 'tests:a:b' names no function; "
         "write it as package.module:function"),
        ({"steps": {SHRINK: 3}}, f"steps.{SHRINK}: 3 is not a section; write its keys below it"),
    ],
)  # fmt: skip
def test_what_shows_without_importing_is_told_by_the_check(changes: dict[str, object], sentence: str) -> None:
    found, mistakes = check({**SETTINGS, **changes}, (*TRUST, "nowhere"))
    assert found is None
    assert sentence in [str(mistake) for mistake in mistakes]


def test_the_check_imports_nothing_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "explosive.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    found = recipe_from(
        {**SETTINGS, "target": "explosive:T", "steps": {"explosive:f": {"a": 1}}}, (*TRUST, "explosive")
    )
    assert (found.target, found.steps) == ("explosive:T", {"explosive:f": UntypedStep(a=1)})
    with pytest.raises(RecipeError) as error:
        complete(found, TRUST)
    assert [mistake.path for mistake in error.value.mistakes] == ["steps.explosive:f", "target"]


def test_options_are_typed_when_a_run_starts() -> None:
    steps = complete(recipe(steps={"fold_batch_norms": {}, SHRINK: {"by": 0.5}}), TRUST).steps
    assert list(steps) == ["fold_batch_norms", SHRINK]
    assert steps[SHRINK] == outside.Shrink(by=0.5, samples=16)
    typed = Recipe.model_validate({**SETTINGS, "steps": {SHRINK: outside.Shrink(by=0.25)}})
    assert complete(typed, TRUST).steps[SHRINK] == outside.Shrink(by=0.25)
    assert complete(recipe(steps={"tests.outside:without_options": None}), TRUST).steps


def test_all_mistakes_of_options_are_told_at_once() -> None:
    steps = {
        SHRINK: {"by": 2, "sampels": 3},
        "tests.outside:without_options": {"by": 1},
        "tests.outside:with_a_typo": {},
        "tests.outside:with_a_dict": {},
        "tests.outside:of_unknown_options": {},
        "tests.outside:of_two": {},
        "tests.outside:shrnk": {},
        "tests.outside:TABLE": {},
    }
    shape = "write it as `def step(network, config: Config, context)`"
    assert told(steps=steps, target="tests.outside:SYMETRIC") == [
        f"steps.{SHRINK}.by: 2 is too large; allowed: more than 0, less than 1",
        f"steps.{SHRINK}.sampels: unknown key; did you mean 'samples'? allowed: by, samples",
        "steps.tests.outside:without_options.by: unknown key; nothing is allowed here",
        "steps.tests.outside:with_a_typo: not_after of its options names 'adaruond', which is no step; did you mean "
        f"'adaround'? allowed: {', '.join(STEP_CONFIGS)}",
        "steps.tests.outside:with_a_dict: the options of 'tests.outside:with_a_dict' are dict, and not a "
        "StepConfig; let their class inherit from qatflow.recipe.steps.StepConfig",
        "steps.tests.outside:of_unknown_options: the annotation of its second parameter cannot be read: name 'Nowhere' "
        "is not defined; import it outside of `if TYPE_CHECKING`",
        f"steps.tests.outside:of_two: 'tests.outside:of_two' does not take a network, its options and a context; "
        f"{shape}",
        "steps.tests.outside:shrnk: the module 'tests.outside' has no 'shrnk'; did you mean 'shrink'?",
        "steps.tests.outside:TABLE: 'tests.outside:TABLE' is a Target and cannot be called; name a function or a class",
        "target: the module 'tests.outside' has no 'SYMETRIC'; did you mean 'SYMMETRIC'?",
    ]


def test_a_target_is_a_table_and_has_what_the_recipe_asks_of_it() -> None:
    assert told(target="tests.outside:shrink") == [
        "target: 'tests.outside:shrink' is a function, and a target is a qatflow.quant.target.Target; "
        "name the table itself, as in my_package.npu:TABLE"
    ]
    asked = {"precision": {"activations_symmetric": False}, "export": {"pte": True}}
    assert told(target="tests.outside:SYMMETRIC", **asked) == [
        "precision.activations_symmetric: false, but target tests.outside:SYMMETRIC has symmetric activations only; "
        "remove it",
        "export.pte: an ExecuTorch program is for target xnnpack, not 'tests.outside:SYMMETRIC'; "
        "write target: xnnpack, or export.pte: false",
    ]
    assert complete(recipe(target="tests.outside:TABLE"), TRUST).target == "tests.outside:TABLE"


def test_order_rules_count_for_steps_from_outside() -> None:
    order = f"write steps: [fold_batch_norms, {SHRINK}, correct_bias, adaround]"
    assert told(steps={"fold_batch_norms": {}, "correct_bias": {}, SHRINK: {}, "adaround": {}}) == [
        f"steps.{SHRINK}: stands after correct_bias, and must come before; {order}"
    ]
    assert told(steps={SHRINK: {}, "correct_bias": {}, "adaround": {}, "fold_batch_norms": {}}) == [
        "steps.fold_batch_norms: stands after correct_bias and adaround, and must come before; "
        f"write steps: [{SHRINK}, fold_batch_norms, correct_bias, adaround]"
    ]


def test_names_become_code_in_one_place() -> None:
    assert step_of("adaround").function.__name__ == "adaround"
    assert step_of(SHRINK, TRUST).function is outside.shrink
    assert target_of("qnn") is TARGETS["qnn"]
    assert target_of("tests.outside:TABLE", TRUST) is outside.TABLE
    for call, sentence in (
        (lambda: step_of("adaruond"), r"steps.adaruond: unknown step; did you mean 'adaround'\?"),
        (lambda: target_of("qn"), r"target: 'qn' is not an option; did you mean 'qnn'\?"),
        (lambda: step_of(SHRINK), "the package 'tests' is not trusted"),
        (lambda: target_of("tests.outside:TABLE"), "the package 'tests' is not trusted"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            call()
    with pytest.raises(KeyError, match=r"no target is called 'qn'; did you mean 'qnn'\?"):
        TARGETS["qn"]
    with pytest.raises(ValueError, match="no target is called 'qn'"):
        Recipe.model_validate({**SETTINGS, "target": "qn"})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    """A finished run with a step and a target from outside."""
    folder = tmp_path_factory.mktemp("done")
    steps = {"fold_batch_norms": {}, SHRINK: {"by": 0.02}, "correct_bias": {"samples": 16}}
    made = recipe(target="tests.outside:TABLE", steps=steps, ladder={"stop": "end"})
    return qatflow.run(made, folder, trust=TRUST), folder


def test_a_run_has_them(done: tuple[RunResult, Path]) -> None:
    result, folder = done
    assert [one.id for one in result.candidates][:5] == ["fp32", "naive", "fold_batch_norms", SHRINK, "correct_bias"]
    assert next(one for one in result.candidates if one.id == SHRINK).notes == {"layers": 2}
    written = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert (written["target"], written["steps"][SHRINK]) == ("tests.outside:TABLE", {"by": 0.02, "samples": 16})


def resumed(folder: Path) -> dict[str, bool]:
    """Go on with a run from its own recipe; returns which rungs were taken from the folder."""
    again = recipe_from(yaml.safe_load((folder / "recipe.yaml").read_text()), TRUST)
    result = qatflow.run(again, folder, trust=TRUST)
    return {one.id: one.resumed for one in result.candidates if one.stage == "ptq"}


def test_a_run_goes_on_from_its_folder(done: tuple[RunResult, Path]) -> None:
    assert set(resumed(done[1]).values()) == {True}


def test_another_version_of_a_step_or_table_is_not_taken_for_the_same(
    done: tuple[RunResult, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = done[1]
    with monkeypatch.context() as changed:
        changed.setattr("qatflow.ladder.lookup.code_fingerprint", lambda function: f"other {function.__name__}")
        fresh = resumed(folder)
    assert fresh == {"naive": True, "fold_batch_norms": False, SHRINK: False, "correct_bias": False}
    assert set(resumed(folder).values()) == {True, False}
    monkeypatch.setattr(outside, "TABLE", replace(outside.TABLE, smallest_range=1e-3))
    assert set(resumed(folder).values()) == {False}


def test_a_run_that_cannot_start_says_so_in_its_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"shrink\.by: 2 is too large"):
        qatflow.run(recipe(steps={SHRINK: {"by": 2}}), tmp_path, trust=TRUST)
    left = RunResult.model_validate_json((tmp_path / "result.json").read_text())
    assert (left.status, left.remaining[0]) == ("failed", "FP32")
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["steps"] == {SHRINK: {"by": 2}}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same steps in a package of the user's that can be changed."""
    folder = tmp_path / "changing"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "steps.py").write_text(Path(outside.__file__).read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "changing"]:
        del sys.modules[name]


def test_the_code_of_a_step_is_in_its_fingerprint(package: Path) -> None:
    before = step_of("changing.steps:shrink", ("changing",)).fingerprint
    assert before == step_of("changing.steps:shrink", ("changing",)).fingerprint
    path = package / "steps.py"
    path.write_text(path.read_text().replace("(1 - config.by)", "(1 - config.by / 2)"))
    _forget()
    assert step_of("changing.steps:shrink", ("changing",)).fingerprint != before


def test_the_content_of_a_table_is_in_its_fingerprint() -> None:
    assert replace(outside.TABLE).fingerprint == outside.TABLE.fingerprint
    assert len({one.fingerprint for one in TARGETS.values()}) == len(TARGETS)
    changed = {"road": Road(unsigned_weights=True), "inputs": outside.TABLE.inputs - {"conv"}, "smallest_range": 1e-3}
    for name, value in changed.items():
        assert replace(outside.TABLE, **{name: value}).fingerprint != outside.TABLE.fingerprint, name


def test_inspect_has_them() -> None:
    found = inspect_recipe(recipe(target="tests.outside:TABLE", steps={"fold_batch_norms": {}, SHRINK: {}}), TRUST)
    assert (found.target.name, found.folded) == ("mine", True)
    with pytest.raises(RecipeError, match=r"shrink.by: 2 is too large"):
        inspect_recipe(recipe(steps={SHRINK: {"by": 2}}), TRUST)


def test_a_worker_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = {"max_trials": 1, "epochs": (1, 1), "stop_at_gate": False}
    made = recipe(
        target="tests.outside:TABLE", steps={SHRINK: {}}, qat={"when": "always", "loss": "distillation"}, search=search
    )
    qatflow.run(made, tmp_path, trust=TRUST)
    path = tmp_path / "recipe.yaml"
    path.write_text(path.read_text().replace("max_trials: 1", "max_trials: 2"))
    assert work(str(tmp_path), TRUST) == 0
    monkeypatch.setattr(outside, "TABLE", replace(outside.TABLE, smallest_range=1e-3))
    with pytest.raises(RunFolderError, match="are not those of the run"):
        work(str(tmp_path), TRUST)


@pytest.mark.parametrize(
    ("step", "error", "sentence"),
    [
        ("without_notes", StepError, r"^tests.outside:without_notes returns Network, and a step returns a Network and"),
        ("with_nested_notes", StepError, r"with_nested_notes: its note 'layers' is neither a number nor text nor a"),
        ("failing", UserCodeError, r"^/.*tests/outside.py:\d+, in failing: ZeroDivisionError: nothing to shrink "
         r"\(steps: tests.outside:failing"),
    ],
)  # fmt: skip
def test_a_step_that_fails_is_told_in_a_sentence(
    step: str, error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    made = recipe(steps={f"tests.outside:{step}": {}}, ladder={"stop": "end"})
    with pytest.raises(error, match=sentence):
        qatflow.run(made, tmp_path, trust=TRUST)
    assert RunResult.model_validate_json((tmp_path / "result.json").read_text()).status == "failed"


def test_a_step_without_options_that_finds_nothing_is_left_out(tmp_path: Path) -> None:
    name = "tests.outside:without_options"
    result = qatflow.run(recipe(steps={name: {}}, ladder={"stop": "end"}), tmp_path, trust=TRUST)
    (rung,) = [one for one in result.candidates if one.id == name]
    assert (rung.kept, rung.reason) == (False, "left out: it finds nothing to do")
