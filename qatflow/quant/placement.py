"""Placement: which tensors of a graph get a quantizer, by a target's table.

One engine applies every table. Simulation, encodings and exported files read the same placement, so they cannot
disagree. A tensor that no rule covers stays in float and is listed with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from qatflow.errors import PlacementError
from qatflow.graph.layers import Layer, weighted_layers
from qatflow.graph.ops import argument, clip_bounds, is_float_tensor, kind, module_path
from qatflow.graph.surgery import sole_user
from qatflow.quant.grid import Grid
from qatflow.quant.target import Target
from qatflow.recipe import Precision


@dataclass(frozen=True)
class Point:
    """One quantizer."""

    tensor: str
    """Name of the graph's node whose value is quantized."""
    layer: str
    """Module path of that node, for people."""
    grid: Grid
    parameter: str | None = None
    """Name of the parameter, for a weight; None for an activation."""
    axis: int | None = None
    """Channel axis; None is one scale for the tensor."""
    fixed_range: tuple[float, float] | None = None
    """A range that need not be calibrated."""


@dataclass(frozen=True)
class LeftInFloat:
    """One tensor without a quantizer, and why."""

    tensor: str
    layer: str
    op: str
    reason: str


@dataclass
class Placement:
    """Every quantizer of one graph, in the order of the graph."""

    points: list[Point] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)
    """Tensors that share the encoding of another: `{tensor: tensor with the quantizer}`."""
    floats: list[LeftInFloat] = field(default_factory=list)


def place(graph: fx.GraphModule, target: Target, precision: Precision) -> Placement:
    """Return the placement that a target's table yields for a graph.

    Raises:
        PlacementError: the table matches no weighted layer.
    """
    return _Placer(graph, target, precision).run()


class _Placer:
    """One walk over a graph; collects the tensors that need a quantizer."""

    def __init__(self, graph: fx.GraphModule, target: Target, precision: Precision) -> None:
        self.graph = graph
        self.target = target
        self.precision = precision
        self.layers = {layer.node: layer for layer in weighted_layers(graph)}
        self.needed: set[fx.Node] = set()
        self.inside: set[fx.Node] = set()
        self.placement = Placement()

    def run(self) -> Placement:
        weights: dict[str, Point] = {}
        for node in self.graph.graph.nodes:
            if kind(node) not in self.target.quantized or not is_float_tensor(node):
                continue
            layer = self.layers.get(node)
            if layer is not None:
                weights.setdefault(layer.weight, self._weight_point(layer))
            for source in self._inputs(node, layer):
                self._need(source)
            self._need(self._end_of_chain(node))
        if not weights:
            found = sorted({layer.kind for layer in self.layers.values()}) or ["none"]
            message = (
                f"target {self.target.name} quantizes no weighted layer of this model (weighted layers found: "
                f"{', '.join(found)}): there is nothing to simulate"
            )
            raise PlacementError(message)
        for node in self.graph.graph.nodes:
            if node in self.needed:
                self.placement.points.append(self._activation_point(node))
            elif node.op == "get_attr" and str(node.target) in weights:
                self.placement.points.append(weights[str(node.target)])
            elif is_float_tensor(node) and self._origin(node) in self.needed:
                self.placement.tied[node.name] = self._origin(node).name
            else:
                self._list_float(node)
        return self.placement

    def _inputs(self, node: fx.Node, layer: Layer | None) -> list[fx.Node]:
        """The float tensors that an op reads, but for a layer's own weight and for biases."""
        if layer is not None:
            return [layer.input]
        sources = list(node.all_input_nodes)
        if kind(node) in self.target.weight_axis:
            bias = argument(node, 2, "bias")
            sources = [source for source in sources if source is not bias]
        return [source for source in sources if is_float_tensor(source)]

    def _need(self, node: fx.Node) -> None:
        """Note that a tensor must be quantized: itself, or the one whose encoding it shares."""
        self.needed.add(self._origin(node))

    def _origin(self, node: fx.Node) -> fx.Node:
        """Return the tensor whose values `node` only moves; itself where it computes them."""
        while kind(node) in self.target.preserving:
            source = node.args[0]
            if not isinstance(source, fx.Node):
                break
            if not is_float_tensor(source) and kind(source) not in self.target.preserving:
                break
            node = source
        return node

    def _end_of_chain(self, node: fx.Node) -> fx.Node:
        """Follow the ops that run as one with `node`; returns the last one."""
        user = sole_user(node)
        while user is not None and (kind(node), kind(user)) in self.target.fused and _is_plain(user):
            self.inside.add(node)
            node, user = user, sole_user(user)
        return node

    def _weight_point(self, layer: Layer) -> Point:
        axis = self.target.weight_axis[layer.kind] if self.precision.per_channel else None
        node = argument(layer.node, 1, "weight")
        grid = self.target.weight_grid(self.precision.weights)
        return Point(node.name, layer.name, grid, parameter=layer.weight, axis=axis)

    def _activation_point(self, node: fx.Node) -> Point:
        grid = self.target.activation_grid(self.precision.activations)
        return Point(
            node.name, module_path(node) or node.name, grid, fixed_range=self.target.fixed_ranges.get(kind(node))
        )

    def _list_float(self, node: fx.Node) -> None:
        """List a float result that nothing covers."""
        if node.op != "call_function" or not is_float_tensor(node):
            return
        if node in self.inside:
            return
        op = str(node.target)
        known = kind(node)
        reason = (
            f"{self.target.name} runs {op} in float"
            if known == "other" or known not in self.target.quantized
            else f"the weight of {op} is computed, not a parameter"
        )
        self.placement.floats.append(LeftInFloat(node.name, module_path(node) or node.name, op, reason))


def _is_plain(node: fx.Node) -> bool:
    """Tell whether a clip has number bounds, which a grid can reproduce; every other kind is plain."""
    if kind(node) != "clip":
        return True
    try:
        low, _ = clip_bounds(node)
    except TypeError:
        return False
    return low <= 0
