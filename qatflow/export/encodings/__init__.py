"""AIMET's encodings files: read, write, convert and check versions 0.6.1, 1.0.0 and 2.0.0.

Needs neither AIMET nor torch; `python -m qatflow.encodings` is the same as a command.
"""

from qatflow.export.encodings.check import Findings, validate
from qatflow.export.encodings.convert import convert
from qatflow.export.encodings.files import from_json, read, to_json, write
from qatflow.export.encodings.onnx_model import ModelFacts, misfits, read_model, with_model
from qatflow.export.encodings.tensor import EncodingsFile, TensorEncoding

__all__ = [
    "EncodingsFile",
    "Findings",
    "ModelFacts",
    "TensorEncoding",
    "convert",
    "from_json",
    "misfits",
    "read",
    "read_model",
    "to_json",
    "validate",
    "with_model",
    "write",
]
