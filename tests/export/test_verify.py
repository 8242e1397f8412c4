"""The last gate: what is found of a file that is right, and of one that is not."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.utils.data import Subset

import qatflow
from qatflow.errors import ExportError
from qatflow.export import verify as module
from qatflow.export.compare import compare
from qatflow.export.encodings import read, read_model
from qatflow.export.latency import interleaved
from qatflow.export.onnx_file import OnnxOptions, write_onnx
from qatflow.export.runtimes import RUNTIMES
from qatflow.export.runtimes.onnxruntime import OnnxModel
from qatflow.export.signature import Signature
from qatflow.export.timing import latency_of
from qatflow.graph.capture import capture
from qatflow.recipe import Export, Recipe, targets
from qatflow.results.outputs import kept_outputs
from qatflow.results.result import RunResult, Verdict
from tests.export.exported import Net, exported, inputs_of


def recipe(**changes: object) -> Recipe:
    settings = {
        "name": "test",
        "model": {"name": "digits_mobilenet"},
        "data": {"name": "digits"},
        "steps": {"fold_batch_norms": {}},
        "qat": {"when": "never"},
        "gate": {"max_drop": 0.05},
    }
    return Recipe.model_validate({**settings, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    folder = tmp_path_factory.mktemp("run")
    return qatflow.run(recipe(), folder), folder


def test_the_deployed_file_is_measured_like_a_candidate(run: tuple[RunResult, Path]) -> None:
    result, folder = run
    last = result.candidates[-1]
    assert (last.id, last.stage, last.notes) == ("deployed", "deployed", {"of": result.best})
    assert result.deployed == last.value
    assert last.drop_low is not None
    assert result.passed
    assert "deployed" in (folder / "results.csv").read_text()


def test_what_was_found_is_in_the_folder(run: tuple[RunResult, Path]) -> None:
    result, folder = run
    found = result.verification
    assert found is not None
    written = json.loads((folder / "export" / "verification.json").read_text())
    assert written["verdict"] == found.verdict
    assert (written["agreement"], written["layers"]) == (found.agreement, found.layers)
    assert (found.is_target, found.disagreeing) == (True, ())
    assert found.agreement is not None
    assert found.agreement >= 0.99
    assert found.sqnr_db is not None
    assert found.sqnr_db > 35
    assert found.integer_layers == found.layers == 20
    assert found.compared > 20
    assert found.latency is not None
    assert found.latency.int8_quartiles[0] <= found.latency.int8 <= found.latency.int8_quartiles[1]
    assert found.fp32_bytes is not None
    assert found.bytes < found.fp32_bytes
    page = (folder / "report.html").read_text()
    assert "Exported file" in page
    assert "20 of 20" in page
    assert found.speed.split(":")[0] in page


def test_a_deployed_metric_that_misses_the_gate_turns_the_verdict(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(OnnxModel, "run", _with_shuffled_classes(OnnxModel.run))
    result = qatflow.run(recipe(), tmp_path)
    assert result.winner is not None
    assert result.winner.passed
    assert (result.passed, result.verdict) == (False, Verdict.MISSED)
    assert "the file exported from it does not" in (tmp_path / "report.html").read_text()


def _with_shuffled_classes(run):
    def wrong(self, args, kwargs):
        return {
            name: value.roll(1, 1) if value.dim() == 2 else value for name, value in run(self, args, kwargs).items()
        }

    return wrong


def test_a_target_without_a_runtime_is_checked_but_not_timed(tmp_path: Path) -> None:
    found = qatflow.run(recipe(target="tensorrt"), tmp_path).verification
    assert found is not None
    assert (found.is_target, found.latency, found.layers, found.verdict) == (False, None, 0, "verified")
    assert found.stands_in == "No runtime of target tensorrt can be run here"
    assert "No runtime of target tensorrt can be run here. ONNX Runtime" in (tmp_path / "report.html").read_text()


def test_a_runtime_that_is_not_installed_is_told_at_the_start_and_stood_in_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(RUNTIMES, "openvino", replace(RUNTIMES["openvino"], module="no_such_package"))
    result = qatflow.run(recipe(target="openvino"), tmp_path)
    found, said = result.verification, "OpenVINO is not installed: pip install 'qatflow[openvino]'"
    assert found is not None
    assert (found.is_target, found.stands_in, found.settings) == (False, said, "")
    assert found.runtime.startswith("ONNX Runtime ")
    assert result.notes[0].startswith(f"{said}; until then a stand-in runs the exported file")


@pytest.mark.filterwarnings("ignore")  # ExecuTorch's own
def test_a_program_is_run_in_executorch_and_timed_beside_fp32(tmp_path: Path) -> None:
    result = qatflow.run(recipe(target="xnnpack"), tmp_path)
    found = result.verification
    assert result.artefacts["pte"] == "export/model.pte"
    assert "onnx" not in result.artefacts
    assert found is not None
    assert (found.runtime.split()[0], found.is_target, found.agreement) == ("ExecuTorch", True, 1.0)
    assert (found.integer_layers, found.layers, found.float_layers) == (20, 20, ())
    assert found.latency is not None
    assert found.fp32_bytes is not None
    assert found.fp32_bytes > found.bytes
    assert not [one for one in logging.root.handlers if type(one) is logging.StreamHandler]


def test_where_executorch_is_missing_an_onnx_file_takes_its_programs_place(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(RUNTIMES, "executorch", replace(RUNTIMES["executorch"], module="no_such_package"))
    monkeypatch.setattr(targets, "can_write_programs", lambda: False)
    result = qatflow.run(recipe(target="xnnpack"), tmp_path)
    assert result.verification is not None
    assert result.verification.stands_in == "ExecuTorch is not installed: pip install 'qatflow[executorch]'"
    assert ("onnx" in result.artefacts, "pte" in result.artefacts) == (True, False)


def test_a_slow_simulator_gets_the_first_samples_and_turns_no_verdict_by_chance(tmp_path: Path, monkeypatch) -> None:
    few = replace(RUNTIMES["onnxruntime"], most_samples=100, timed=False)
    monkeypatch.setitem(RUNTIMES, "onnxruntime", few)
    result = qatflow.run(recipe(gate={"max_drop": 0.01, "strict": True}), tmp_path)
    found, deployed = result.verification, result.candidates[-1]
    assert found is not None
    assert (found.samples, found.of_samples, found.latency) == (128, 497, None)
    assert (deployed.samples, deployed.passed, result.passed) == (128, False, True)
    assert "only the first 128 of 497 samples were run" in (tmp_path / "report.html").read_text()


def test_the_file_says_where_it_comes_from(run: tuple[RunResult, Path]) -> None:
    result, folder = run
    told = onnxruntime.InferenceSession(folder / "export" / "model.onnx").get_modelmeta().custom_metadata_map
    best = result.winner
    assert best is not None
    assert told["qatflow.recipe"] == "test"
    assert told["qatflow.target"] == "onnxruntime"
    assert (told["qatflow.candidate"], told["qatflow.verdict"]) == (best.id, best.verdict.value)
    assert float(told["qatflow.drop"]) == best.drop
    assert len(told["qatflow.recipe_hash"]) == 24
    assert "qatflow.classes" not in told


class Named(list[Any]):
    """A part that knows what its classes are called, as torchvision's datasets do."""

    classes = ("cat", "Vögel", "dog")


