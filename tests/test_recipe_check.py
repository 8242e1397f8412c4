"""The recipe check: every mistake at once, in full sentences, without torch."""

import copy
from pathlib import Path
from typing import Any

import pytest

from qatflow.errors import RecipeError
from qatflow.recipe import Recipe
from qatflow.recipe.check import check, recipe_from
from qatflow.recipe.names import FIDELITY_METRICS, METRICS
from qatflow.recipe.steps import STEP_CONFIGS

GOOD: dict[str, Any] = {"model": {"name": "digits_mobilenet"}, "data": {"name": "digits"}}
STEPS = ", ".join(STEP_CONFIGS)
MODELS = "digits_mobilenet, digits_mobilenet_skewed, digits_mobilenet_thin"
OPEN = "torchvision.models:NAME, timm:create_model, timm.models:NAME, transformers:NAME.from_pretrained"
CWD = Path.cwd()

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"bogus": 1}, f"bogus: unknown key; allowed: {', '.join(Recipe.model_fields)}"),
    ({"sede": 1}, f"sede: unknown key; did you mean 'seed'? allowed: {', '.join(Recipe.model_fields)}"),
    ({"seed": "x"}, "seed: 'x' is not an integer"),
    ({"name": "../up"}, "name: '../up' is not a name: letters, digits, spaces and ._- only, with / between folders"),
    ({"device": "gpu"}, "device: 'gpu' is not an option; did you mean 'cpu'? allowed: auto, cpu, cuda"),
    (
        {"target": "onnxruntim"},
        "target: 'onnxruntim' is not an option; did you mean 'onnxruntime'? "
        "allowed: onnxruntime, tensorrt, qnn, xnnpack, openvino",
    ),
    ({"model": {"final_lr": 0}}, "model.final_lr: 0 is too small; allowed: more than 0"),
    ({"model": {"name": "digits"}}, f"model.name: unknown name 'digits'; allowed: {MODELS}"),
    (
        {"model": {"name": "digits_mobilenets"}},
        f"model.name: unknown name 'digits_mobilenets'; did you mean 'digits_mobilenet'? allowed: {MODELS}",
    ),
    (
        {"model": {"name": None}},
        f"model: is missing; choose one of {MODELS} (model=NAME), or give `factory: package.module:function`",
    ),
    (
        {"model": {"factory": "torchvision.models:resnet18"}},
        "model: has both a name ('digits_mobilenet') and a factory ('torchvision.models:resnet18'); "
        "keep one, for instance with model.name=null",
    ),
    (
        {"model": {"weights": "nope.pt"}},
        f"model.weights: there is no file 'nope.pt'; relative paths start at {CWD}",
    ),
    ({"data": {"batch_size": 0}}, "data.batch_size: 0 is too small; allowed: at least 1"),
    ({"data": {"labels": None}}, "data.labels: null is not true or false"),
    (
        {"data": {"free": {"x": {0: "many"}}}},
        "data.free.x: {0: 'many'} cannot stand here; "
        "write places and names, as in {2: height, 3: width}; 0 is the batch, always free",
    ),
    (
        {"data": {"free": {"x": {2: "batch"}}}},
        "data.free.x[2]: 'batch' cannot stand here; name it by a word of letters, digits and _, other than batch",
    ),
    (
        {"data": {"free": {"x": {2: "length"}}}, "target": "xnnpack", "export": {"pte": True}},
        "export.pte: an ExecuTorch program takes one size of all but the batch, and data.free leaves more free; "
        "remove one of both: without data.free its sizes are those of calibration",
    ),
    ({"precision": {"weights": 1}}, "precision.weights: 1 is too small; allowed: 2 to 16"),
    ({"precision": {"activations": 17}}, "precision.activations: 17 is too large; allowed: 2 to 16"),
    ({"precision": {"weights": 4.5}}, "precision.weights: 4.5 is not an integer"),
    (
        {"precision": "wide"},
        "precision: 'wide' cannot stand here; "
        "write bits such as w8a8 or w4a8_per_tensor, or the section's keys below it",
    ),
    (
        {"precision": {"activations": 16}, "export": {"opset": 18}},
        "export.opset: 18 has no Q/DQ of 16 bits; remove it, or write 21",
    ),
    (
        {"export": {"opset": 20, "packed_int4": True}},
        "export.opset: 20 has no INT4, which export.packed_int4 asks for; remove it, or write 21",
    ),
    ({"export": {"opset": 22}}, "export.opset: 22 is too large; allowed: 13 to 21"),
    (
        {"target": "qnn", "export": {"pte": True}},
        "export.pte: an ExecuTorch program is for target xnnpack, not 'qnn'; "
        "write target: xnnpack, or export.pte: false",
    ),
    *(
        (
            {"calibration": {key: "auto"}},
            f"calibration.{key}: 'auto' cannot stand here; "
            "drop it and add the step `calibrate`, which tries all ways to find ranges",
        )
        for key in ("activations", "weights")
    ),
    ({"calibration": [1]}, "calibration: [1] is not a section; write its keys below it"),
    (
        {"calibration": {"percentile": 50}},
        "calibration.percentile: 50 is too small; allowed: more than 50, at most 100",
    ),
    ({"steps": {"adaroundd": {}}}, f"steps.adaroundd: unknown step; did you mean 'adaround'? allowed: {STEPS}"),
    ({"steps": {"adaround": {"iterations": "many"}}}, "steps.adaround.iterations: 'many' is not an integer"),
    (
        {"steps": {"equalize": {"relu": "skip"}}},
        "steps.equalize.relu: unknown key; did you mean 'relu6'? "
        "allowed: choose, iterations, relu6, idle_share, absorb_bias",
    ),
    ({"steps": {"adaround": {"beta": [1]}}}, "steps.adaround.beta: [1] has too few values; write [low, high]"),
    (
        {"steps": ["equalize", "adaround"]},
        "steps: is a mapping from each step's name to its options; "
        "write `override /steps: [equalize, adaround]` under `defaults`, or one key per step",
    ),
    (
        {"steps": {"adaround": {}, "equalize": {}}},
        "steps.equalize: stands after adaround, and must come before; write steps: [equalize, adaround]",
    ),
    (
        {"gate": {"metric": "acuracy"}},
        "gate.metric: unknown metric 'acuracy'; did you mean 'accuracy'? "
        f"allowed: {', '.join(METRICS)}, or package.module:function",
    ),
    (
        {"precision": {"first_layer": "w99"}},
        "precision.first_layer: 'w99' is too large; allowed: 2 to 16",
    ),
    (
        {"precision": {"overrides": {"stem.*": "floaty"}}},
        "precision.overrides.stem.*: 'floaty' cannot stand here; "
        "write float, or bits such as w8a16, w4, a16 or w8a8_per_tensor",
    ),
    (
        {"precision": {"overrides": {"stem": {"weight": 4}}}},
        "precision.overrides.stem.weight: unknown key; did you mean 'weights'? "
        "allowed: quantized, weights, activations, per_channel",
    ),
    (
        {"target": "tensorrt", "precision": {"activations_symmetric": False}},
        "precision.activations_symmetric: false, but target tensorrt has symmetric activations only; remove it",
    ),
    (
        {"gate": {"metric": "mean_squared_error", "metric_kwargs": {"k": 3}}},
        "gate.metric_kwargs: 'mean_squared_error' is a metric of ours and takes no arguments; remove them, or name a "
        "factory as gate.metric",
    ),
    (
        {"gate": {"metric_kwargs": {"treshold": 3}}},
        "gate.metric_kwargs.treshold: 'accuracy' has no such argument; did you mean 'threshold'? allowed: threshold, "
        "class_axis",
    ),
    (
        {"gate": {"metric_kwargs": {"threshold": "half"}}},
        "gate.metric_kwargs.threshold: 'half' is not a number; write 0 for a logit, 0.5 for a probability",
    ),
    (
        {"gate": {"metric_kwargs": {"class_axis": 0}}},
        "gate.metric_kwargs.class_axis: 0 is no axis of classes; write 1, 2 or -1; 0 is the batch",
    ),
    (
        {"gate": {"metric": "top5_accuracy", "metric_kwargs": {"threshold": 0.5}}},
        "gate.metric_kwargs.threshold: 'top5_accuracy' has no such argument; allowed: class_axis",
    ),
    ({"data": {"ignore_index": 1.5}}, "data.ignore_index: 1.5 is not an integer"),
    (
        {"data": {"labels": False}},
        f"gate.metric: 'accuracy' needs labels, and data.labels is false; "
        f"allowed without labels: {', '.join(FIDELITY_METRICS)}",
    ),
    ({"gate": {"max_drop": "-1%"}}, "gate.max_drop: '-1%' is too small; allowed: at least 0"),
    (
        {"gate": {"max_drop": "little"}},
        "gate.max_drop: 'little' cannot stand here; "
        "write a number in the metric's unit, or a share of FP32 such as '1%'",
    ),
    (
        {"gate": {"min_value": 0.9, "max_value": 2}},
        "gate.max_value: 2 cannot stand here; "
        "keep gate.min_value where higher is better, gate.max_value where lower is",
    ),
    (
        {"gate": {"max_value": 0.9}},
        "gate.max_value: 0.9, but a higher accuracy is better; write gate.min_value",
    ),
    (
        {"gate": {"metric": "mean_squared_error", "min_value": 2}},
        "gate.min_value: 2, but a lower mean_squared_error is better; write gate.max_value",
    ),
    (
        {"gate": {"metric": "torchmetrics:R2Score", "direction": "higher", "max_value": 1}},
        "gate.max_value: 1, but a higher torchmetrics:R2Score is better; write gate.min_value",
    ),
    ({"gate": {"min_value": "much"}}, "gate.min_value: 'much' is not a number"),
    ({"gate": {"confidence": 1}}, "gate.confidence: 1 is too large; allowed: more than 0.5, less than 1"),
    ({"ladder": {"stop": "gat"}}, "ladder.stop: 'gat' is not an option; did you mean 'gate'? allowed: gate, end"),
    (
        {"qat": {"optimiser": "adam"}},
        "qat.optimiser: unknown key; did you mean 'optimizer'? "
        "allowed: when, range_learning, optimizer, optimizer_kwargs, loss, loss_kwargs, distillation, temperature, "
        "features, feature_weight, batch_size, range_lr_scale, schedule, warmup, max_gradient_norm, precision, "
        "batch_norms, oscillations",
    ),
    (
        {"qat": {"optimizer": "adm"}},
        "qat.optimizer: unknown optimizer 'adm'; did you mean 'adam'? allowed: adam, adamw, sgd, or "
        "package.module:function",
    ),
    (
        {"qat": {"loss": "crossentropy"}},
        "qat.loss: unknown loss 'crossentropy'; did you mean 'cross_entropy'? allowed: auto, cross_entropy, "
        "mean_squared_error, distillation, soft_targets, or package.module:function",
    ),
    (
        {"qat": {"loss": "cross_entropy", "loss_kwargs": {"a": 1}}},
        "qat.loss_kwargs: 'cross_entropy' is a loss of ours and takes no arguments; remove them",
    ),
    (
        {"qat": {"loss": "torch.hub:load"}},
        "qat.loss: 'torch.hub:load' is not open to every recipe; if you trust it, add trust=[torch] on the command "
        "line; open to all for a loss: torch.nn:NAME, timm.loss:NAME",
    ),
    (
        {"search": {"max_time": "soon"}},
        "search.max_time: 'soon' cannot stand here; write a time such as 90m, 2h or '1d 12h', or a number of seconds",
    ),
    (
        {"search": {"distillation": [0.5, 0.1]}},
        "search.distillation: [0.5, 0.1] cannot stand here; write [low, high] with low <= high",
    ),
    ({"qat": {"batch_size": 0}}, "qat.batch_size: 0 is too small; allowed: at least 1"),
    (
        {"search": {"lr": [1e-2, 1e-4]}},
        "search.lr: [0.01, 0.0001] cannot stand here; write [low, high] with 0 < low <= high",
    ),
    ({"search": {"epochs": [1, 2, 3]}}, "search.epochs: [1, 2, 3] has too many values; write [low, high]"),
    ({"search": {"epochs": [1, "x"]}}, "search.epochs[1]: 'x' is not an integer"),
    (
        {"search": {"max_trials": "???"}},
        "search.max_trials: is left open (???); give it on the command line as search.max_trials=VALUE",
    ),
    (
        {"export": {"encodings_version": "2"}},
        "export.encodings_version: '2' is not an option; allowed: 0.6.1, 1.0.0, 2.0.0",
    ),
    ({"report": {"html": "perhaps"}}, "report.html: 'perhaps' is not true or false"),
    ({"run": {"dir": 5}}, "run.dir: 5 is not text"),
    (
        {"trust": ["os"]},
        "trust: a recipe cannot vouch for packages itself; put trust=[my_package] on the command line instead",
    ),
    (
        {"model": {"_target_": "os.system"}},
        "model._target_: a recipe is data, and a `_target_` would let it call any code; "
        "name a function as `factory: package.module:function`; its package must be a trusted one",
    ),
]


