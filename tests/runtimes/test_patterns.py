"""Every target's table beside its own runtime: what it has on integers is, with the simulation's numbers."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks.coverage import fold
from qatflow.errors import ExportError
from qatflow.export.loaded import LayerKernel
from qatflow.export.onnx_export import Exported, export_onnx
from qatflow.export.pte_export import export_pte
from qatflow.export.runtimes import RUNTIMES, Runtime, runtime_of
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Calibration, Export, Precision
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
    ("openvino", "pad and pool"): 1,
    ("openvino", "attention of heads"): 1,
    ("xnnpack", "attention"): 2,
    ("xnnpack", "attention of heads"): 2,
    ("xnnpack", "matmul"): 2,
    ("qnn", "words and positions"): 1,
}
"""Layers that do not run on integers."""
BY_PROCESSOR = {("openvino", "attention of heads")}
"""Those of them that run on integers where the processor has a kernel for all of it."""
NOT_TAKEN = {("xnnpack", "3-d"), ("qnn", "group norm")}
"""Nets that the runtime refuses, which a run tells and survives."""


class Case(NamedTuple):
    """A pattern for a target: its simulation, its file, and inputs that calibration has not seen."""

    simulation: Simulation
    exported: Exported
    runtime: Runtime
    unseen: tuple[Tensor]

    @property
    def sqnr_db(self) -> float:
        """Of the file's outputs to the simulation's."""
        model = self.runtime.load(self.exported.path, self.exported.signature, ())
        with torch.no_grad():
            return sqnr_db(self.simulation.model(*self.unseen), model(*self.unseen))

    @property
    def in_float(self) -> list[LayerKernel]:
        layers = self.runtime.inside(self.exported).layers
        assert layers
        return [one for one in layers if not one.integer]


def written(target: str, name: str, folder: Path, precision: Precision, config: Export) -> Case:
    """Return a pattern, simulated and written for a target."""
    torch.manual_seed(0)
    pattern, table = PATTERNS[name], TARGETS[target]
    example, unseen = (((torch.randn(16, *pattern.shape),), {}) for _ in range(2))
    design = Design(table, precision, Calibration(samples=16))
    simulation = Simulation(fold(captured_network(pattern.build().eval(), *example, design)))
    simulation.calibrate([example])
    (kind,) = table.road.runtimes
    path = folder / f"model.{kind}"
    if kind == "pte":
        exported = export_pte(simulation, example, path)
    else:
        exported = export_onnx(simulation, example, path, config)
    chosen = runtime_of(table.road, kind, target)
    assert chosen.runtime is RUNTIMES[table.road.runtimes[kind]], chosen.missing
    return Case(simulation, exported, chosen.runtime, unseen[0])


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("target", LEAST)
def test_a_pattern_runs_as_the_table_says(target: str, name: str, tmp_path: Path) -> None:
    if (target, name) in NOT_TAKEN:
        with pytest.raises(ExportError):
            assert written(target, name, tmp_path, Precision(), Export()).sqnr_db
        return
    case = written(target, name, tmp_path, Precision(), Export())
    assert case.sqnr_db > LOWER.get((target, name), LEAST[target])
    in_float = case.in_float
    known = IN_FLOAT.get((target, name), 0)
    assert len(in_float) == known or ((target, name) in BY_PROCESSOR and not in_float), in_float
    assert all(one.reason for one in in_float)


@pytest.mark.parametrize("name", ["linear", "linear over tokens", "convolution", "attention", "matmul"])
def test_16_bits_are_exact_in_onnx_runtime_as_it_comes(name: str, tmp_path: Path) -> None:
    """It would round the inputs of products to 8 bits (45 to 51 dB) if it saw their weights at once."""
    case = written("onnxruntime", name, tmp_path, Precision(activations=16), Export())
    assert case.sqnr_db > 100
    assert {one.reason for one in case.in_float} == {"UINT16 has no integer kernel there"}
    assert not {one.kernel for one in case.in_float} & {"MatMulNBits"}


@pytest.mark.parametrize("name", ["relu6", "linear over tokens", "hard swish", "attention"])
def test_16_bits_are_integers_on_the_htp(name: str, tmp_path: Path) -> None:
    """About 60 dB a layer is what it promises: its 16-bit zeros do not stay zero."""
    case = written("qnn", name, tmp_path, Precision(activations=16), Export())
    assert case.sqnr_db > 48
    assert not case.in_float


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("relu", "relu"),
        ("residual sum", "relu"),
        ("linear over tokens", "relu"),
        ("layer norm", "layer_norm"),
        ("attention", "softmax"),
        ("squeeze-excite", "sigmoid"),
        ("max pool", "max_pool2d"),
    ],
)
def test_one_tensor_of_16_bits_among_those_of_8_runs_on_integers_on_the_htp(
    name: str, tensor: str, tmp_path: Path
) -> None:
    """An op that reads one width and gives the other would run in float, or wrongly (2 dB)."""
    precision = Precision.model_validate({"overrides": {tensor: "a16"}})
    case = written("qnn", name, tmp_path, precision, Export())
    assert case.sqnr_db > LOWER.get(("qnn", name), LEAST["qnn"]) - 2
    assert not case.in_float
    assert not [one for one in case.runtime.inside(case.exported).kernels if "CPU" in one]


@pytest.mark.parametrize("target", LEAST)
@pytest.mark.parametrize("name", ["relu6", "linear over tokens"])
def test_weights_of_4_bits_run_on_integers(target: str, name: str, tmp_path: Path) -> None:
    case = written(target, name, tmp_path, Precision(weights=4), Export())
    assert case.sqnr_db > min(LEAST[target], 45)
    assert not case.in_float


@pytest.mark.parametrize("name", ["relu6", "linear", "depthwise"])
def test_unsigned_weights_run_on_integers(name: str, tmp_path: Path) -> None:
    case = written("onnxruntime", name, tmp_path, Precision(), Export(weights="uint8"))
    assert case.sqnr_db > LEAST["onnxruntime"]
    assert not case.in_float


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("hard sigmoid", {"Math"}),
        ("layer norm", {"Convert"}),
        ("group norm", {"Convert"}),
        ("resize bilinear", {"Convert"}),
        ("resize nearest", {"Convert", "Eltwise"}),
    ],
)
def test_openvino_does_no_more_than_it_must(name: str, kernels: set[str], tmp_path: Path) -> None:
    """What it computes in float it reads as floats, and a hard sigmoid goes into the convolution before it."""
    case = written("openvino", name, tmp_path, Precision(), Export())
    found = {one.partition(" ")[0] for one in case.runtime.inside(case.exported).kernels}
    assert not found & kernels


@pytest.mark.parametrize("name", ["relu", "relu6", "residual sum"])
def test_openvino_keeps_what_16_bit_quantizers_would_clip(name: str, tmp_path: Path) -> None:
    """It removes these quantizers, their clipping included: the file has the ops themselves, and says what is float."""
    case = written("openvino", name, tmp_path, Precision(activations=16), Export())
    assert case.sqnr_db > 60
    assert not any(one.integer for one in case.runtime.inside(case.exported).layers)


@pytest.mark.parametrize("name", ["mean", "global pool", "relu6", "residual sum", "linear without bias"])
def test_xnnpack_takes_a_net_as_a_whole(name: str, tmp_path: Path) -> None:
    case = written("xnnpack", name, tmp_path, Precision(), Export())
    program = case.exported.path.read_bytes()
    assert program.count(b"XnnpackBackend") == 1
    assert b"aten::" not in program
