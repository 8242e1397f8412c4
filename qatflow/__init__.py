"""qatflow: declarative INT8 recipes for PyTorch.

Start reading at `qatflow/engine.py`. Nothing heavy is imported until a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qatflow.api import run
    from qatflow.graph.capture import capture
    from qatflow.quant.network import Network
    from qatflow.quant.prepare import prepare
    from qatflow.quant.simulation import Simulation
    from qatflow.quant.targets import TARGETS
    from qatflow.recipe import Recipe
    from qatflow.result import RunResult
    from qatflow.steps import STEPS

__all__ = [
    "STEPS",
    "TARGETS",
    "Network",
    "Recipe",
    "RunResult",
    "Simulation",
    "__version__",
    "capture",
    "prepare",
    "run",
]

HOMES = {
    "run": "qatflow.api",
    "capture": "qatflow.graph.capture",
    "Network": "qatflow.quant.network",
    "Simulation": "qatflow.quant.simulation",
    "prepare": "qatflow.quant.prepare",
    "TARGETS": "qatflow.quant.targets",
    "Recipe": "qatflow.recipe",
    "RunResult": "qatflow.result",
    "STEPS": "qatflow.steps",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        message = f"module 'qatflow' has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(HOMES[name]), name)