def merged(change: dict[str, Any]) -> dict[str, Any]:
    mapping = copy.deepcopy(GOOD)
    for key, value in change.items():
        mapping[key] = {**mapping.get(key, {}), **value} if isinstance(value, dict) else value
    return mapping


def told(mapping: dict[str, Any], trust: tuple[str, ...] = ()) -> list[str]:
    found, mistakes = check(mapping, trust)
    assert (found is None) == bool(mistakes)
    return [str(mistake) for mistake in mistakes]


def test_a_good_recipe_has_no_mistakes() -> None:
    assert told(GOOD) == []
    assert recipe_from(GOOD) == Recipe.model_validate(GOOD)


@pytest.mark.parametrize(("change", "sentence"), MISTAKES, ids=[sentence.split(":")[0] for _, sentence in MISTAKES])
def test_one_mistake_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    assert told(merged(change)) == [sentence]


def test_every_section_has_a_mistake_above() -> None:
    untested = set(Recipe.model_fields) - {"description"} - {key for change, _ in MISTAKES for key in change}
    assert not untested


def test_all_mistakes_come_at_once_in_the_order_of_the_sections() -> None:
    mapping = merged({"qat": {"optimiser": 1}, "precision": {"weights": 1}, "steps": {"adaroundd": None}})
    with pytest.raises(RecipeError) as error:
        recipe_from(mapping)
    assert [mistake.path for mistake in error.value.mistakes] == [
        "precision.weights",
        "steps.adaroundd",
        "qat.optimiser",
    ]
    assert str(error.value).startswith("the recipe has 3 mistakes:\n  - precision.weights: 1 is too small")


