"""Between a placement's encodings and AIMET's encodings files, of any version that `qatflow.encodings` knows.

Parameters are named as in the model's state dict, activations as `tensor_names` has it, in file and encodings alike. A
tensor that only moves the values of another repeats that one's entry. Version 2.0.0 tells a weight's channel axis, as
the weight lies in the file: where it stands transposed there, to multiply from the right, the axis is the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qatflow import __version__
from qatflow.errors import EncodingsError
from qatflow.export.encodings import EncodingsFile, TensorEncoding, to_json, validate
from qatflow.export.encodings.tensor import Role
from qatflow.export.onnx_float import FileTensors
from qatflow.quant.design import Design
from qatflow.quant.grid import Encoding
from qatflow.quant.placement import Placement, Point

SCHEMES = {"minmax": "min_max", "percentile": "percentile", "sqnr": "post_training_tf_enhanced"}
SCHEMES |= {"entropy": "entropy"}
"""AIMET's names of the calibration methods."""


def aimet_encodings(
    placement: Placement,
    encodings: Mapping[str, Encoding],
    design: Design,
    *,
    version: str = "1.0.0",
    biases: Mapping[str, Encoding] | None = None,
    tensors: FileTensors | None = None,
) -> dict[str, Any]:
    """Return the content of an encodings file.

    Args:
        placement: which tensors are quantized.
        encodings: of every one of them, by its name in the placement.
        design: told in `quantizer_args`.
        version: 0.6.1, 1.0.0 or 2.0.0; the last has no `excluded_layers` and no `quantizer_args`.
        biases: encodings of 32-bit biases, by parameter name; only 2.0.0 has them.
        tensors: names and axes in the ONNX file that the encodings belong to; what it does not have gets no entry.
            Without it, names are the graph's and all tensors are listed.
    """
    told = _Told(tensors)
    sources = {point.tensor: point.tensor for point in placement.points if point.parameter is None} | placement.tied
    activations = told.activations({name: encodings[source] for name, source in sources.items()})
    weights = {point.parameter: encodings[point.tensor] for point in placement.points if point.parameter is not None}
    parameters = told.parameters(weights, "parameter")
    integer_biases = told.parameters(biases or {}, "bias") if version.startswith("2.") else []
    file = EncodingsFile(
        version=version,
        tensors=(*activations, *parameters, *integer_biases),
        producer={"package": "qatflow", "version": __version__},
        excluded_layers=tuple(sorted({left.layer for left in placement.floats})),
        quantizer_args={
            "quant_scheme": SCHEMES[design.calibration.activations],
            "param_bitwidth": design.precision.weights,
            "activation_bitwidth": design.precision.activations,
            "dtype": "int",
            "is_symmetric": design.precision.weights_symmetric,
            "per_channel_quantization": design.precision.per_channel,
        },
    )
    return to_json(file, version)


class _Told:
    """The entries of a file whose tensors are known, or of none."""

    def __init__(self, tensors: FileTensors | None) -> None:
        self.tensors = tensors

    def activations(self, encodings: Mapping[str, Encoding]) -> list[TensorEncoding]:
        names = {name: name for name in encodings} if self.tensors is None else self.tensors.names
        return [_entry(names[one], "activation", encodings[one]) for one in encodings if one in names]

    def parameters(self, encodings: Mapping[str, Encoding], role: Role) -> list[TensorEncoding]:
        axes = {name: one.axis for name, one in encodings.items()}
        axes = axes if self.tensors is None else dict(self.tensors.parameters)
        return [replace(_entry(one, role, encodings[one]), axis=axes[one]) for one in encodings if one in axes]


def _entry(name: str, role: Role, encoding: Encoding) -> TensorEncoding:
    return TensorEncoding(
        name=name,
        role=role,
        bits=encoding.grid.bits,
        signed=encoding.grid.signed,
        symmetric=encoding.grid.symmetric,
        scales=tuple(float(scale) for scale in encoding.scale.reshape(-1)),
        zero_points=tuple(int(zero_point) for zero_point in encoding.zero_point.reshape(-1)),
        axis=encoding.axis,
    )


