"""AIMET's encodings file, version 1.0.0.

Every tensor is one entry: name, bit width, symmetry, and a list of scales and offsets (one, or one per channel).
Offsets are on the unsigned grid and have AIMET's sign: `offset = -zero_point`, less `2^(bits - 1)` where the grid is
signed. A tensor that only moves the values of another repeats that one's entry. Source: AIMET 2.42,
`sim.onnx.export(..., encoding_version="1.0.0")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qatflow import __version__
from qatflow.quant.grid import Encoding
from qatflow.quant.placement import Placement
from qatflow.recipe import Calibration, Precision

VERSION = "1.0.0"
SCHEMES = {"minmax": "min_max", "percentile": "percentile", "sqnr": "post_training_tf_enhanced"}
SCHEMES |= {"entropy": "entropy", "auto": "auto"}
"""AIMET's names of the calibration methods."""


def aimet_encodings(
    placement: Placement, encodings: Mapping[str, Encoding], precision: Precision, calibration: Calibration
) -> dict[str, Any]:
    """Return the content of an encodings file.

    Parameters are named as in the model's state dict, activations as the tensors of the captured graph.

    Args:
        placement: which tensors are quantized.
        encodings: of every one of them, by its name in the placement.
        precision: told in `quantizer_args`.
        calibration: likewise.
    """
    activations, parameters = [], []
    for point in placement.points:
        encoding = encodings[point.tensor]
        if point.parameter is not None:
            parameters.append(_entry(point.parameter, encoding))
        else:
            activations.append(_entry(point.tensor, encoding))
    activations += [_entry(name, encodings[source]) for name, source in placement.tied.items()]
    return {
        "producer": {"package": "qatflow", "version": __version__},
        "version": VERSION,
        "activation_encodings": activations,
        "param_encodings": parameters,
        "excluded_layers": sorted({left.layer for left in placement.floats}),
        "quantizer_args": {
            "quant_scheme": SCHEMES[calibration.activations],
            "param_bitwidth": precision.weights,
            "activation_bitwidth": precision.activations,
            "dtype": "int",
            "is_symmetric": True,
            "per_channel_quantization": precision.per_channel,
        },
    }


def _entry(name: str, encoding: Encoding) -> dict[str, Any]:
    grid = encoding.grid
    shift = 2 ** (grid.bits - 1) if grid.signed else 0
    zero_points = encoding.zero_point.reshape(-1).tolist()
    return {
        "name": name,
        "dtype": "INT",
        "bw": grid.bits,
        "is_sym": grid.symmetric,
        "scale": encoding.scale.reshape(-1).tolist(),
        "offset": [-int(zero_point) - shift for zero_point in zero_points],
        "enc_type": "PER_TENSOR" if encoding.axis is None else "PER_CHANNEL",
    }
