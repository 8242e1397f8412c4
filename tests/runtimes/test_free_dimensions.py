"""Runtimes of targets take files whose length is free, also those that fix it for every session."""

from pathlib import Path

import pytest
import torch

from qatflow.export.onnx_export import export_onnx
from qatflow.export.runtimes import RUNTIMES
from qatflow.export.runtimes.qnn import QnnModel
from qatflow.quant.grid import sqnr_db
from qatflow.quantizer import Quantizer
from qatflow.recipe import Export
from tests.runtimes.lengths import LENGTH, Lengths, signals

pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("ignore")]  # the runtimes' own


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize(("target", "least"), [("openvino", 60), ("qnn", 35)])
def test_other_lengths_are_computed_as_simulated(target: str, least: int, batch: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(Lengths().eval(), signals(4, 32), calibration=[signals(8, 32)], free=LENGTH, target=target)
    simulation = quantizer.simulation
    file = export_onnx(simulation, quantizer.example, tmp_path / "model.onnx", Export(batch=batch))
    runtime = RUNTIMES[target].load(file.path, file.signature, ())
    for count, length in ((3, 21), (1, 7), (3, 32)):
        x = signals(count, length)
        with torch.no_grad():
            assert sqnr_db(simulation.model(x), runtime(x)) > least
    layers = RUNTIMES[target].inside(file).layers
    assert [one.reason for one in layers if not one.integer] == []
    if isinstance(runtime, QnnModel):
        assert set(runtime.kernels().values()) == {"HTP"}
