"""Lengths and image sizes that are free: the file takes other ones than capture saw, and follows the simulation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import qatflow
from qatflow.errors import ExportError
from qatflow.export.onnx_export import Exported, export_onnx
from qatflow.export.pt2_export import export_pt2
from qatflow.export.pte_export import export_pte
from qatflow.export.runtimes.onnxruntime import OnnxModel
from qatflow.graph.tree import tree_leaves
from qatflow.quant.grid import sqnr_db
from qatflow.quant.simulation import Simulation
from qatflow.quantizer import Quantizer
from qatflow.recipe import Export
from tests.runtimes.lengths import LENGTH, Lengths, signals

Call = dict[str, Tensor]


def exported(model: nn.Module, calls: list[Call], free: Any, path: Path, target: str = "onnxruntime") -> Exported:
    quantizer = Quantizer(model.eval(), calls[0], calibration=calls, free=free, target=target)
    return export_onnx(quantizer.simulation, quantizer.example, path / "model.onnx")


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim]


def shapes(file: Exported) -> dict[str, list[int | str]]:
    model = onnx.load(file.path)
    onnx.checker.check_model(model, full_check=True)
    return {one.name: dims(one) for one in (*model.graph.input, *model.graph.output)}


def check(file: Exported, call: Mapping[str, Tensor]) -> None:
    """Compare a file with the graph that it was written from, and with the simulation.

    Biases are float there and whole numbers in the file, which may move an element by a step: that has nothing to do
    with what is free, and the graph has the file's biases.
    """
    got = tree_leaves(OnnxModel(file.path, file.signature, as_written=True)(**call))
    for graph, least in ((file.graph, 90), (file.simulation, 40)):
        with torch.no_grad():
            wanted = tree_leaves(graph(**call))
        for one, other in zip(wanted, got, strict=True):
            assert one.shape == other.shape
            assert sqnr_db(one, other) > least


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert_captured_at_48_runs_at_39(attention: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        attn_implementation=attention,
    )
    model = transformers.BertForTokenClassification(config)

    def call(count: int, length: int) -> Call:
        mask = torch.ones(count, length, dtype=torch.long)
        mask[0, length // 2 :] = 0
        return {"input_ids": torch.randint(0, 100, (count, length)), "attention_mask": mask}

    free = {"input_ids": {1: "tokens"}, "attention_mask": {1: "tokens"}}
    file = exported(model, [call(4, 48), call(4, 20)], free, tmp_path)
    assert shapes(file) == {
        "input_ids": ["batch", "tokens"],
        "attention_mask": ["batch", "tokens"],
        "logits": ["batch", "tokens", 2],
    }
    check(file, call(3, 39))
    check(file, call(1, 64))  # as many as there are positions
    fixed = exported(model, [call(4, 48), call(4, 48)], {}, tmp_path)
    assert shapes(fixed)["input_ids"] == ["batch", 48]
    assert len(fixed.placement.points) == len(file.placement.points)


def test_a_segmentation_network_takes_other_images(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    model = models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    free = {"input": {2: "height", 3: "width"}}
    file = exported(model, [{"input": torch.randn(2, 3, 64, 96)}], free, tmp_path)
    assert shapes(file) == {"input": ["batch", 3, "height", "width"], "out": ["batch", 5, "height", "width"]}
    check(file, {"input": torch.randn(1, 3, 96, 64)})
    check(file, {"input": torch.randn(2, 3, 80, 112)})


@pytest.mark.parametrize("target", ["onnxruntime", "qnn", "openvino", "tensorrt"])
def test_a_network_of_one_dimension_takes_other_lengths(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = exported(Lengths(), [{"signal": signals(8, 32)}], LENGTH, tmp_path, target)
    assert shapes(file)["signal"] == ["batch", 2, "length"]
    for count, length in ((3, 21), (1, 7), (5, 64)):
        check(file, {"signal": signals(count, length)})


def simulated() -> tuple[Simulation, Any]:
    torch.manual_seed(0)
    quantizer = Quantizer(Lengths().eval(), signals(4, 32), calibration=[signals(8, 32)], free=LENGTH)
    return quantizer.simulation, quantizer.example


def test_the_batch_may_be_fixed_where_lengths_are_free(tmp_path: Path) -> None:
    simulation, example = simulated()
    file = export_onnx(simulation, example, tmp_path / "model.onnx", Export(batch=2))
    assert shapes(file)["signal"] == [2, 2, "length"]
    check(file, {"signal": signals(5, 21)})


def test_a_pt2_takes_other_lengths_and_an_executorch_program_does_not(tmp_path: Path) -> None:
    simulation, example = simulated()
    export_pt2(simulation, example, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    x = signals(3, 21)
    with torch.no_grad():
        assert sqnr_db(simulation.model(x), program(x)) > 60
    with pytest.raises(
        ExportError, match=r"^an ExecuTorch program takes one length only, which data.free leaves free$"
    ):
        export_pte(simulation, example, tmp_path / "model.pte")


def test_a_run_whose_parts_differ_in_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Lengths().eval()

    def part(count: int, length: int) -> list[tuple[Tensor, Tensor]]:
        x = signals(count, length)
        with torch.no_grad():
            return list(zip(x, model(x).argmax(1), strict=True))

    data = {"calibration": part(32, 32), "validation": part(40, 24), "test": part(100, 21)}
    result = qatflow.quantize(
        model,
        data,
        folder=tmp_path,
        target="xnnpack",
        qat="never",
        steps=["fold_batch_norms", "equalize", "smooth", "search_scales", "correct_bias", "adaround"],
        ladder={"stop": "end"},
        data_options={"free": LENGTH},
    )
    found = result.verification
    assert found is not None
    assert (found.samples, found.agreement) == (100, 1.0)
    said = "an ExecuTorch program takes one length only, which data.free leaves free; an ONNX file takes its place"
    assert result.export_notes["no_program"] == said
    assert dims(onnx.load(tmp_path / "export" / "model.onnx").graph.input[0]) == ["batch", 2, "length"]
