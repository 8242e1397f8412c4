"""qatflow: declarative INT8 recipes for PyTorch.

Start reading at `qatflow/engine.py`. Nothing heavy is imported until a name is used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qatflow.api import quantize, run
    from qatflow.export.onnx_export import export_onnx
    from qatflow.export.pair import export_encodings, read_encodings
    from qatflow.export.pt2_export import export_pt2
    from qatflow.export.pte_export import export_pte
    from qatflow.graph.capture import capture
    from qatflow.quant.design import Design
    from qatflow.quant.network import Network
    from qatflow.quant.prepare import captured_network, prepare
    from qatflow.quant.sensitivity import Sensitivity
    from qatflow.quant.simulation import Simulation
    from qatflow.quant.targets import TARGETS
    from qatflow.quantizer import Quantizer
    from qatflow.recipe import Recipe
    from qatflow.report.read import read_result
    from qatflow.results.result import RunResult
    from qatflow.steps import STEPS

HOMES = {
    "run": "qatflow.api",
    "quantize": "qatflow.api",
    "Quantizer": "qatflow.quantizer",
    "capture": "qatflow.graph.capture",
    "captured_network": "qatflow.quant.prepare",
    "export_onnx": "qatflow.export.onnx_export",
    "export_encodings": "qatflow.export.pair",
    "read_encodings": "qatflow.export.pair",
    "export_pt2": "qatflow.export.pt2_export",
    "export_pte": "qatflow.export.pte_export",
    "Design": "qatflow.quant.design",
    "Network": "qatflow.quant.network",
    "Sensitivity": "qatflow.quant.sensitivity",
    "Simulation": "qatflow.quant.simulation",
    "prepare": "qatflow.quant.prepare",
    "TARGETS": "qatflow.quant.targets",
    "Recipe": "qatflow.recipe",
    "RunResult": "qatflow.results.result",
    "read_result": "qatflow.report.read",
    "STEPS": "qatflow.steps",
}
"""The public names, and where each comes from."""

__all__ = [
    "STEPS",
    "TARGETS",
    "Design",
    "Network",
    "Quantizer",
    "Recipe",
    "RunResult",
    "Sensitivity",
    "Simulation",
    "__version__",
    "capture",
    "captured_network",
    "export_encodings",
    "export_onnx",
    "export_pt2",
    "export_pte",
    "prepare",
    "quantize",
    "read_encodings",
    "read_result",
    "run",
]


def _leave_the_current_folder() -> None:
    """Take the current folder from where `python -m qatflow...` imports from.

    Python puts it first, and a file called `yaml.py` beside somebody's recipe would be run. A package that is trusted
    is found there all the same.
    """
    ran = any(one.removeprefix("-m").split(".")[0] == __name__ for one in sys.orig_argv[1:])
    if sys.argv[:1] != ["-m"] or not ran or getattr(sys.flags, "safe_path", False):
        return
    here = sys.path.pop(0)
    if Path(here).resolve() == Path(__file__).resolve().parents[1]:
        sys.path.append(here)  # a checkout: qatflow itself is imported from there


_leave_the_current_folder()


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        message = f"module 'qatflow' has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
