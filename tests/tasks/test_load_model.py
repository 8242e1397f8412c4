"""Models by name and by factory, and weights that fit, or do not."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qatflow.errors import RecipeError
from qatflow.recipe import Model
from qatflow.recipe.names import MODELS as NAMES
from qatflow.tasks.models import MODELS, load_model

TRUST = ("test_load_model",)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def small(width=3):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU())


def tied():
    return Tied()


def lazy():
    return nn.LazyLinear(3)


def sick():
    model = small()
    model[1].running_var[1] = float("nan")
    return model


def no_module():
    return {"model": small()}


def of(function="small", weights=None, **kwargs):
    path = None if weights is None else str(weights)
    return Model(factory=f"test_load_model:{function}", kwargs=kwargs, weights=path)


@pytest.fixture
def trained():
    """Return a state dict unlike that of a new model."""
    return {name: torch.full_like(value, 2) for name, value in small().state_dict().items()}


def assert_loaded(model, weights):
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_names_and_code_agree():
    assert list(MODELS) == list(NAMES)


def test_a_model_is_in_evaluation_mode():
    assert not load_model(Model(name="digits_mobilenet")).training
    assert not load_model(of(), TRUST).training


def test_weights_of_both_formats(tmp_path, trained):
    save_file(trained, tmp_path / "a.safetensors")
    assert_loaded(load_model(of(weights=tmp_path / "a.safetensors"), TRUST), trained)
    torch.save(trained, tmp_path / "a.pt")
    assert_loaded(load_model(of(weights=tmp_path / "a.pt"), TRUST), trained)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_weights_within_a_checkpoint(tmp_path, trained, key):
    torch.save({"epoch": 3, key: trained, "lr": torch.tensor(0.1)}, tmp_path / "a.pth")
    assert_loaded(load_model(of(weights=tmp_path / "a.pth"), TRUST), trained)


def test_a_wrappers_prefix_is_taken_off(tmp_path, trained):
    torch.save({f"module.{name}": value for name, value in trained.items()}, tmp_path / "a.pt")
    assert_loaded(load_model(of(weights=tmp_path / "a.pt"), TRUST), trained)


def test_own_weights_for_a_name_of_ours(tmp_path):
    weights = {name: torch.zeros_like(value) for name, value in MODELS["digits_mobilenet"]().state_dict().items()}
    save_file(weights, tmp_path / "own.safetensors")
    model = load_model(Model(name="digits_mobilenet", weights=str(tmp_path / "own.safetensors")))
    assert not any(parameter.any() for parameter in model.parameters())


def test_files_without_batch_counters_or_tied_tensors_are_whole(tmp_path, trained):
    del trained["1.num_batches_tracked"]
    save_file(trained, tmp_path / "a.safetensors")
    assert torch.equal(load_model(of(weights=tmp_path / "a.safetensors"), TRUST)[0].weight, trained["0.weight"])
    weights = {name: value for name, value in Tied().state_dict().items() if name != "second.weight"}
    save_file(weights, tmp_path / "tied.safetensors")
    model = load_model(of("tied", tmp_path / "tied.safetensors"), TRUST)
    assert torch.equal(model.second.weight, weights["first.weight"])


def test_names_that_do_not_match_are_told_with_near_ones(tmp_path, trained):
    trained["1.wieght"] = trained.pop("1.weight")
    save_file(trained, tmp_path / "a.safetensors")
    message = (
        r"model.weights: .*does not fit Sequential: the file lacks '1.weight' \(did you mean '1.wieght'\?\); "
        r"the file has, and the model has not, '1.wieght'"
    )
    with pytest.raises(RecipeError, match=message):
        load_model(of(weights=tmp_path / "a.safetensors"), TRUST)


def test_shapes_that_differ_are_told(tmp_path, trained):
    save_file(trained, tmp_path / "a.safetensors")
    with pytest.raises(
        RecipeError, match=r"'0.weight' is float32 \[3, 1, 3, 3\] in the file and float32 \[5, 1, 3, 3\].* and 3 more"
    ):
        load_model(of(weights=tmp_path / "a.safetensors", width=5), TRUST)


def test_integers_are_no_weights(tmp_path, trained):
    save_file({**trained, "0.weight": trained["0.weight"].to(torch.int8)}, tmp_path / "a.safetensors")
    with pytest.raises(RecipeError, match=r"'0.weight' is int8"):
        load_model(of(weights=tmp_path / "a.safetensors"), TRUST)


def test_files_that_are_no_weights_are_told(tmp_path):
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    (tmp_path / "none.pt").write_bytes(b"")
    torch.save(small(), tmp_path / "whole.pt")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "facts.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in {
        "junk.safetensors": "cannot be read as a file of tensors",
        "junk.pt": "cannot be read as a file of tensors",
        "none.pt": "cannot be read as a file of tensors",
        "whole.pt": r"cannot be read.*torch.save\(model.state_dict\(\), path\)",
        "facts.pt": "holds the keys epoch, lr and no state dict",
        "list.pt": "holds a list and no state dict",
        "nowhere.pt": "there is no file",
    }.items():
        with pytest.raises(RecipeError, match=message):
            load_model(of(weights=tmp_path / name), TRUST)


def test_values_that_are_not_finite_or_not_there_are_told(tmp_path, trained):
    trained["0.bias"][:2] = float("inf")
    save_file(trained, tmp_path / "a.safetensors")
    with pytest.raises(RecipeError, match=r"'0.bias' has 2 of 3 values that are not finite"):
        load_model(of(weights=tmp_path / "a.safetensors"), TRUST)
    with pytest.raises(RecipeError, match=r"'1.running_var' has 1 of 3 values"):
        load_model(of("sick"), TRUST)
    with pytest.raises(RecipeError, match="'weight' has no values yet"):
        load_model(of("lazy"), TRUST)


def test_a_factory_that_returns_no_module_is_told():
    with pytest.raises(RecipeError, match=r"model.factory: .*returned a dict; return a torch.nn.Module"):
        load_model(of("no_module"), TRUST)