def test_a_mistake_in_a_step_does_not_hide_its_place_in_the_order() -> None:
    sentences = told(merged({"steps": {"adaround": {"iterations": 0}, "fold_batch_norms": None}}))
    assert [sentence.split(":")[0] for sentence in sentences] == ["steps.adaround.iterations", "steps.fold_batch_norms"]


def test_the_order_of_the_table_keeps_all_order_rules() -> None:
    assert told(merged({"steps": dict.fromkeys(STEP_CONFIGS)})) == []


def test_what_is_open_to_all_needs_no_trust() -> None:
    assert told({**GOOD, "model": {"factory": "torchvision.models:resnet18"}}) == []
    assert told(merged({"gate": {"metric": "torchmetrics.regression:R2Score"}})) == []


def test_other_packages_need_trust() -> None:
    mapping = {**GOOD, "model": {"factory": "json.decoder:loads"}}
    fix = f"if you trust it, add trust=[json] on the command line; open to all for a model: {OPEN}"
    assert told(mapping) == [f"model.factory: the package 'json' is not trusted; {fix}"]
    assert told(mapping, trust=("json",)) == []


def test_a_package_that_is_not_installed() -> None:
    sentences = told({**GOOD, "gate": {"metric": "no_such_package.x:f"}}, trust=("no_such_package",))
    fix = "install it, or run qatflow in the folder that holds it"
    assert sentences == [f"gate.metric: the package 'no_such_package' is not installed; {fix}"]


