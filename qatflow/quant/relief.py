"""The better precision that each tensor of a simulation can have on its target, what that charges, and how it is said.

An activation gets the next bits that the target has kernels for, or float where it has none; a weight of few bits gets
8. A layer is charged for more bits of what it reads, as bit-operations are counted. One runs in float where its weight
or what it reads does, or, where the target rounds results within the layer, what it gives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import fx

from qatflow.graph.layers import weighted_layers
from qatflow.quant.layer_precision import layer_paths
from qatflow.quant.network import Network
from qatflow.quant.placement import Placement, Point, place
from qatflow.quant.simulation import Simulation
from qatflow.recipe import LayerPrecision

FULL = 8
"""Bits of a weight beyond which no target has integer kernels."""
A_BIT = 4.0
"""How much less power the noise of a grid has for every bit more."""


@dataclass(frozen=True)
class Relief:
    """What one tensor can have instead.

    Attributes:
        tensor: its name in the placement.
        bits: then; None is float.
        left: share of its noise that is left then.
        layers: nodes of the layers and products that run above the recipe's bits then.
    """

    tensor: str
    bits: int | None
    left: float
    layers: frozenset[str]


class Reliefs:
    """What all tensors of a simulation can have instead.

    Args:
        simulation: with the placement to start from.
        working: nodes of the layers and products.
        floats: whether float may be given.
    """

    def __init__(self, simulation: Simulation, working: Collection[str], *, floats: bool = True) -> None:
        self.simulation = simulation
        self.target = simulation.design.target
        self.floats = floats and max(self.target.integer_activations) <= FULL
        self.working = frozenset(working)
        self.layers = {layer.node.name: layer for layer in weighted_layers(simulation.network.graph)}
        self.constants = {node.name for node in simulation.network.graph.graph.find_nodes(op="get_attr")}
        self.named_like_layers = layer_paths(simulation.network.graph)
        self.around = _around(simulation, self.working, gives=self.floats and self.target.at == "producer")
        own = (self._relief(point) for point in simulation.placement.points if point.shares is None)
        self.by_tensor = {one.tensor: one for one in own if one is not None}

    def _relief(self, point: Point) -> Relief | None:
        """Return what a tensor can have instead; None where nothing."""
        around = frozenset(self.around[point.tensor])
        bits = point.grid.bits
        if point.parameter is not None:
            if bits < FULL and FULL in self.target.integer_weights:
                return Relief(point.tensor, FULL, A_BIT ** (bits - FULL), around)
            known = bool(around) and around <= {*self.layers}
            return Relief(point.tensor, None, 0.0, around) if self.floats and known else None
        if point.tensor in self.constants:
            return None  # a recipe cannot name it as an activation
        named = point.tensor not in self.named_like_layers
        more = [one for one in sorted(self.target.integer_activations) if one > bits]
        if more:
            return Relief(point.tensor, more[0], A_BIT ** (bits - more[0]), around) if named else None
        return Relief(point.tensor, None, 0.0, around) if self.floats and (named or around) else None

    def float_layers(self, chosen: Collection[str]) -> set[str]:
        """Return the weighted layers that run in float where some tensors are relieved, by their nodes."""
        floats = {
            node for tensor in chosen if self.by_tensor[tensor].bits is None for node in self.by_tensor[tensor].layers
        }
        return floats & {*self.layers}

    def applied(self, chosen: Collection[str]) -> tuple[Network, dict[str, LayerPrecision]]:
        """Return the network with some tensors relieved, and that as overrides of a recipe.

        Nothing that a recipe could not say itself: layers in float by their names, tensors and weights by theirs.
        """
        reliefs = [self.by_tensor[tensor] for tensor in chosen]
        points = {point.tensor: point for point in self.simulation.placement.points}
        said: dict[str, LayerPrecision] = {}
        floats = {node for one in reliefs if one.bits is None for node in one.layers}
        for node in [node for node in self.layers if node in floats]:
            said[self.layers[node].name] = LayerPrecision(quantized=False)
        network = self._with(said)
        still = place(network)
        for one in reliefs:
            point = points[one.tensor]
            if point.parameter is not None and one.bits is not None and not one.layers & floats:
                said[point.parameter] = LayerPrecision(weights=one.bits)
            elif point.parameter is None and one.bits is not None:
                said[one.tensor] = LayerPrecision(activations=one.bits)
            elif point.parameter is None and self._may_be_named(one.tensor, still):
                said[one.tensor] = LayerPrecision(quantized=False)
        return self._with(said), said

    def _may_be_named(self, tensor: str, placement: Placement) -> bool:
        return tensor not in self.named_like_layers and any(one.tensor == tensor for one in placement.points)

    def _with(self, said: Mapping[str, LayerPrecision]) -> Network:
        network = self.simulation.network
        return network.designed(network.design.with_overrides(said)) if said else network


def _around(simulation: Simulation, working: Collection[str], *, gives: bool) -> dict[str, set[str]]:
    """Return the layers and products that read, or also give, the tensors on each grid, by the grid's first tensor."""
    placement = simulation.placement
    nodes = {node.name: node for node in simulation.network.graph.graph.nodes}
    leaders = {point.tensor: point.shares or point.tensor for point in placement.points}
    ends: defaultdict[str, set[str]] = defaultdict(set)
    for name, end in placement.inside.items():
        ends[end].add(name)
    found: defaultdict[str, set[str]] = defaultdict(set)
    for point in placement.points:
        own = found[leaders[point.tensor]]
        own |= _reading(nodes[point.tensor], working, point.readers)
        if gives and point.parameter is None:
            own |= {point.tensor, *ends[point.tensor]} & set(working)
    for name, source in placement.tied.items():
        if source in leaders:
            found[leaders[source]] |= _reading(nodes[name], working, None)
    return found


def _reading(node: fx.Node, working: Collection[str], readers: tuple[str, ...] | None) -> set[str]:
    return {user.name for user in node.users if user.name in working and (readers is None or user.name in readers)}
