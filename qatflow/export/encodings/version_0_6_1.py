"""Version 0.6.1: two objects, tensor name to a list with one entry per scale, each with its range.

AIMET computes `min` and `max` in single precision from the scale; so does this.
"""

from __future__ import annotations

import struct
from typing import Any

from qatflow.export.encodings.fields import BITS, FLOAT_BITS, Fields, shown
from qatflow.export.encodings.legacy import SECTIONS, content, file_of, held, tensor_of_offsets
from qatflow.export.encodings.tensor import EncodingsFile, Role, TensorEncoding

VERSION = "0.6.1"
IN_FLOAT = ("bitwidth", "dtype")
IN_INTEGERS = ("min", "max", "scale", "offset", "bitwidth", "dtype", "is_symmetric")


def to_json(file: EncodingsFile) -> dict[str, Any]:
    """Return the content of a file of this version; 32-bit biases are left out."""
    sections = {key: {one.name: _entries(one) for one in held(file, role)} for key, role in SECTIONS.items()}
    return content(file, VERSION, sections)


def _entries(tensor: TensorEncoding) -> list[dict[str, Any]]:
    if tensor.in_float:
        return [{"bitwidth": tensor.bits, "dtype": "float"}]
    ranges = tensor.ranges or tuple(
        (single(scale * offset), single(scale * (offset + 2**tensor.bits - 1)))
        for scale, offset in zip(tensor.scales, tensor.offsets, strict=True)
    )
    return [
        {
            "min": low,
            "max": high,
            "scale": scale,
            "offset": offset,
            "bitwidth": tensor.bits,
            "dtype": "int",
            "is_symmetric": str(tensor.symmetric),
        }
        for scale, offset, (low, high) in zip(tensor.scales, tensor.offsets, ranges, strict=True)
    ]


def single(value: float) -> float:
    """Round a number to single precision; one too large for it stays as it is.

    The product of a single-precision scale and an integer of up to 29 bits is exact in double precision, so that
    rounding it once gives what single-precision arithmetic gives.
    """
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return value


def from_json(top: Fields) -> EncodingsFile:
    """Return what a file of this version says; what is wrong with it goes to the problems of `top`."""
    found = []
    for section, role in SECTIONS.items():
        for name, entries in top.mapping(section).items():
            tensor = _tensor(name, entries, f"{section} {shown(name)}", role, top.problems)
            found += [] if tensor is None else [tensor]
    return file_of(top, found)


def _tensor(name: str, entries: object, where: str, role: Role, problems: list[str]) -> TensorEncoding | None:
    """Return the tensor of one list of entries; None where they are not supported or do not go together."""
    if not name:
        problems.append(f"{where}: has no name; expected that of a tensor")
        return None
    if not isinstance(entries, list) or not entries:
        problems.append(f"{where}: is {shown(entries)}; expected a list with one object per scale")
        return None
    before = len(problems)
    parts = [Fields(entry, f"{where}[{index}]", problems) for index, entry in enumerate(entries)]
    sound = [part.supported() for part in parts]  # all of them, for their problems
    if not all(sound):
        return None
    kinds = {part.text("dtype", ("int", "float")) for part in parts}
    if kinds == {"float"}:
        return _in_float(name, role, parts)
    widths = {part.whole("bitwidth", BITS.start, BITS.stop - 1) for part in parts}
    symmetries = {part.text("is_symmetric", ("True", "False")) for part in parts}
    for part in parts:
        part.only(*IN_INTEGERS)
    scales = tuple(part.number("scale") for part in parts)
    offsets = tuple(part.any_whole("offset") for part in parts)
    ranges = tuple((part.number("min"), part.number("max")) for part in parts)
    if role == "activation" and len(parts) > 1:
        parts[0].unsupported("an activation with one scale per channel")
    if len(problems) > before:
        return None
    for key, values in (("dtype", kinds), ("bitwidth", widths), ("is_symmetric", symmetries)):
        if len(values) > 1:
            problems.append(f"{where}: {key} differs between channels; expected the same for all")
    (bits, *_), symmetric = widths, symmetries == {"True"}
    return tensor_of_offsets(name, role, bits, symmetric, scales, offsets, len(parts) > 1, ranges)


def _in_float(name: str, role: Role, parts: list[Fields]) -> TensorEncoding:
    if len(parts) > 1:
        parts[0].unsupported("float per channel")
    parts[0].only(*IN_FLOAT)
    return TensorEncoding(name=name, role=role, bits=parts[0].one_of("bitwidth", FLOAT_BITS), in_float=True)