def test_a_package_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package.py").touch()
    mapping = {**GOOD, "data": {"factory": "own_package:splits"}}
    assert len(told(mapping, trust=("own_package",))) == 1
    monkeypatch.chdir(tmp_path)
    assert told(mapping, trust=("own_package",)) == []


def test_a_named_package_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "explosive.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert told({**GOOD, "data": {"factory": "explosive:f"}}, trust=("explosive",)) == []


@pytest.mark.parametrize("factory", ["resnet18", "a:b:c", "a.b:", ":f", "a..b:f", "a b:f", ".a:f"])
def test_a_factory_is_a_module_and_a_function(factory: str) -> None:
    sentences = told({**GOOD, "model": {"factory": factory}})
    assert len(sentences) == 1
    assert sentences[0].endswith("write it as package.module:function")


def test_a_weights_file_that_exists(tmp_path: Path) -> None:
    (tmp_path / "w.pt").touch()
    assert told(merged({"model": {"weights": str(tmp_path / "w.pt")}})) == []


def test_an_empty_recipe_lacks_model_and_data() -> None:
    assert [sentence.split(";")[0] for sentence in told({})] == ["model: is missing", "data: is missing"]


def test_targets_are_found_at_any_depth() -> None:
    sentences = told(merged({"model": {"kwargs": {"layers": [{"_target_": "os.system"}]}}}))
    assert [sentence.split(": ")[0] for sentence in sentences] == ["model.kwargs.layers[0]._target_"]


def test_max_drop_takes_numbers_and_percentages() -> None:
    for text, amount, relative in [("0.02", 0.02, False), ("2%", 0.02, True), (0.02, 0.02, False)]:
        drop = recipe_from(merged({"gate": {"max_drop": text}})).gate.max_drop
        assert (drop.amount, drop.relative) == (amount, relative)


def test_a_gate_may_ask_for_a_value_instead_of_a_drop() -> None:
    gate = recipe_from(merged({"gate": {"metric": "sqnr_db", "min_value": 25}})).gate
    assert (gate.worst_value, gate.drop_limit) == (25, None)
    gate = recipe_from(merged({"gate": {"metric": "torchmetrics:MeanSquaredError", "max_value": 2}})).gate
    assert (gate.worst_value, gate.drop_limit) == (2, None)
    both = recipe_from(merged({"gate": {"min_value": 0.9, "max_drop": "1%"}})).gate
    assert (both.worst_value, str(both.drop_limit)) == (0.9, "1%")
    assert str(recipe_from(merged({"gate": {"metric": "accuracy"}})).gate.drop_limit) == "0.01"
