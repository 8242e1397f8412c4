"""The table of targets."""

from __future__ import annotations

from qatflow.quant.target import Target
from qatflow.quant.targets.onnxruntime import ONNXRUNTIME

TARGETS: dict[str, Target] = {"onnxruntime": ONNXRUNTIME}
