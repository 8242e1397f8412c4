"""Version 1.0.0: two lists of entries, each with lists of scales and offsets."""

from __future__ import annotations

from typing import Any

from qatflow.export.encodings.fields import BITS, FLOAT_BITS, Fields, shown
from qatflow.export.encodings.legacy import SECTIONS, content, file_of, held, tensor_of_offsets
from qatflow.export.encodings.tensor import EncodingsFile, Role, TensorEncoding

VERSION = "1.0.0"
PER_TENSOR, PER_CHANNEL = "PER_TENSOR", "PER_CHANNEL"
OTHER_KINDS = ("PER_BLOCK", "LPBQ", "VECTOR")


def to_json(file: EncodingsFile) -> dict[str, Any]:
    """Return the content of a file of this version; 32-bit biases are left out."""
    return content(file, VERSION, {key: [_entry(one) for one in held(file, role)] for key, role in SECTIONS.items()})


def _entry(tensor: TensorEncoding) -> dict[str, Any]:
    if tensor.in_float:
        return {"name": tensor.name, "dtype": "FLOAT", "bw": tensor.bits, "enc_type": PER_TENSOR}
    return {
        "name": tensor.name,
        "dtype": "INT",
        "bw": tensor.bits,
        "is_sym": tensor.symmetric,
        "scale": list(tensor.scales),
        "offset": list(tensor.offsets),
        "enc_type": PER_TENSOR if tensor.axis is None else PER_CHANNEL,
    }


def from_json(top: Fields) -> EncodingsFile:
    """Return what a file of this version says; what is wrong with it goes to the problems of `top`."""
    found = []
    for section, role in SECTIONS.items():
        for index, entry in enumerate(top.entries(section)):
            tensor = _tensor(entry, f"{section}[{index}]", role, top.problems)
            found += [] if tensor is None else [tensor]
    return file_of(top, found)


def _tensor(entry: object, where: str, role: Role, problems: list[str]) -> TensorEncoding | None:
    """Return the tensor of one entry; None where the entry is not supported."""
    fields = Fields(entry, where, problems)
    name = fields.text("name")
    fields.where = f"{where} {shown(name)}" if name else where
    if not fields.supported():
        return None
    kind = fields.text("enc_type")
    if kind not in ("", PER_TENSOR, PER_CHANNEL):
        fields.unsupported(kind if kind in OTHER_KINDS else f"enc_type {shown(kind)}")
        return None
    if fields.text("dtype", ("INT", "FLOAT")) == "FLOAT":
        fields.only("name", "dtype", "bw", "enc_type")
        if kind == PER_CHANNEL:
            fields.unsupported("float per channel")
        return TensorEncoding(name=name, role=role, bits=fields.one_of("bw", FLOAT_BITS), in_float=True)
    fields.only("name", "dtype", "bw", "is_sym", "scale", "offset", "enc_type")
    scales = fields.numbers("scale")
    if kind == PER_TENSOR and len(scales) > 1:
        fields.problem(f"enc_type is {PER_TENSOR} but scale has {len(scales)} numbers; expected 1")
    if kind == PER_CHANNEL and role == "activation":
        fields.unsupported("an activation with one scale per channel")
    bits = fields.whole("bw", BITS.start, BITS.stop - 1)
    offsets = fields.wholes("offset")
    return tensor_of_offsets(name, role, bits, fields.flag("is_sym"), scales, offsets, kind == PER_CHANNEL)
