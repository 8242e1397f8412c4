"""Encodings, quantized file and float file call the same tensors by the same names."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from qatflow import export_encodings, read_encodings
from qatflow.encodings import main as encodings_command
from qatflow.export.encodings import read
from qatflow.export.runtimes.onnxruntime import OnnxModel
from qatflow.graph.layers import set_tensor, tensor
from qatflow.graph.observe import observe
from qatflow.quant.grid import sqnr_db
from qatflow.quant.network import copy_graph
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from tests.export.pairs import SMALL, Pair, pair

VERSIONS = ("0.6.1", "1.0.0", "2.0.0")
every_model = pytest.mark.parametrize("model", SMALL)
every_pair = pytest.mark.parametrize(
    ("model", "target"),
    [(model, target) for model in SMALL for target in TARGETS if model != "double" or target in ("qnn", "tensorrt")],
)


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def values_in_graph(one: Pair) -> dict[str, Tensor]:
    """What the float network computes with weights on their grids, by the names of its graph."""
    graph = copy_graph(one.content.network.graph)
    for point in one.simulation.placement.points:
        if point.parameter is not None:
            encoding = one.content.encodings[point.tensor]
            set_tensor(graph, point.parameter, encoding.dequantize(encoding.quantize(tensor(graph, point.parameter))))
    nodes = [node for node in graph.graph.nodes if isinstance(node.meta.get("val"), Tensor) and node.op != "output"]
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        observe(graph, nodes, [one.example], lambda node, value: found.update({node.name: value}))
    return found


@every_pair
def test_every_quantized_tensor_is_in_both_files_and_every_entry_too(model: str, target: str) -> None:
    one = pair(model, target)
    placement = one.simulation.placement
    for name in ("model.onnx", "model_float.onnx"):
        graph = onnx.load(one.folder / name).graph
        onnx.checker.check_model(one.folder / name, full_check=True)
        there = {value for node in graph.node for value in node.output} | {value.name for value in graph.input}
        there |= {value.name for value in graph.initializer}
        for version in VERSIONS:
            entries = [entry.name for entry in read(one.folder / f"{version}.encodings").tensors]
            assert set(entries) <= there
            assert len(set(entries)) == len(entries)
    listed = {entry.name for entry in read(one.folder / "1.0.0.encodings").tensors}
    wanted = {point.parameter or one.files.tensors.names[point.tensor] for point in placement.points}
    assert wanted <= listed
    gone = placement.tied.keys() - one.files.tensors.names.keys()
    assert all(name.startswith(("contiguous", "slice", "clone")) for name in gone)  # no op of their own in ONNX


@every_pair
def test_a_name_in_the_float_file_is_that_tensor_and_no_other(model: str, target: str) -> None:
    one = pair(model, target)
    wanted, names = values_in_graph(one), one.files.tensors.names
    computed = {value for node in onnx.load(one.folder / "model_float.onnx").graph.node for value in node.output}
    there = {one_name: name for one_name, name in names.items() if name in computed}
    assert len(there) > 1
    runtime = OnnxModel(
        one.folder / "model_float.onnx", one.files.signature, also=sorted(set(there.values())), as_written=True
    )
    got = runtime.run(*one.example)
    for tensor_name, name in there.items():
        assert got[name].shape == wanted[tensor_name].shape
        assert sqnr_db(wanted[tensor_name].double(), got[name].double()) > 80, f"{tensor_name} is {name} in the file"


@every_pair
def test_every_weight_with_an_encoding_is_an_initializer_on_its_grid(model: str, target: str) -> None:
    one = pair(model, target)
    stored = initializers(one.folder / "model_float.onnx")
    weights = one.content.network.graph.state_dict()
    for entry in read(one.folder / "2.0.0.encodings").tensors:
        if entry.name not in one.files.tensors.parameters:
            continue
        value = stored[entry.name]
        assert value.dtype == np.float32
        shape = [1] * value.ndim
        if entry.axis is not None:
            shape[entry.axis] = -1
            assert value.shape[entry.axis] == len(entry.scales)
        scales = np.array(entry.scales, np.float64).reshape(shape)
        steps = value.astype(np.float64) / scales
        assert np.abs(steps - np.round(steps)).max() <= (1e-3 if entry.bits <= 16 else 64)  # 24 bits hold no 32
        own = weights[entry.name].detach().double().numpy()
        own = own if own.shape == value.shape and not (own.ndim == 2 and entry.axis == 1) else own.T
        assert np.abs(value - own).max() <= 0.51 * scales.max() + 1e-6 * np.abs(own).max()


@every_pair
def test_qatflows_own_check_finds_nothing_to_say_of_the_pair(
    model: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one = pair(model, target)
    for version in VERSIONS:
        encodings = str(one.folder / f"{version}.encodings")
        assert encodings_command(["check", encodings, "--model", str(one.folder / "model.onnx")]) == 0
        encodings_command(["check", encodings, "--model", str(one.folder / "model_float.onnx")])
        assert "0 wrong" in (said := capsys.readouterr().out)
        assert "0 unknown to the model" in said.splitlines()[-1]


@every_pair
def test_a_file_with_the_names_of_the_onnx_file_is_read_back_to_the_bit(model: str, target: str) -> None:
    one = pair(model, target)
    simulation = one.simulation
    twin = Simulation(simulation.network.copy())
    for version in VERSIONS:
        found = read_encodings(one.folder / f"{version}.encodings", twin, one.example)
        for name, wanted in one.content.encodings.items():
            assert torch.equal(found[name].scale.float(), wanted.scale.float())
            assert torch.equal(found[name].zero_point.float(), wanted.zero_point.float())
            assert found[name].axis == wanted.axis


@every_model
def test_few_bits_in_wide_integers_leave_no_clip_in_the_float_file(model: str) -> None:
    one = pair(model, "onnxruntime", 4, 5)
    quantized, floats = (onnx.load(one.folder / name).graph for name in ("model.onnx", "model_float.onnx"))
    assert any(node.name.endswith("_clip") for node in quantized.node)
    left = {node.op_type for node in floats.node if node.name.endswith("_clip")}
    assert not left
    assert not any("uantizeLinear" in node.op_type for node in floats.node)
    assert [value.name for value in floats.input] == [value.name for value in quantized.input]
    assert [value.name for value in floats.output] == [value.name for value in quantized.output]


@every_pair
def test_no_two_pairs_on_one_grid_stand_behind_each_other_and_every_node_has_a_name(model: str, target: str) -> None:
    graph = onnx.load(pair(model, target).folder / "model.onnx").graph
    assert all(node.name for node in graph.node)
    assert len({node.name for node in graph.node}) == len(graph.node)
    makers = {value: node for node in graph.node for value in node.output}
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    for node in graph.node:
        before = makers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if before is not None and before.op_type == "DequantizeLinear":
            assert stored[before.input[1]] != stored[node.input[1]]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert stored[node.input[1]].shape == stored[node.input[2]].shape


def test_the_pair_is_written_in_one_call(tmp_path: Path) -> None:
    one = pair("nested", "qnn")
    export_encodings(one.simulation, one.example, tmp_path, "2.0.0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.encodings", "model_float.onnx"]
    assert read(tmp_path / "model.encodings") == read(one.folder / "2.0.0.encodings")
    same = initializers(tmp_path / "model_float.onnx")
    for name, value in initializers(one.folder / "model_float.onnx").items():
        np.testing.assert_array_equal(same[name], value)
