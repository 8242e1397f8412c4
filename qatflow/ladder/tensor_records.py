"""Records about the tensors of a candidate: every quantizer with its grid and its error, and what stays in float."""

from __future__ import annotations

import torch
from torch import Tensor

from qatflow.graph.layers import tensor
from qatflow.graph.padding import observe_real
from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate
from qatflow.quant.grid import Encoding
from qatflow.quant.placement import Point, place
from qatflow.quant.saved import finite
from qatflow.results.result import FloatTensor, TensorRecord

SAMPLES = 64
"""Calibration samples behind the SQNR of activations."""


def tensors(bench: Bench, candidate: Candidate) -> tuple[TensorRecord, ...]:
    """Return one record per quantizer, in the order of the graph.

    `sqnr_db` is that of the tensor itself, float against rounded: the quantizer's own error, without what came before.
    """
    placement = place(candidate.network)
    points = {point.tensor: point for point in placement.points}
    powers = _activation_powers(bench, candidate, points)
    records = []
    for point in placement.points:
        encoding = candidate.encodings[point.tensor]
        if point.parameter is not None:
            powers[point.tensor] = _power(tensor(candidate.network.graph, point.parameter), encoding)
        records.append(_record(point, encoding, powers[point.tensor]))
    return tuple(records)


def float_tensors(candidate: Candidate) -> tuple[FloatTensor, ...]:
    """Return one record per tensor that stays in float, with the reason."""
    return tuple(
        FloatTensor(layer=left.layer, tensor=left.tensor, op=left.op, reason=left.reason)
        for left in place(candidate.network).floats
    )


def _activation_powers(bench: Bench, candidate: Candidate, points: dict[str, Point]) -> dict[str, Tensor]:
    """Return the power of signal and noise of every quantized activation, shape `[2]`, float64."""
    graph = candidate.network.graph
    chosen = [node for node in graph.graph.nodes if node.name in points and points[node.name].parameter is None]
    powers: dict[str, Tensor] = {}

    def see(node: torch.fx.Node, value: Tensor) -> None:
        power = _power(value, candidate.encodings[node.name])
        powers[node.name] = powers[node.name] + power if node.name in powers else power

    observe_real(graph, chosen, bench.task.calibration_inputs(SAMPLES), see)
    return powers


def _power(value: Tensor, encoding: Encoding) -> Tensor:
    value = value.detach()
    noise = encoding.dequantize(encoding.quantize(value)) - value
    return torch.stack([value.double().square().sum(), noise.double().square().sum()])


def _record(point: Point, encoding: Encoding, power: Tensor) -> TensorRecord:
    scale, zero_points = encoding.scale.reshape(-1), encoding.zero_point.reshape(-1)
    signal, noise = power.tolist()
    sqnr = 10 * torch.log10(torch.tensor(signal / noise)).item() if noise > 0 and signal > 0 else float("nan")
    return TensorRecord(
        layer=point.layer,
        tensor=point.parameter or point.tensor,
        kind="weight" if point.parameter else "activation",
        bits=encoding.grid.bits,
        signed=encoding.grid.signed,
        symmetric=encoding.grid.symmetric,
        channels=len(scale),
        scale_min=float(scale.min()),
        scale_max=float(scale.max()),
        range_min=float(encoding.low.min()),
        range_max=float(encoding.high.max()),
        zero_point=int(zero_points[0]) if bool((zero_points == zero_points[0]).all()) else None,
        sqnr_db=finite(sqnr),
    )