def encodings_from_file(
    file: EncodingsFile,
    placement: Placement,
    weights: Mapping[str, Tensor] | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, Encoding]:
    """Return what a file says of a placement's tensors, for `Simulation.load_encodings`.

    Signedness and axis, which old versions do not tell, are the placement's.

    Args:
        file: what was read.
        placement: which tensors are quantized.
        weights: the model's parameters by name, its state dict for example. They tell how many channels there are;
            0.6.1 cannot tell a parameter with one channel from one with one scale for all of it.
        names: of `tensor_names`, where the file's activations are called as in the ONNX file; None where they are
            called as in the graph.

    Raises:
        EncodingsError: the file contradicts itself, a tensor is missing, or has another grid than the placement; all
            such tensors are named.
    """
    known = {tensor.name: tensor for tensor in file.tensors}
    found: dict[str, Encoding] = {}
    problems = list(validate(file).wrong)
    for point in placement.points:
        name = point.parameter or (names or {}).get(point.tensor, point.tensor)
        entry, channels = known.get(name), _channels(point, weights)
        if entry is not None and channels == 1 and entry.axis is None and len(entry.scales) == 1:
            entry = replace(entry, axis=point.axis)
        tells_axis = file.version.startswith("2.")
        axes = _axes(point, weights) if tells_axis else None
        problem = f"{name} has no encoding" if entry is None else _misfit(point, entry, channels, axes)
        if problem:
            problems.append(problem)
        elif entry is not None and not problems:
            found[point.tensor] = _encoding(point, entry)
    if problems:
        message = "the encodings do not fit this model and target: " + "; ".join(problems)
        raise EncodingsError(message)
    return found


def _channels(point: Point, weights: Mapping[str, Tensor] | None) -> int | None:
    """Return how many scales a parameter with one per channel has; None where that is not known."""
    if weights is None or point.parameter is None or point.parameter not in weights or point.axis is None:
        return None
    return weights[point.parameter].shape[point.axis]


def _axes(point: Point, weights: Mapping[str, Tensor] | None) -> set[int | None]:
    """Return the axes that a file may tell: a layer's matrix may lie transposed in it."""
    weight = None if weights is None else weights.get(point.parameter or "")
    transposed = {1 - point.axis} if weight is not None and weight.dim() == 2 and point.axis is not None else set()
    return {point.axis, *transposed}


def _misfit(point: Point, entry: TensorEncoding, channels: int | None, axes: set[int | None] | None) -> str:
    """Say in what way an entry has another grid than its tensor wants; empty where it has not."""
    if entry.in_float or entry.bits != point.grid.bits:
        found = "float" if entry.in_float else f"{entry.bits} bits"
        return f"{entry.name} has {found}, expected {point.grid.bits} bits"
    if point.grid.symmetric and any(_on(point, entry).zero_points):
        return f"{entry.name} is asymmetric, expected a symmetric grid"
    if (entry.axis is None) != (point.axis is None):
        found, expected = ("per tensor", "per channel") if entry.axis is None else ("per channel", "per tensor")
        return f"{entry.name} is {found}, expected {expected}"
    if axes is not None and entry.axis not in axes:
        return f"{entry.name} has its scales along axis {entry.axis}, expected axis {point.axis}"
    if channels is not None and len(entry.scales) != channels:
        return f"{entry.name} has {len(entry.scales)} scales, expected one for each of {channels} channels"
    if any(_is_positive(scale) and not _is_positive(torch.tensor(scale).float().item()) for scale in entry.scales):
        return f"{entry.name} has a scale that single precision does not hold"
    return ""


def _is_positive(scale: float) -> bool:
    return scale > 0 and math.isfinite(scale)


def _on(point: Point, entry: TensorEncoding) -> TensorEncoding:
    """Return an entry with the same offsets on the signed or unsigned grid of its tensor."""
    shift = 2 ** (entry.bits - 1) * (int(entry.signed) - int(point.grid.signed))
    return replace(entry, signed=point.grid.signed, zero_points=tuple(one + shift for one in entry.zero_points))


def _encoding(point: Point, entry: TensorEncoding) -> Encoding:
    zero_points = [float(one) for one in _on(point, entry).zero_points]
    scale = torch.tensor(entry.scales, dtype=torch.float32)
    zero_point = torch.tensor(zero_points, dtype=torch.float32)
    if point.axis is None:
        scale, zero_point = scale[0], zero_point[0]
    return Encoding(point.grid, scale, zero_point, point.axis)
