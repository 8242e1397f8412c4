"""AIMET's encodings file: the same form as one that AIMET wrote, the same numbers where they must agree.

Read back, a file of any version gives a simulation with the same outputs, to the last bit.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qatflow.errors import EncodingsError
from qatflow.export.aimet_encodings import aimet_encodings, encodings_from_file
from qatflow.export.encodings import EncodingsFile, convert, from_json, read
from qatflow.export.integer_biases import integer_biases
from qatflow.graph.capture import capture
from qatflow.quant.design import Design
from qatflow.quant.grid import Encoding, Grid
from qatflow.quant.network import Network
from qatflow.quant.placement import LeftInFloat, Placement, Point
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Calibration, Precision
from tests.export.golden_model import GoldenModel, golden_encodings

MINMAX = Calibration(activations="minmax", weights="minmax")


def exported(precision: Precision | None = None) -> tuple[dict, Simulation]:
    precision = precision or Precision()
    x = torch.randn(4, 3, 4, 4)
    design = Design(TARGETS["qnn"], precision, MINMAX)
    simulation = Simulation(captured_network(GoldenModel().eval(), (x[:2],), design=design))
    simulation.calibrate([((x,), {})])
    return aimet_encodings(simulation.placement, simulation.encodings(), design), simulation


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
    content = aimet_encodings(placement, {"x": encoding}, Design())
    assert [entry["offset"] for entry in content["activation_encodings"]] == [[offset], [offset]]


def test_layers_with_a_tensor_in_float_are_excluded_once_and_in_order() -> None:
    floats = [LeftInFloat(name, layer, "op", "why") for name, layer in (("a", "norm"), ("b", "act"), ("c", "norm"))]
    content = aimet_encodings(Placement(floats=floats), {}, Design(calibration=Calibration(activations="sqnr")))
    assert content["excluded_layers"] == ["act", "norm"]
    assert content["quantizer_args"]["quant_scheme"] == "post_training_tf_enhanced"


def test_quantizer_args_tell_weights_that_are_not_symmetric() -> None:
    content = aimet_encodings(Placement(), {}, Design(precision=Precision(weights_symmetric=False)))
    assert content["quantizer_args"]["is_symmetric"] is False


# Through a file and back.

VERSIONS = ("0.6.1", "1.0.0", "2.0.0")
TARGET_NAMES = ("qnn", "onnxruntime", "tensorrt")


class Residual(nn.Module):
    """A convolution, a depthwise one, a residual sum, a flatten and a linear layer, with `outputs` channels last."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.head = nn.Linear(6 * 16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.depthwise(x)
        return self.head(x.flatten(1))


@cache
def residual(outputs: int) -> Network:
    torch.manual_seed(0)
    return Network(capture(Residual(outputs).eval(), (torch.randn(2, 3, 4, 4),)))


def calibrated(target: str, precision: Precision, outputs: int = 5) -> Simulation:
    simulation = Simulation(residual(outputs).copy().designed(Design(TARGETS[target], precision, MINMAX)))
    simulation.calibrate([((torch.randn(16, 3, 4, 4),), {})])
    return simulation


def file_of(simulation: Simulation, version: str) -> EncodingsFile:
    """A simulation's encodings, through the text of a file."""
    biases = integer_biases(simulation).biases
    content = aimet_encodings(
        simulation.placement, simulation.encodings(), simulation.design, version=version, biases=biases
    )
    return from_json(json.loads(json.dumps(content, allow_nan=False)))


def loaded(simulation: Simulation, file: EncodingsFile) -> Simulation:
    """A new simulation of the same network with the encodings of a file."""
    twin = Simulation(simulation.network.copy())
    twin.load_encodings(encodings_from_file(file, twin.placement, twin.model.state_dict()))
    return twin


def assert_the_same(one: Simulation, other: Simulation) -> None:
    x = torch.randn(8, 3, 4, 4)
    with torch.no_grad():
        wanted = one.model(x)
        assert torch.equal(other.model(x), wanted)
        assert not torch.equal(one.network.graph(x), wanted)


def told(file: EncodingsFile, placement: Placement, weights: dict[str, Tensor] | None = None) -> list[str]:
    with pytest.raises(EncodingsError) as caught:
        encodings_from_file(file, placement, weights)
    start = "the encodings do not fit this model and target: "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start).split("; ")


def changed(file: EncodingsFile, name: str, **fields: object) -> EncodingsFile:
    fields = {"ranges": None} | fields
    return replace(file, tensors=tuple(replace(one, **fields) if one.name == name else one for one in file.tensors))


