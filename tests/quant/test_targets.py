"""The tables of targets: they say what they mean, and mean what runtimes do."""

from dataclasses import replace

import pytest

from qatflow.quant.target import Parameter, Target
from qatflow.quant.targets import TARGETS
from qatflow.recipe.targets import TARGETS as ENTRIES
from qatflow.testing import check_target


def target(**rules: object) -> Target:
    basis = {
        "name": "tested",
        "activations_signed": False,
        "activations_symmetric": False,
        "parameters": {"conv": Parameter(operand=1, axis=0)},
        "bias": "float",
        "at": "producer",
        "inputs": frozenset({"conv"}),
        "attention": "closed",
    }
    return Target(**{**basis, **rules})


def test_names_are_those_of_recipes_with_a_line_about_each() -> None:
    assert list(TARGETS) == list(ENTRIES)
    assert all(name == one.name for name, one in TARGETS.items())
    assert all(one.about and "\n" not in one.about for one in ENTRIES.values())


@pytest.mark.parametrize("name", ENTRIES)
def test_a_recipe_is_checked_against_what_the_table_says(name: str) -> None:
    assert replace(ENTRIES[name], about="") == TARGETS[name].entry


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.filterwarnings("ignore") if "pte" in one.road.files else ())
        for name, one in TARGETS.items()
    ],
)  # ExecuTorch warns
def test_a_table_holds_to_the_contract(name: str) -> None:
    check_target(TARGETS[name])


def test_a_chain_is_written_out() -> None:
    assert target(chains=("conv batch_norm? relu|clip",)).expanded_chains == {
        ("conv", "relu"),
        ("conv", "clip"),
        ("conv", "batch_norm", "relu"),
        ("conv", "batch_norm", "clip"),
    }


@pytest.mark.parametrize(
    "rules",
    [
        {"inputs": frozenset({"conv", "convolution"})},
        {"chains": ("conv batchnorm? relu",)},
        {"fixed_ranges": {"soft_max": (0.0, 1.0)}},
        {"preserving": frozenset({"reshap"})},
    ],
)
def test_a_kind_that_does_not_exist_is_refused(rules: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="target tested names kinds that do not exist"):
        target(**rules)


@pytest.mark.parametrize("other", ["preserving", "sharing", "tied"])
def test_a_kind_that_is_never_tied_has_a_grid_of_its_own(other: str) -> None:
    with pytest.raises(ValueError, match="two of preserving, sharing, tied and never_tied"):
        target(never_tied=frozenset({"clip"}), **{other: frozenset({"clip"})})


def test_grids() -> None:
    onnxruntime, tensorrt, qnn = (TARGETS[name] for name in ("onnxruntime", "tensorrt", "qnn"))
    assert (onnxruntime.activation_grid(8).qmin, onnxruntime.activation_grid(8).qmax) == (0, 255)
    assert (onnxruntime.activation_grid(8, symmetric=True).qmin, onnxruntime.activation_grid(8, True).qmax) == (
        -128,
        127,
    )
    assert (tensorrt.activation_grid(8).qmin, tensorrt.activation_grid(8).symmetric) == (-128, True)
    assert (tensorrt.weight_grid(8).qmin, qnn.weight_grid(8).qmin) == (-127, -128)
    assert tensorrt.weight_grid(8, symmetric=False).qmin == -128
    assert TARGETS["xnnpack"].activation_grid(8).smallest_scale == 2**-12


def test_fixed_ranges_have_the_steps_of_the_runtime() -> None:
    assert TARGETS["onnxruntime"].fixed_range("softmax", 8) == (0.0, 255 / 256)
    assert TARGETS["qnn"].fixed_range("tanh", 8) == (-1.0, 1.0)
    assert TARGETS["tensorrt"].fixed_range("softmax", 8) is None
