"""The table of targets."""

from __future__ import annotations

from qatflow.quant.target import Target
from qatflow.quant.targets.onnxruntime import ONNXRUNTIME
from qatflow.quant.targets.openvino import OPENVINO
from qatflow.quant.targets.qnn import QNN
from qatflow.quant.targets.tensorrt import TENSORRT
from qatflow.quant.targets.xnnpack import XNNPACK

TARGETS: dict[str, Target] = {
    "onnxruntime": ONNXRUNTIME,
    "tensorrt": TENSORRT,
    "qnn": QNN,
    "xnnpack": XNNPACK,
    "openvino": OPENVINO,
}
