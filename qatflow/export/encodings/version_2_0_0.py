"""Version 2.0.0: one list of entries in ONNX's own terms; 2.1.0 is the same for whole-number grids without blocks.

It tells the grid and the axis, but neither parameters from activations nor which grids were chosen to be symmetric.
Without an ONNX model, 32-bit integers are biases; what has an axis, or is signed with no zero point, is a parameter;
and a signed grid with no zero point counts as symmetric.
"""

from __future__ import annotations

import re
from typing import Any

from qatflow.export.encodings.fields import BITS, Fields, is_list_of, is_number, shown
from qatflow.export.encodings.tensor import EncodingsFile, Role, TensorEncoding

VERSION = "2.0.0"
READ_ALIKE = "2.1.0"
BIAS = "int32"


def to_json(file: EncodingsFile) -> dict[str, Any]:
    """Return the content of a file of this version.

    Tensors in float, excluded layers and quantizer arguments are left out: it has no place for them.
    """
    found: dict[str, Any] = {} if file.producer is None else {"producer": dict(file.producer)}
    return found | {"version": VERSION, "encodings": [_entry(one) for one in file.tensors if not one.in_float]}


def _entry(tensor: TensorEncoding) -> dict[str, Any]:
    one = tensor.axis is None
    entry: dict[str, Any] = {
        "name": tensor.name,
        "output_dtype": f"{'' if tensor.signed else 'u'}int{tensor.bits}",
        "y_scale": tensor.scales[0] if one else list(tensor.scales),
    }
    if any(tensor.zero_points):
        entry["y_zero_point"] = tensor.zero_points[0] if one else list(tensor.zero_points)
    return entry if one else entry | {"axis": tensor.axis}


def from_json(top: Fields) -> EncodingsFile:
    """Return what a file of this version says; what is wrong with it goes to the problems of `top`."""
    top.only("producer", "version", "encodings")
    found = [
        _tensor(entry, f"encodings[{index}]", top.problems) for index, entry in enumerate(top.entries("encodings"))
    ]
    producer = top.mapping("producer") if "producer" in top.values else None
    tensors = tuple(tensor for tensor in found if tensor is not None)
    return EncodingsFile(version=top.text("version"), tensors=tensors, producer=producer)


def _tensor(entry: object, where: str, problems: list[str]) -> TensorEncoding | None:
    """Return the tensor of one entry; None where it is damaged or not supported."""
    fields = Fields(entry, where, problems)
    name = fields.text("name")
    fields.where = f"{where} {shown(name)}" if name else where
    before = len(problems)
    if not fields.supported():
        return None
    has_scales = _has_scales(fields)
    fields.only("name", "output_dtype", "y_scale", "y_zero_point", "axis")
    kind = fields.text("output_dtype")
    grid = re.fullmatch(r"(u?)int([1-9][0-9]?)", kind)
    if kind and (grid is None or int(grid[2]) not in BITS):
        fields.unsupported(f"output_dtype {shown(kind)}")
    if not has_scales:
        return None
    per_channel = isinstance(fields.values["y_scale"], list)
    if per_channel != ("axis" in fields.values):
        fields.problem("expected axis and a list in y_scale, or neither")
    axis = fields.whole("axis") if per_channel and "axis" in fields.values else None
    scales = fields.numbers("y_scale") if per_channel else (fields.number("y_scale"),)
    zero_points = (0,) * len(scales)
    if "y_zero_point" in fields.values:
        zero_points = fields.wholes("y_zero_point") if per_channel else (fields.any_whole("y_zero_point"),)
    if len(problems) > before or grid is None:
        return None
    signed, centred = not grid[1], not any(zero_points)
    role: Role = "parameter" if per_channel or (signed and centred) else "activation"
    return TensorEncoding(
        name=name,
        role="bias" if kind == BIAS else role,
        bits=int(grid[2]),
        signed=signed,
        symmetric=signed and centred,
        scales=scales,
        zero_points=zero_points,
        axis=axis,
    )


def _has_scales(fields: Fields) -> bool:
    """Tell whether `y_scale` is one number or a list of them; blocks of them are not supported."""
    scale = fields.values.get("y_scale")
    if isinstance(scale, dict):
        fields.unsupported("LPBQ (an object in y_scale)")
    elif isinstance(scale, list) and any(isinstance(one, list) for one in scale):
        fields.unsupported("PER_BLOCK (nested lists in y_scale)")
    elif "y_scale" in fields.values and (is_number(scale) or is_list_of(is_number, scale)):
        return True
    elif fields.is_object:
        said = shown(scale) if "y_scale" in fields.values else "missing"
        fields.problem(f"y_scale is {said}; expected a number or a list of numbers")
    return False
