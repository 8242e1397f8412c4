"""What a better precision costs: of multiply-accumulates, bit-operations, weights or layers above the recipe's bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qatflow.graph.layers import tensor
from qatflow.quant.relief import Relief, Reliefs

CostKind = Literal["multiply_accumulates", "bit_operations", "average_bits", "size", "layers"]
FLOAT_BITS = 32
UNITS: Mapping[CostKind, str] = {
    "multiply_accumulates": "of the multiply-accumulates",
    "bit_operations": "more bit-operations",
    "average_bits": "bits more for the average weight",
    "size": "MB more of weights",
    "layers": "layers",
}


@dataclass(frozen=True)
class Prices:
    """What must be paid for each tensor, and how much that is.

    Attributes:
        charges: by tensor, keys of `costs`; those of several tensors are paid once.
        costs: by charge.
    """

    charges: Mapping[str, frozenset[str]]
    costs: Mapping[str, float]

    def of(self, chosen: list[str]) -> float:
        """Return what some tensors cost together."""
        return sum(self.costs[one] for one in {charge for tensor in chosen for charge in self.charges[tensor]})


def prices(kind: CostKind, reliefs: Reliefs, work: Mapping[str, int]) -> Prices:
    """Return what every relief costs.

    Args:
        kind: what is counted; see `qatflow.recipe.steps.MixedPrecision`.
        reliefs: all that there are.
        work: multiply-accumulates by node.
    """
    if kind in ("multiply_accumulates", "layers"):
        total = sum(work.values()) if kind == "multiply_accumulates" else 1
        costs = {name: (count if kind == "multiply_accumulates" else 1) / max(total, 1) for name, count in work.items()}
        return Prices({name: one.layers for name, one in reliefs.by_tensor.items()}, costs)
    return _of_bits(reliefs, work) if kind == "bit_operations" else _of_weights(kind, reliefs)


def _of_bits(reliefs: Reliefs, work: Mapping[str, int]) -> Prices:
    precision = reliefs.simulation.design.precision
    weights, activations = precision.weights, precision.activations
    total = sum(work.values()) * weights * activations
    costs = {}
    for name, count in work.items():
        costs[f"{name} float"] = count * (FLOAT_BITS**2 - weights * activations) / total
        for bits in {one.bits for one in reliefs.by_tensor.values()} - {None}:
            assert bits is not None
            costs[f"{name} w{bits}"] = count * max(bits - weights, 0) * activations / total
            costs[f"{name} a{bits}"] = count * weights * max(bits - activations, 0) / total
    parameters = {point.tensor for point in reliefs.simulation.placement.points if point.parameter}

    def charge(one: Relief, name: str) -> str:
        return f"{name} float" if one.bits is None else f"{name} {'w' if one.tensor in parameters else 'a'}{one.bits}"

    charges = {key: frozenset(charge(one, name) for name in one.layers) for key, one in reliefs.by_tensor.items()}
    return Prices(charges, costs)


def _of_weights(kind: CostKind, reliefs: Reliefs) -> Prices:
    graph = reliefs.simulation.network.graph
    points = {point.tensor: point for point in reliefs.simulation.placement.points if point.parameter}
    sizes = {key: tensor(graph, str(point.parameter)).numel() for key, point in points.items()}
    unit = sum(sizes.values()) if kind == "average_bits" else 8e6
    of_layer = {layer.weight: name for name, layer in reliefs.layers.items()}
    costs = {f"{name} float": 0.0 for name in reliefs.working}
    for key, point in points.items():
        costs[key] = sizes[key] * max(8 - point.grid.bits, 0) / unit
        if point.parameter in of_layer:
            costs[f"{of_layer[point.parameter]} float"] = sizes[key] * (FLOAT_BITS - point.grid.bits) / unit
    charges = {
        key: frozenset(f"{name} float" for name in one.layers)
        if one.bits is None
        else frozenset({key} if key in points else ())
        for key, one in reliefs.by_tensor.items()
    }
    return Prices(charges, costs)