PRECISIONS = [
    pytest.param(Precision(per_channel=True), id="per channel"),
    pytest.param(Precision(per_channel=False), id="per tensor"),
    pytest.param(Precision(weights=4, activations=16), id="w4a16"),
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("target", TARGET_NAMES)
def test_through_a_file_of_any_version_outputs_stay_the_same_to_the_last_bit(target: str, precision: Precision) -> None:
    simulation = calibrated(target, precision)
    for version in VERSIONS:
        file = file_of(simulation, version)
        assert file.version == version
        assert_the_same(simulation, loaded(simulation, file))
        for other in VERSIONS:
            assert_the_same(simulation, loaded(simulation, convert(file, other)[0]))


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_weights_are_not_needed_where_a_layer_has_several_channels(target: str) -> None:
    simulation = calibrated(target, Precision())
    for version in VERSIONS:
        found = encodings_from_file(file_of(simulation, version), simulation.placement)
        assert list(found) == [point.tensor for point in simulation.placement.points]
        for name, wanted in simulation.encodings().items():
            assert (found[name].grid, found[name].axis) == (wanted.grid, wanted.axis)
            assert torch.equal(found[name].scale, wanted.scale)
            assert torch.equal(found[name].zero_point, wanted.zero_point)


def test_a_layer_with_one_channel_survives_a_version_that_cannot_tell_it_from_a_whole_tensor() -> None:
    simulation = calibrated("qnn", Precision(), outputs=1)
    for version in VERSIONS:
        assert_the_same(simulation, loaded(simulation, file_of(simulation, version)))
    assert told(file_of(simulation, "0.6.1"), simulation.placement) == [
        "head.weight is per tensor, expected per channel"
    ]


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_only_the_newest_version_has_biases_and_only_where_the_target_has_integers(target: str) -> None:
    simulation = calibrated(target, Precision())
    biases = {
        version: {one.name: one for one in file_of(simulation, version).tensors if one.role == "bias"}
        for version in VERSIONS
    }
    assert biases["0.6.1"] == biases["1.0.0"] == {}
    if target == "tensorrt":
        assert biases["2.0.0"] == {}
        return
    assert list(biases["2.0.0"]) == ["stem.bias", "depthwise.bias", "head.bias"]
    encodings = simulation.encodings()
    source = encodings["x"].scale.double() * encodings["stem_weight"].scale.double()
    bias = biases["2.0.0"]["stem.bias"]
    assert bias.scales == pytest.approx(source.tolist(), rel=1e-6)
    assert (bias.bits, bias.signed, bias.axis, set(bias.zero_points)) == (32, True, 0, {0})


def test_all_versions_list_the_same_tensors_but_for_biases() -> None:
    simulation = calibrated("qnn", Precision())
    names = {
        version: {one.name for one in file_of(simulation, version).tensors if one.role != "bias"}
        for version in VERSIONS
    }
    assert names["0.6.1"] == names["1.0.0"] == names["2.0.0"] == {
        "x", "relu", "conv2d_1", "add", "flatten", "linear", "stem.weight", "depthwise.weight", "head.weight"
    }  # fmt: skip


def test_a_version_that_cannot_be_written_is_told() -> None:
    with pytest.raises(EncodingsError, match=r'^version "2\.1\.0" cannot be written; there are 0\.6\.1, 1\.0\.0, 2'):
        aimet_encodings(Placement(), {}, Design(), version="2.1.0")


def test_every_tensor_that_does_not_fit_is_told_at_once() -> None:
    simulation = calibrated("qnn", Precision())
    for version in VERSIONS:
        file = file_of(simulation, version)
        file = replace(file, tensors=tuple(one for one in file.tensors if one.name != "x"))
        file = changed(file, "relu", bits=16)
        file = changed(file, "add", in_float=True, bits=16)
        file = changed(file, "stem.weight", axis=None, scales=(0.1,), zero_points=(0,))
        file = changed(file, "head.weight", zero_points=(0, 0, 1, 0, 0))
        assert told(file, simulation.placement) == [
            "stem.weight is per tensor, expected per channel",
            "head.weight is asymmetric, expected a symmetric grid",
            "x has no encoding",
            "relu has 16 bits, expected 8 bits",
            "add has float, expected 8 bits",
        ]


def test_per_channel_against_per_tensor_is_told_and_the_reverse() -> None:
    both = [calibrated("onnxruntime", Precision(per_channel=one)) for one in (True, False)]
    names = ("stem.weight", "depthwise.weight", "head.weight")
    for version in VERSIONS:
        weights = both[0].model.state_dict()
        assert told(file_of(both[0], version), both[1].placement, weights) == [
            f"{name} is per channel, expected per tensor" for name in names
        ]
        assert told(file_of(both[1], version), both[0].placement, weights) == [
            f"{name} is per tensor, expected per channel" for name in names
        ]


def test_other_bit_widths_are_told() -> None:
    narrow, wide = calibrated("tensorrt", Precision(weights=4)), calibrated("tensorrt", Precision())
    for version in VERSIONS:
        assert told(file_of(narrow, version), wide.placement) == [
            f"{name}.weight has 4 bits, expected 8 bits" for name in ("stem", "depthwise", "head")
        ]


def test_another_number_of_channels_is_told() -> None:
    simulation, other = calibrated("qnn", Precision()), calibrated("qnn", Precision(), outputs=3)
    for version in VERSIONS:
        assert told(file_of(simulation, version), other.placement, other.model.state_dict()) == [
            "head.weight has 5 scales, expected one for each of 3 channels"
        ]


def test_another_axis_is_told_where_the_version_tells_it() -> None:
    simulation = calibrated("qnn", Precision())
    moved = changed(file_of(simulation, "2.0.0"), "head.weight", axis=1)
    assert told(moved, simulation.placement) == ["head.weight has its scales along axis 1, expected axis 0"]
    moved = changed(file_of(simulation, "1.0.0"), "head.weight", axis=1)
    assert_the_same(simulation, loaded(simulation, moved))


def test_numbers_that_make_no_sense_are_told_with_the_rest() -> None:
    simulation = calibrated("qnn", Precision())
    file = changed(file_of(simulation, "1.0.0"), "x", scales=(0.0,))
    file = changed(file, "relu", scales=(1e-60,))
    assert told(file, simulation.placement) == [
        '"x": scale is 0.0',
        "expected a positive, finite number",
        "relu has a scale that single precision does not hold",
    ]


def test_a_symmetric_entry_fits_an_asymmetric_grid_but_not_the_reverse() -> None:
    unsigned, signed = Grid(8, False, False), Grid(8, True, True)
    entry = {"name": "x", "dtype": "INT", "bw": 8, "is_sym": True, "scale": [0.1], "offset": [-128]}
    content = {"version": "1.0.0", "activation_encodings": [entry | {"enc_type": "PER_TENSOR"}], "param_encodings": []}
    for grid, zero_point in ((unsigned, 128.0), (signed, 0.0)):
        found = encodings_from_file(from_json(content), Placement(points=[Point("x", "x", grid)]))
        assert (found["x"].grid, float(found["x"].zero_point)) == (grid, zero_point)
    content["activation_encodings"][0]["offset"] = [0]  # of a tensor that is never negative, as AIMET 1 wrote it
    found = encodings_from_file(from_json(content), Placement(points=[Point("x", "x", unsigned)]))
    assert float(found["x"].zero_point) == 0
    problem = "x is asymmetric, expected a symmetric grid"
    assert told(from_json(content), Placement(points=[Point("x", "x", signed)])) == [problem]


def test_tensors_that_share_an_encoding_have_an_entry_each() -> None:
    points = [Point("a", "a", Grid(8, False, False)), Point("b", "b", Grid(8, False, False), shares="a")]
    encoding = Encoding(points[0].grid, torch.tensor(0.5), torch.tensor(3.0))
    placement = Placement(points=points)
    for version in VERSIONS:
        content = aimet_encodings(placement, {"a": encoding, "b": encoding}, Design(), version=version)
        found = encodings_from_file(from_json(content), placement)
        assert [(float(one.scale), float(one.zero_point)) for one in found.values()] == [(0.5, 3.0)] * 2


def test_aimets_own_file_is_loaded_under_our_names(tmp_path: Path) -> None:
    """AIMET calls activations as in its ONNX file; once renamed, its numbers are what the simulation runs with."""
    ours = {"/relu/Relu_output_0": "relu", "/flat/Flatten_output_0": "flatten", "y": "linear"}
    text = json.dumps(golden_encodings())
    for theirs, name in ours.items():
        text = text.replace(json.dumps(theirs), json.dumps(name))
    (tmp_path / "m.encodings").write_text(text)
    file = read(tmp_path / "m.encodings")
    _, simulation = exported()
    simulation.load_encodings(encodings_from_file(file, simulation.placement, simulation.model.state_dict()))
    again = aimet_encodings(simulation.placement, simulation.encodings(), simulation.design)
    for section in ("activation_encodings", "param_encodings"):
        assert sorted(again[section], key=str) == sorted(json.loads(text)[section], key=str)
