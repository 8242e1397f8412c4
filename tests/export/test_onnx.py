"""The ONNX file: it computes what the simulation does, on integers, with the names and types that it should have."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn
from torch.utils import _pytree as pytree

from qatflow.export.compare import compare
from qatflow.export.integer_biases import integer_biases
from qatflow.export.onnx_export import Exported, export_onnx
from qatflow.export.runtimes.onnxruntime import OnnxModel, inside
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.network import Network
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Export, LayerPrecision, Precision
from tests.export.exported import Attention, Net, exported, inputs_of, simulated

TARGETS = ("onnxruntime", "qnn", "tensorrt", "openvino")


def loaded(file: Exported) -> onnx.ModelProto:
    model = onnx.load(file.path)
    onnx.checker.check_model(model, full_check=True)
    return model


def initializers(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {one.name: one for one in model.graph.initializer}


def tensors_inside(file: Exported) -> list[str]:
    return [f"{point.tensor}_quantized" for point in file.placement.points if not point.parameter]


@pytest.mark.parametrize("model", [Net, Attention])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 8), (8, 16), (3, 5)])
def test_the_file_computes_what_the_simulation_does(
    model: type[nn.Module], target: str, weights: int, activations: int
) -> None:
    file = exported(model, target, weights, activations)
    loaded(file)
    own = target == "onnxruntime" and activations <= 8  # wider ones it multiplies by weights in a way of its own
    runtime = OnnxModel(file.path, file.signature, as_written=not own)
    for count, seed in ((5, 1), (1, 2)):
        args, kwargs = inputs_of(model, count, seed)
        with torch.no_grad():
            wanted = file.simulation(*args, **kwargs)
        got = runtime(*args, **kwargs)
        assert pytree.tree_structure(got) == pytree.tree_structure(wanted)
        for a, b in zip(pytree.tree_leaves(wanted), pytree.tree_leaves(got), strict=True):
            assert a.shape == b.shape
            assert sqnr_db(a, b) > (35 if activations >= 8 else 25)  # a step is a larger part of few
    found = compare(
        file.graph,
        OnnxModel(file.path, file.signature, also=tensors_inside(file), as_written=not own),
        [inputs_of(model, 5)],
    )
    missing = {name.removesuffix("_quantized") for name in tensors_inside(file)} - {one.tensor for one in found}
    assert missing <= {"pad"}  # may have gone into the convolution
    for one in found:
        assert one.steps <= 1
        assert one.differing <= max(1, 0.01 * one.elements)


@pytest.mark.parametrize("storage", ["int8", "uint8"])
def test_every_layer_runs_on_integers(storage: str, tmp_path: Path) -> None:
    for model in (Net, Attention):
        file = exported(model, config=Export(weights=storage))
        found = inside(file)
        assert [one.reason for one in found.layers if not one.integer] == []
        assert len(found.layers) == 4
        assert sum(found.kernels.values()) > 4
    assert {one.layer for one in inside(exported(Net)).layers} >= {"stem", "head"}


def test_layers_in_float_are_told_with_the_reason(tmp_path: Path) -> None:
    layers = inside(exported(Net, activations=16)).layers
    assert not any(one.integer for one in layers)
    assert {one.reason for one in layers} == {"UINT16 has no integer kernel there"}
    reasons = {one.layer: one.reason for one in inside(exported(Net, activations=5)).layers}
    assert reasons["stem"] == "its input has fewer than 8 bits, which no integer kernel takes"


@pytest.mark.parametrize("model", [Net, Attention])
def test_a_fixed_batch_is_in_the_file_and_fed_in_its_size(model: type[nn.Module], tmp_path: Path) -> None:
    simulation = simulated(model, "onnxruntime", Precision())
    file = export_onnx(simulation, inputs_of(model, 2), tmp_path / "model.onnx", Export(batch=4))
    written = onnx.load(file.path)
    onnx.checker.check_model(written, full_check=True)
    dims = [one.type.tensor_type.shape.dim[0] for one in (*written.graph.input, *written.graph.output)]
    assert {(one.dim_value, one.dim_param) for one in dims} == {(4, "")}
    args, kwargs = inputs_of(model, 6, 1)
    free = OnnxModel(exported(model).path, file.signature)
    for one, other in zip(
        pytree.tree_leaves(OnnxModel(file.path, file.signature)(*args, **kwargs)),
        pytree.tree_leaves(free(*args, **kwargs)),
        strict=True,
    ):
        assert sqnr_db(one, other) > 40  # batches of other sizes may add in another order


def test_weights_are_integers_behind_one_dequantize(tmp_path: Path) -> None:
    for storage, dtype, zero in (("int8", TensorProto.INT8, 0), ("uint8", TensorProto.UINT8, 128)):
        model = loaded(exported(Net, config=Export(weights=storage)))
        stored = initializers(model)
        assert stored["stem.weight_quantized"].data_type == dtype
        zero_points = numpy_helper.to_array(stored["stem.weight_zero_point"])
        assert zero_points.shape == (16,)
        assert set(zero_points.tolist()) == {zero}
        assert stored["stem.bias_quantized"].data_type == TensorProto.INT32
        readers = [node for node in model.graph.node if "stem.weight_quantized" in node.input]
        assert [(node.op_type, list(node.output)) for node in readers] == [("DequantizeLinear", ["stem.weight"])]
    assert all(len(node.input) == 3 for node in model.graph.node if node.op_type.endswith("uantizeLinear"))


def test_biases_are_as_the_target_wants_them() -> None:
    for target, dtype in (("qnn", TensorProto.INT32), ("tensorrt", None), ("openvino", None)):
        stored = initializers(loaded(exported(Net, target)))
        assert ("stem.bias_quantized" in stored) == (dtype is not None)
        assert ("stem.bias" in stored) == (dtype is None)


def test_a_bias_is_on_the_grid_of_the_products() -> None:
    stored = {name: numpy_helper.to_array(one) for name, one in initializers(loaded(exported(Net))).items()}
    source = next(name for name in stored if name.endswith("pad_scale") or name == "image_scale")
    np.testing.assert_allclose(stored["stem.bias_scale"], stored[source] * stored["stem.weight_scale"], rtol=1e-6)
    torch.manual_seed(0)
    bias = Net().stem.bias.detach().numpy()
    np.testing.assert_allclose(stored["stem.bias_quantized"] * stored["stem.bias_scale"], bias, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_are_packed_where_the_runtime_gains_by_it(bits: int) -> None:
    for target, packed in (("onnxruntime", False), ("tensorrt", True)):
        model = loaded(exported(Net, target, bits))
        kind = initializers(model)["stem.weight_quantized"].data_type
        assert kind == (TensorProto.INT4 if packed else TensorProto.INT8)
        assert model.opset_import[0].version == (21 if packed else 18)
    asked = loaded(exported(Net, weights=bits, config=Export(packed_int4=True)))
    assert initializers(asked)["stem.weight_quantized"].data_type == TensorProto.INT4


def test_the_opset_is_chosen_by_need() -> None:
    assert loaded(exported(Net)).opset_import[0].version == 18
    assert loaded(exported(Net, activations=16)).opset_import[0].version == 21
    assert loaded(exported(Net, config=Export(opset=20))).opset_import[0].version == 20


def test_names_are_the_models_own_and_the_batch_is_free() -> None:
    for model, inputs, outputs in (
        (Net, ["image"], ["logits", "features"]),
        (Attention, ["tokens", "scale"], ["output_0", "output_1"]),
    ):
        graph = loaded(exported(model)).graph
        assert [value.name for value in graph.input] == inputs
        assert [value.name for value in graph.output] == outputs
        for value in (*graph.input, *graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_nothing_dangles_and_nothing_of_the_exporter_is_left() -> None:
    for target in TARGETS:
        model = loaded(exported(Net, target))
        read = {name for node in model.graph.node for name in node.input} | {one.name for one in model.graph.output}
        assert {one.name for one in model.graph.initializer} <= read
        assert all(set(node.output) & read for node in model.graph.node)
        assert not {"Identity", "Pad"} & {node.op_type for node in model.graph.node if target == "onnxruntime"}
        assert [one.domain for one in model.opset_import] == [""]
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        assert not any(value.metadata_props for value in (*model.graph.input, *model.graph.output))
        assert model.producer_name == "qatflow"


def test_a_dead_channel_with_a_bias_keeps_its_bias(tmp_path: Path) -> None:
    simulation = simulated(Net, "onnxruntime", Precision())
    with torch.no_grad():
        simulation.model.get_parameter("stem.weight")[3] *= 1e-12
        simulation.model.get_parameter("stem.bias")[3] = 0.75
    fresh = Simulation(Network(simulation.to_network().graph, simulation.design))
    fresh.calibrate([inputs_of(Net, 16)])
    file = export_onnx(fresh, inputs_of(Net, 2), tmp_path / "model.onnx")
    args, _ = inputs_of(Net, 4, 3)
    got, wanted = OnnxModel(file.path, file.signature)(*args), fresh.model(*args)
    stored = initializers(loaded(file))
    assert sqnr_db(wanted["logits"], got["logits"]) > 40
    bias = numpy_helper.to_array(stored["stem.bias_quantized"])[3]
    assert bias * numpy_helper.to_array(stored["stem.bias_scale"])[3] == pytest.approx(0.75, rel=1e-5)
    assert abs(int(bias)) <= 2**30


def stretched(weight: float, bias: float, per_channel: bool) -> Simulation:
    """The network with one channel of next to no weights and a large bias, which its ReLU cuts off or caps."""
    simulation = simulated(Net, "onnxruntime", Precision(per_channel=per_channel))
    with torch.no_grad():
        simulation.model.get_parameter("stem.weight")[3] *= weight
        simulation.model.get_parameter("stem.bias")[3] = bias
    fresh = Simulation(Network(simulation.to_network().graph, simulation.design))
    fresh.calibrate([inputs_of(Net, 16)])
    return fresh


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_bias_beyond_all_limits_costs_the_other_channels_nothing(per_channel: bool, tmp_path: Path) -> None:
    simulation = stretched(1e-6, -1e7, per_channel)
    content = integer_biases(simulation)
    assert content.raised == (("stem",) if per_channel else ())  # of its own channel alone, where that has a scale
    assert content.coarse == ()
    others = [one for one in range(16) if one != 3]
    before, after = simulation.encodings()["stem_weight"].scale, content.encodings["stem_weight"].scale
    assert torch.equal(before[others], after[others]) if per_channel else torch.equal(before, after)
    file = export_onnx(simulation, inputs_of(Net, 2), tmp_path / "model.onnx")
    args, _ = inputs_of(Net, 4, 3)
    with torch.no_grad():
        wanted = simulation.model(*args)
    got = OnnxModel(file.path, file.signature)(*args)
    assert sqnr_db(wanted["logits"], got["logits"]) > 50


def test_a_bias_with_a_coarser_grid_than_its_output_is_told() -> None:
    simulation = stretched(1.0, 0.0, per_channel=False)
    name = next(point.tensor for point in simulation.placement.points if point.parameter == "stem.weight")
    encodings = simulation.encodings()
    output = encodings[simulation.placement.inside["conv2d"]]
    coarse = replace(encodings[name], scale=output.scale / encodings[_input_of_stem(simulation)].scale * 2)
    simulation.load_encodings({**encodings, name: coarse})
    content = integer_biases(simulation)
    assert content.coarse == ("stem",)
    assert content.notes == {"biases_coarser_than_outputs": "stem"}


def _input_of_stem(simulation: Simulation) -> str:
    (layer,) = [node for node in simulation.network.graph.graph.nodes if node.name == "conv2d"]
    source = str(layer.args[0])
    return simulation.placement.tied.get(source, source)


@pytest.mark.parametrize("layer", ["stem", "depthwise", "project", "head"])
def test_a_layer_in_float_between_quantized_tensors_stays_in_float(layer: str, tmp_path: Path) -> None:
    """ONNX Runtime rounds the weight of such a layer to 8 bits, with one scale, unless the file keeps it from that."""
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():  # with one scale for all, little is left of the other channels
        model.get_submodule(layer).weight[0] *= 1000
    precision = Precision(overrides={layer: LayerPrecision(quantized=False)})
    simulation = Simulation(captured_network(model, *inputs_of(Net, 2), Design(precision=precision)))
    simulation.calibrate([inputs_of(Net, 16)])
    file = export_onnx(simulation, inputs_of(Net, 2), tmp_path / "model.onnx")
    assert {one.layer: one.integer for one in inside(file).layers}[layer] is False
    found = compare(file.graph, OnnxModel(file.path, file.signature, also=tensors_inside(file)), [inputs_of(Net, 16)])
    assert found
    assert max(one.steps for one in found) <= 1
    assert max(one.differing / one.elements for one in found) < 1e-3
    names = [node.op_type for node in loaded(file).graph.node]
    assert names.count("Sum") == (layer in ("depthwise", "project"))  # the others read, or give, floats
