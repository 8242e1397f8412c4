"""AIMET's encodings file: the same form as one that AIMET wrote, the same numbers where they must agree."""

import json

import pytest
import torch

from qatflow.export.encodings import aimet_encodings
from qatflow.graph.capture import capture
from qatflow.quant.grid import Encoding, Grid
from qatflow.quant.network import Network
from qatflow.quant.placement import LeftInFloat, Placement, Point
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Calibration, Precision
from tests.export.golden_model import GoldenModel, golden_encodings

MINMAX = Calibration(activations="minmax", weights="minmax")


def exported(precision: Precision | None = None) -> tuple[dict, Simulation]:
    precision = precision or Precision()
    x = torch.randn(4, 3, 4, 4)
    simulation = Simulation(Network(capture(GoldenModel().eval(), (x[:2],))), TARGETS["qnn"], precision)
    simulation.calibrate([((x,), {})], MINMAX)
    return aimet_encodings(simulation.placement, simulation.encodings(), precision, MINMAX), simulation


def form_of(value: object) -> object:
    """The keys and types of a value; numbers keep only whether they are whole."""
    if isinstance(value, dict):
        return {key: form_of(one) for key, one in value.items()}
    if isinstance(value, list):
        return [form_of(value[0])] if value else []
    return type(value).__name__


@pytest.fixture(scope="module")
def ours() -> dict:
    return json.loads(json.dumps(exported()[0]))


def test_it_has_the_form_of_aimets_file(ours: dict) -> None:
    golden = golden_encodings()
    assert form_of(ours) == form_of(golden)
    assert list(ours) == list(golden)
    for section in ("activation_encodings", "param_encodings"):
        assert len(ours[section]) == len(golden[section])
        wanted = {json.dumps(form_of(entry)) for entry in golden[section]}
        assert {json.dumps(form_of(entry)) for entry in ours[section]} == wanted


def test_parameters_are_aimets_to_float_rounding(ours: dict) -> None:
    for got, wanted in zip(ours["param_encodings"], golden_encodings()["param_encodings"], strict=True):
        assert got["scale"] == pytest.approx(wanted["scale"], rel=1e-6)
        assert {**got, "scale": None} == {**wanted, "scale": None}


def test_what_does_not_depend_on_the_data_is_aimets(ours: dict) -> None:
    golden = golden_encodings()
    for key in ("version", "excluded_layers", "quantizer_args"):
        assert ours[key] == golden[key]
    same = ("dtype", "bw", "is_sym", "enc_type")
    got, wanted = (
        sorted(tuple(entry[key] for key in same) for entry in one["activation_encodings"]) for one in (ours, golden)
    )
    assert got == wanted


def test_a_tensor_that_only_moves_values_repeats_the_entry(ours: dict) -> None:
    entries = {entry["name"]: entry for entry in ours["activation_encodings"]}
    assert list(entries) == ["x", "relu", "linear", "flatten"]
    assert {**entries["flatten"], "name": "relu"} == entries["relu"]
    golden = {entry["name"]: entry for entry in golden_encodings()["activation_encodings"]}
    moved, source = golden["/flat/Flatten_output_0"], golden["/relu/Relu_output_0"]
    assert {**moved, "name": source["name"]} == source


def test_numbers_are_those_of_the_simulation() -> None:
    content, simulation = exported(Precision(weights=4, activations=16, per_channel=False))
    encodings = simulation.encodings()
    by_name = {entry["name"]: entry for entry in content["activation_encodings"] + content["param_encodings"]}
    for point in simulation.placement.points:
        entry, encoding = by_name[point.parameter or point.tensor], encodings[point.tensor]
        assert entry["scale"] == [float(encoding.scale)]
        assert entry["bw"] == (4 if point.parameter else 16)
        assert entry["offset"] == [-8 if point.parameter else -int(encoding.zero_point)]
        assert entry["enc_type"] == "PER_TENSOR"
        low = (0 + entry["offset"][0]) * entry["scale"][0]
        assert low == pytest.approx(float(encoding.low))
    arguments = content["quantizer_args"]
    assert (arguments["param_bitwidth"], arguments["activation_bitwidth"]) == (4, 16)
    assert arguments["per_channel_quantization"] is False


@pytest.mark.parametrize(
    ("grid", "zero_point", "offset"),
    [
        (Grid(8, True, True), 0, -128),
        (Grid(4, True, True), 0, -8),
        (Grid(16, True, True), 0, -32768),
        (Grid(8, False, False), 10, -10),
        (Grid(8, True, False), -118, -10),
        (Grid(8, False, False), 0, 0),
    ],
)
def test_offsets_are_on_the_unsigned_grid_with_aimets_sign(grid: Grid, zero_point: int, offset: int) -> None:
    encoding = Encoding(grid, torch.tensor(0.02), torch.tensor(float(zero_point)))
    placement = Placement(points=[Point("x", "x", grid)], tied={"y": "x"})
    content = aimet_encodings(placement, {"x": encoding}, Precision(), Calibration())
    assert [entry["offset"] for entry in content["activation_encodings"]] == [[offset], [offset]]


def test_layers_with_a_tensor_in_float_are_excluded_once_and_in_order() -> None:
    floats = [LeftInFloat(name, layer, "op", "why") for name, layer in (("a", "norm"), ("b", "act"), ("c", "norm"))]
    content = aimet_encodings(Placement(floats=floats), {}, Precision(), Calibration(activations="sqnr"))
    assert content["excluded_layers"] == ["act", "norm"]
    assert content["quantizer_args"]["quant_scheme"] == "post_training_tf_enhanced"