def test_the_file_has_the_names_of_classes_and_one_recipe_has_one_hash(tmp_path: Path) -> None:
    x = torch.randn(64, 1, 5, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = list(zip(x, Volumes().eval()(x).argmax(1), strict=True))
    data = {"calibration": pairs[:16], "test": Subset(Named(pairs), range(16, 64))}
    told = []
    for name in ("a", "b"):
        qatflow.quantize(Volumes().eval(), data, folder=tmp_path / name, qat="never", export={"verify": False})
        session = onnxruntime.InferenceSession(tmp_path / name / "export" / "model.onnx")
        told.append(session.get_modelmeta().custom_metadata_map)
    assert json.loads(told[0]["qatflow.classes"]) == ["cat", "Vögel", "dog"]
    assert told[0] == told[1]


def test_a_fixed_batch_is_run_and_timed_in_its_size(tmp_path: Path) -> None:
    found = qatflow.run(recipe(export=Export(batch=8)), tmp_path).verification
    assert found is not None
    assert (found.samples, found.agreement) == (497, 1.0)
    assert found.latency is not None
    assert found.latency.batch == 8
    assert "Latency, 8 samples" in (tmp_path / "report.html").read_text()


def test_a_file_that_its_runtime_refuses_is_run_by_a_stand_in(tmp_path: Path, monkeypatch) -> None:
    def refuses(path: Path, signature: Signature, also: Sequence[str]) -> OnnxModel:
        raise ExportError("the runtime cannot load model.onnx: no such kernel. Exception from core.cpp")

    monkeypatch.setitem(RUNTIMES, "onnxruntime", replace(RUNTIMES["onnxruntime"], load=refuses))
    result = qatflow.run(recipe(), tmp_path)
    assert result.status == "finished"
    assert result.verification is not None
    assert result.verification.stands_in == "the runtime cannot load model.onnx: no such kernel"
    assert (result.verification.is_target, result.verification.agreement) == (False, 1.0)


class Volumes(nn.Module):
    """A net that ExecuTorch does not take."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv3d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3, 4)))


@pytest.mark.filterwarnings("ignore")  # ExecuTorch's own
def test_a_model_that_executorch_does_not_take_gets_an_onnx_file(tmp_path: Path) -> None:
    x = torch.randn(64, 1, 5, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pairs = list(zip(x, Volumes().eval()(x).argmax(1), strict=True))
    data = {"calibration": pairs[:16], "test": pairs[16:]}
    result = qatflow.quantize(Volumes().eval(), data, folder=tmp_path, target="xnnpack", qat="never")
    assert "onnx" in result.artefacts
    assert "pte" not in result.artefacts
    said = str(result.export_notes["no_program"])
    assert said.startswith("ExecuTorch cannot take the model: ")
    assert said.endswith("; an ONNX file takes its place")


def test_outputs_are_kept_for_sweeps(run: tuple[RunResult, Path]) -> None:
    _, folder = run
    kept = kept_outputs(folder)
    assert kept is not None
    assert kept.shape == (497, 10)


def test_the_recipe_may_leave_it_out(tmp_path: Path) -> None:
    result = qatflow.run(recipe(export=Export(verify=False, onnx=False, pt2=True)), tmp_path)
    assert (result.verification, result.deployed) == (None, None)
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == [
        "model.encodings",
        "model.pt2",
        "model.safetensors",
    ]
    assert "The recipe does not run it" in (tmp_path / "report.html").read_text()


def test_without_an_onnx_file_encodings_name_the_graphs_tensors_and_say_so(tmp_path: Path) -> None:
    result = qatflow.run(recipe(export=Export(verify=False, onnx=False)), tmp_path)
    assert result.export_notes["encodings_name_tensors_of_the_graph"] == "there is no ONNX file: export.onnx is false"
    names = {entry.name for entry in read(tmp_path / "export" / "model.encodings").tensors}
    assert "output" not in names


def test_encodings_of_xnnpack_have_their_float_file_too(tmp_path: Path) -> None:
    result = qatflow.run(recipe(target="xnnpack", export=Export(verify=False, pte=False)), tmp_path)
    assert sorted(result.artefacts) == ["encodings", "float_onnx", "weights"]
    model = read_model(tmp_path / "export" / "model_float.onnx")
    assert {entry.name for entry in read(tmp_path / "export" / "model.encodings").tensors} <= model.tensors


def test_the_tensor_that_goes_wrong_is_named_and_no_other(tmp_path: Path) -> None:
    file = exported(Net)
    model = onnx.load(file.path)
    for one in model.graph.initializer:
        if one.name == "depthwise.weight_quantized":
            wrong = numpy_helper.to_array(one).copy()
            wrong[2] = -wrong[2]
            one.CopyFrom(numpy_helper.from_array(wrong, one.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    names = [f"{point.tensor}_quantized" for point in file.placement.points if not point.parameter]
    broken = OnnxModel(tmp_path / "wrong.onnx", file.signature, also=names)
    records = [
        module._record(one, one.tensor, by_steps=True) for one in compare(file.graph, broken, [inputs_of(Net, 8)])
    ]
    wrong_ones = [one.tensor for one in records if not one.agrees]
    assert len(wrong_ones) == 1
    assert "hardtanh" in wrong_ones[0] or "relu6" in wrong_ones[0] or "conv2d_1" in wrong_ones[0]


class Wide(nn.Module):
    """Enough work on every sample to be timed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return images of 64 channels."""
        return self.layers(x)


def test_a_model_with_work_to_do_is_not_too_small_to_time(tmp_path: Path) -> None:
    network, images = Wide().eval(), torch.randn(2, 3, 64, 64)
    graph = capture(network, (images,))
    path, signature = tmp_path / "wide.onnx", Signature.of(graph, ((images,), {}))
    write_onnx(graph, signature, ((images,), {}), path, OnnxOptions())
    model = OnnxModel(path, signature)
    assert not latency_of(model, model, ((images,), {})).too_small


def test_latencies_are_taken_in_turn() -> None:
    calls: list[str] = []
    slow, fast = interleaved(
        lambda: (calls.append("slow"), torch.randn(300, 300) @ torch.randn(300, 300)),
        lambda: calls.append("fast"),
        seconds=0.05,
    )
    assert calls[:4] == ["slow", "fast", "slow", "fast"]
    assert slow.low <= slow.median <= slow.high
    assert fast.median < slow.median
