"""AIMET's encodings files: read, write, convert and check versions 0.6.1, 1.0.0 and 2.0.0.

Needs neither AIMET nor torch; `python -m qatflow.encodings` is the same as a command.
"""

from qatflow.encodings.check import Findings, validate
from qatflow.encodings.convert import convert
from qatflow.encodings.files import from_json, read, to_json, write
from qatflow.encodings.onnx_model import ModelFacts, misfits, read_model, with_model
from qatflow.encodings.tensor import EncodingsFile, TensorEncoding

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
