"""Every target's table beside its own runtime: what it has on integers is, with the simulation's numbers."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks.coverage import fold
from qatflow.errors import ExportError
from qatflow.export.onnx_export import export_onnx
from qatflow.export.pte_export import export_pte
from qatflow.export.runtimes import RUNTIMES, runtime_of
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Calibration, Precision
from tests.runtimes.patterns import PATTERNS

pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("ignore")]  # the runtimes' own

LEAST = {"onnxruntime": 50.0, "openvino": 135.0, "qnn": 33.0, "xnnpack": 37.0}
"""SQNR of a net's outputs to the simulation, in dB. Differences of one step are rounding in another order: OpenVINO has
none, ONNX Runtime and XNNPACK few, and HTP several in a hundred."""
LOWER = {
    ("openvino", "grouped"): 60.0,
    ("openvino", "depthwise with multiplier"): 60.0,
    ("openvino", "tanh"): 75.0,
}
IN_FLOAT = {
    ("onnxruntime", "transposed"): 1,
    ("openvino", "transposed"): 1,
    ("openvino", "sub"): 1,
    ("openvino", "pad and pool"): 1,
    ("openvino", "attention"): 2,
    ("openvino", "matmul"): 2,
    ("xnnpack", "attention"): 2,
    ("xnnpack", "matmul"): 2,
    ("qnn", "linear over tokens"): 2,
    ("qnn", "layer norm"): 2,
    ("qnn", "matmul"): 2,
}
"""Layers that do not run on integers."""
NOT_TAKEN = {("xnnpack", "3-d"), ("qnn", "gelu"), ("qnn", "attention")}
"""Nets that the runtime refuses, which a run tells and survives."""


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("target", LEAST)
def test_a_pattern_runs_as_the_table_says(target: str, name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pattern, table = PATTERNS[name], TARGETS[target]
    example, unseen = (((torch.randn(16, *pattern.shape),), {}) for _ in range(2))
    design = Design(table, Precision(), Calibration(samples=16))
    simulation = Simulation(fold(captured_network(pattern.build().eval(), *example, design)))
    simulation.calibrate([example])
    (kind,) = table.road.runtimes
    write = export_pte if kind == "pte" else export_onnx
    chosen = runtime_of(table.road, kind, target)
    assert chosen.runtime is RUNTIMES[table.road.runtimes[kind]], chosen.missing
    with pytest.raises(ExportError) if (target, name) in NOT_TAKEN else nullcontext():
        exported = write(simulation, example, tmp_path / f"model.{kind}")
        model = chosen.load(exported.path, exported.signature, ())
    if (target, name) in NOT_TAKEN:
        return
    with torch.no_grad():
        wanted = simulation.model(*unseen[0])
    got = model(*unseen[0])
    assert sqnr_db(wanted, got) > LOWER.get((target, name), LEAST[target])
    layers = chosen.runtime.inside(exported).layers
    in_float = [one for one in layers if not one.integer]
    assert len(in_float) == IN_FLOAT.get((target, name), 0), in_float
    assert all(one.reason for one in in_float)
    assert layers


@pytest.mark.parametrize("name", ["relu", "relu6", "residual sum"])
def test_openvino_keeps_what_16_bit_quantizers_would_clip(name: str, tmp_path: Path) -> None:
    """It removes these quantizers, their clipping included: the file has the ops themselves, and says what is float."""
    torch.manual_seed(0)
    pattern = PATTERNS[name]
    example, unseen = (((torch.randn(16, *pattern.shape),), {}) for _ in range(2))
    design = Design(TARGETS["openvino"], Precision(activations=16), Calibration(samples=16))
    simulation = Simulation(captured_network(pattern.build().eval(), *example, design))
    simulation.calibrate([example])
    exported = export_onnx(simulation, example, tmp_path / "model.onnx")
    model = RUNTIMES["openvino"].load(exported.path, exported.signature, ())
    with torch.no_grad():
        assert sqnr_db(simulation.model(*unseen[0]), model(*unseen[0])) > 60
    assert not any(one.integer for one in RUNTIMES["openvino"].inside(exported).layers)
