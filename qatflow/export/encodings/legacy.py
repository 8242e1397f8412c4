"""What versions 0.6.1 and 1.0.0 have in common: the top level, and offsets that do not tell signedness or axis.

A symmetric entry whose offset is the middle of the grid is signed, everything else unsigned: AIMET 1 wrote symmetric
entries with offset 0 for tensors that are never negative. The axis of a parameter with one scale per channel is taken
to be 0; an ONNX model knows better (`with_model`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qatflow.export.encodings.fields import Fields
from qatflow.export.encodings.tensor import EncodingsFile, Role, TensorEncoding

SECTIONS: dict[str, Role] = {"activation_encodings": "activation", "param_encodings": "parameter"}
ASSUMED_AXIS = 0


def held(file: EncodingsFile, role: Role) -> list[TensorEncoding]:
    """Return the tensors of one section."""
    return [tensor for tensor in file.tensors if tensor.role == role]


def content(file: EncodingsFile, version: str, sections: dict[str, Any]) -> dict[str, Any]:
    """Return the top level around the two sections; what `file` does not say is left out."""
    found: dict[str, Any] = {} if file.producer is None else {"producer": dict(file.producer)}
    found |= {"version": version, **sections}
    if file.excluded_layers is not None:
        found["excluded_layers"] = list(file.excluded_layers)
    if file.quantizer_args is not None:
        found["quantizer_args"] = dict(file.quantizer_args)
    return found


def file_of(top: Fields, tensors: Sequence[TensorEncoding]) -> EncodingsFile:
    """Return the file with these tensors and the rest of its top level."""
    top.only("producer", "version", *SECTIONS, "excluded_layers", "quantizer_args")
    return EncodingsFile(
        version=top.text("version"),
        tensors=tuple(tensors),
        producer=top.mapping("producer") if "producer" in top.values else None,
        excluded_layers=top.texts("excluded_layers") if "excluded_layers" in top.values else None,
        quantizer_args=top.mapping("quantizer_args") if "quantizer_args" in top.values else None,
    )


def tensor_of_offsets(
    name: str,
    role: Role,
    bits: int,
    symmetric: bool,
    scales: tuple[float, ...],
    offsets: tuple[int, ...],
    per_channel: bool,
    ranges: tuple[tuple[float, float], ...] | None = None,
) -> TensorEncoding:
    """Return the encoding that AIMET's offsets stand for."""
    middle = 2 ** (bits - 1)
    signed = symmetric and all(offset == -middle for offset in offsets)
    return TensorEncoding(
        name=name,
        role=role,
        bits=bits,
        signed=signed,
        symmetric=symmetric,
        scales=scales,
        zero_points=tuple(-offset - middle * signed for offset in offsets),
        axis=ASSUMED_AXIS if per_channel else None,
        ranges=ranges,
    )
