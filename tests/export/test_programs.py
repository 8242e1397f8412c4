"""PyTorch's and ExecuTorch's files: they compute what the simulation does, the first without qatflow."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from qatflow.export.pt2_export import export_pt2
from qatflow.export.pte_export import export_pte
from qatflow.export.runtimes.executorch import PteModel
from qatflow.export.runtimes.onnxruntime import OnnxModel
from qatflow.quant.grid import sqnr_db
from qatflow.recipe import Precision
from tests.export.exported import Attention, Net, inputs_of, simulated
from tests.export.pairs import pair

ELSEWHERE = """
import sys
import torch
import torch.ao.quantization.fx._decomposed
folder = sys.argv[1]
args, kwargs, wanted = torch.load(f"{folder}/case.pt")
program = torch.export.load(f"{folder}/model.pt2")
got = program.module()(*args, **kwargs)
assert "qatflow" not in sys.modules
assert all(torch.equal(a, b) for a, b in zip(wanted, torch.utils._pytree.tree_leaves(got), strict=True))
targets = {str(node.target) for node in program.graph.nodes}
assert any("quantized_decomposed.dequantize_per_channel" in one for one in targets), targets
assert any("quantized_decomposed.quantize_per_tensor" in one for one in targets), targets
assert {str(one.dtype) for one in program.state_dict.values()} >= {"torch.int8", "torch.int32"}
"""


@pytest.mark.parametrize("model", [Net, Attention])
def test_the_program_gives_equal_outputs_in_a_process_without_qatflow(model: type[nn.Module], tmp_path: Path) -> None:
    simulation = simulated(model, "onnxruntime", Precision())
    export_pt2(simulation, inputs_of(model, 2), tmp_path / "model.pt2")
    args, kwargs = inputs_of(model, 5, 1)
    program = torch.export.load(tmp_path / "model.pt2").module()
    outputs = pytree.tree_leaves(program(*args, **kwargs))
    with torch.no_grad():
        simulated_outputs = pytree.tree_leaves(simulation.model(*args, **kwargs))
    assert min(sqnr_db(a, b) for a, b in zip(simulated_outputs, outputs, strict=True)) > 40
    torch.save((args, kwargs, [one.detach() for one in outputs]), tmp_path / "case.pt")
    if model is Attention:
        return  # the layers' biases are sums of their own there, in float
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_model_in_double_precision_is_written_in_single_with_inputs_and_outputs_as_they_were(tmp_path: Path) -> None:
    one = pair("double", "qnn")
    export_pt2(one.simulation, one.example, tmp_path / "model.pt2")
    args, _ = one.example
    got = torch.export.load(tmp_path / "model.pt2").module()(*args)
    with torch.no_grad():
        wanted = one.simulation.model(*args)
    assert got.dtype == wanted.dtype == torch.float64
    assert sqnr_db(wanted, got) > 60
    from_file = OnnxModel(one.folder / "model.onnx", one.files.signature, as_written=True)(*args)
    assert from_file.dtype == torch.float64
    assert sqnr_db(wanted, from_file) > 60


@pytest.mark.filterwarnings("ignore")  # ExecuTorch's own
@pytest.mark.parametrize("batch", [1, 3])
def test_executorch_runs_the_layers_in_xnnpack(batch: int, tmp_path: Path) -> None:
    simulation = simulated(Net, "xnnpack", Precision())
    exported = export_pte(simulation, inputs_of(Net, 2), tmp_path / "model.pte", batch=batch)
    assert b"XnnpackBackend" in exported.path.read_bytes()
    args, _ = inputs_of(Net, 5, 1)
    program = PteModel(exported.path, exported.signature)
    assert program.batch == batch
    got, wanted = program(*args), exported.simulation(*args)
    assert set(got) == {"logits", "features"}
    assert got["logits"].shape == (5, 5)
    for name in got:
        assert sqnr_db(wanted[name], got[name]) > 30
