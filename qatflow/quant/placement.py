"""Placement: which tensors of a graph get a quantizer, by a target's table.

One engine applies every table. Simulation, encodings and exported files read the same placement, so they cannot
disagree. A tensor that no rule covers stays in float and is listed with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from qatflow.errors import PlacementError
from qatflow.graph.constants import constant_nodes, shape_only_nodes
from qatflow.graph.layers import weighted_layers
from qatflow.graph.ops import KINDS, WEIGHTED, argument, is_float_tensor, kind, module_path
from qatflow.graph.surgery import sole_user
from qatflow.quant.fusion import find_chains
from qatflow.quant.grid import Grid
from qatflow.quant.layer_precision import LayerPrecisions
from qatflow.quant.network import Network
from qatflow.quant.softmax_view import SoftmaxView, softmax_view
from qatflow.quant.target import Parameter, Target
from qatflow.quant.wanted import wanted_tensors
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
    shares: str | None = None
    """The tensor whose encoding this one has; None is its own."""
    readers: tuple[str, ...] | None = None
    """Names of the nodes that read it quantized; None is all of them."""
    softmax: SoftmaxView | None = None
    """Set where only a softmax reads it: what lies far below a row's largest value then does not matter."""
    from_float: bool = False
    """Whether the op that gives it runs in float, so that only its result is on a grid."""


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
    """Tensors that only move the values of another: `{tensor: tensor with the quantizer}`."""
    inside: dict[str, str] = field(default_factory=dict)
    """Tensors inside a chain that runs as one op: `{tensor: last tensor of the chain}`."""
    floats: list[LeftInFloat] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    """Names of the weighted layers found."""
    float_layers: list[LeftInFloat] = field(default_factory=list)
    """Those of them that stay in float."""


def place(network: Network) -> Placement:
    """Return the placement that a network's design yields for its graph.

    Raises:
        PlacementError: the table matches no weighted layer, or has no grid that the precision asks for.
        RecipeError: a pattern of `precision.overrides` matches no layer and no tensor.
    """
    target, precision = network.design.target, network.design.precision
    if target.activations_symmetric and precision.activations_symmetric is False:
        message = f"target {target.name} has symmetric activations only: leave precision.activations_symmetric out"
        raise PlacementError(message)
    return _Placer(network.graph, target, precision).run()


class _Placer:
    """Turns what a target wants of a graph into quantizers, and accounts for every other tensor."""

    def __init__(self, graph: fx.GraphModule, target: Target, precision: Precision) -> None:
        self.graph = graph
        self.target = target
        self.precision = precision
        self.constant = constant_nodes(graph)
        self.shape_only = shape_only_nodes(graph)
        self.layers = {layer.node: layer for layer in weighted_layers(graph)}
        self.special = LayerPrecisions(graph, precision, self.layers)
        self.active = {node for node in graph.graph.nodes if self._is_active(node)}
        computing = [node for node in graph.graph.nodes if node.op == "call_function" and node not in self.constant]
        self.fusion = find_chains(graph, target, computing)
        self.wanted = wanted_tensors(graph, target, self.active, self.constant, self.fusion)
        self.groups = self._groups()
        self.quantized = {*self.wanted.readers, *self.wanted.moved}
        self.left = self._leave_named_tensors()
        self.placement = Placement(inside=self._chain_ends())

    def _is_active(self, node: fx.Node) -> bool:
        """Tell whether an op may run on integers."""
        if node in self.constant or (node.op != "call_function" and not is_float_tensor(node)):
            return False
        if kind(node) in WEIGHTED and node not in self.layers:
            return False
        if node in self.shape_only and node.op == "call_function" and kind(node) not in WEIGHTED:
            return False  # positions and masks: the same for every input, and often of a range no grid holds
        return not self.special.float_because_of(node)

    def _chain_ends(self) -> dict[str, str]:
        inside = {}
        for root, end in self.fusion.ends.items():
            node: fx.Node | None = root
            while node is not None and node is not end:
                inside[node.name] = end.name
                node = sole_user(node)
        return inside

    def _groups(self) -> dict[fx.Node, list[fx.Node]]:
        """Return all tensors on one grid, those that only move values included, by the first of them."""
        found: dict[fx.Node, list[fx.Node]] = {}
        for node in (*self.wanted.readers, *self.wanted.moved):
            found.setdefault(self.wanted.leader(node), []).append(node)
        return found

    def _leave_named_tensors(self) -> dict[fx.Node, str]:
        """Take out tensors that a pattern leaves in float by their name, with all on the same grid; returns why."""
        left: dict[fx.Node, str] = {}
        for group in self.groups.values():
            if why := next(filter(None, map(self.special.float_tensor_because_of, group)), ""):
                left |= dict.fromkeys(group, why)
        for node in left:
            self.wanted.readers.pop(node, None)
            self.wanted.moved.pop(node, None)
        return left

    def run(self) -> Placement:
        parameters = self._parameter_points()
        self._account_for_layers(parameters)
        weighted = {user for node in parameters for user in node.users}
        by = set().union(*self.wanted.by.values()) | set(self.wanted.readers) | set(self.fusion.ends)
        self.special.check_effect(weighted, by, self.quantized | self._parameters(), self.target.name)
        for node in self.graph.graph.nodes:
            if node.op == "get_attr" and node in parameters:
                self.placement.points.append(parameters[node])
            elif node in self.wanted.readers:
                self.placement.points.append(self._activation_point(node, parameters))
            elif node in self.wanted.moved:
                self.placement.tied[node.name] = self.wanted.origin(node).name
            elif node.name not in self.placement.inside:
                self._list_float(node)
        return self.placement

    def _parameter_points(self) -> dict[fx.Node, Point]:
        """Return the quantizers of parameters, by the node that reads each."""
        found: dict[fx.Node, Point] = {}
        for node in self.graph.graph.nodes:
            if node not in self.active:
                continue
            for rule in self.target.parameters_of(kind(node)):
                operand = _parameter(node, rule)
                if operand is not None and not self.special.float_tensor_because_of(operand):
                    found.setdefault(operand, self._parameter_point(node, operand, rule))
        return found

    def _parameters(self) -> set[fx.Node]:
        """Return the parameters that the table has quantized, those that a pattern leaves in float as well."""
        ruled = ((node, rule) for node in self.active for rule in self.target.parameters_of(kind(node)))
        return {operand for node, rule in ruled if (operand := _parameter(node, rule)) is not None}

    def _parameter_point(self, node: fx.Node, operand: fx.Node, rule: Parameter) -> Point:
        said = [one for one in (self.special.of_tensor(operand), self.special.of(node)) if one is not None]
        bits = next((one.weights for one in said if one.weights is not None), self.precision.weights)
        per_channel = next((one.per_channel for one in said if one.per_channel is not None), self.precision.per_channel)
        axis = rule.axis
        if axis is not None and axis < 0:
            axis += operand.meta["val"].dim()
        grid = self.target.weight_grid(bits, rule.symmetric and self.precision.weights_symmetric)
        name = self.layers[node].name if node in self.layers else module_path(node) or operand.name
        return Point(operand.name, name, grid, parameter=str(operand.target), axis=axis if per_channel else None)

    def _account_for_layers(self, parameters: dict[fx.Node, Point]) -> None:
        """List the weighted layers and which of them stay in float.

        Raises:
            PlacementError: all do.
        """
        quantized = 0
        kinds = set()
        for node in self.graph.graph.nodes:
            if kind(node) not in WEIGHTED or node in self.constant:
                continue
            kinds.add(kind(node))
            name = self._name(node)
            self.placement.layers.append(name)
            if node in self.active and argument(node, 1, "weight") in parameters:
                quantized += 1
            else:
                self.placement.float_layers.append(LeftInFloat(node.name, name, str(node.target), self._reason(node)))
        if not quantized:
            reasons = sorted({left.reason for left in self.placement.float_layers})
            found = f"{', '.join(sorted(kinds)) or 'none'}{'; ' if reasons else ''}{'; '.join(reasons)}"
            message = (
                f"target {self.target.name} quantizes no weighted layer of this model (weighted layers found: "
                f"{found}): there is nothing to simulate"
            )
            raise PlacementError(message)

    def _activation_point(self, node: fx.Node, parameters: dict[fx.Node, Point]) -> Point:
        leader = self.wanted.leader(node)
        group = self.groups[leader]
        members = [one for one in group if one in self.wanted.readers]
        givers = {op for member in members for op in self._chain_of(member)}
        takers = {op for member in members for op in self.wanted.by[member]} - givers
        bits = self.special.activation_bits(givers | takers, group, self.precision.activations)
        asked = kind(node) != "softmax" and any(
            kind(op) in self.target.symmetric_inputs and parameters.keys().isdisjoint(op.all_input_nodes)
            for op in takers
        )
        symmetric = True if asked else self.precision.activations_symmetric
        readers = self.wanted.readers[node]
        fixed = self.target.fixed_range(kind(node), bits) if len(members) == 1 else None
        return Point(
            node.name,
            self._name(node),
            self.target.activation_grid(bits, symmetric),
            fixed_range=fixed,
            shares=None if leader is node else leader.name,
            readers=None if readers is None else tuple(sorted(reader.name for reader in readers)),
            from_float=node.op == "call_function"
            and node not in self.fusion.ends.values()
            and (node not in self.active or kind(node) not in self.target.integer_kinds),
            softmax=softmax_view(node),
        )

    def _chain_of(self, end: fx.Node) -> list[fx.Node]:
        """Return the ops of the chain that ends with `end`, itself included."""
        return [end, *(root for root, last in self.fusion.ends.items() if last is end)]

    def _list_float(self, node: fx.Node) -> None:
        """List a float result that nothing covers, and a float weight with the op that reads it."""
        if not is_float_tensor(node):
            return
        if node.op == "get_attr":
            readers = [reader for reader in node.users if reader not in self.constant]
            if node.meta["val"].dim() > 1 and readers:
                layer, reader = str(node.target).rpartition(".")[0] or str(node.target), readers[0]
                self.placement.floats.append(LeftInFloat(node.name, layer, _op(reader), self._reason(reader)))
            return
        if node.op != "call_function" or node in self.shape_only:
            return
        self.placement.floats.append(LeftInFloat(node.name, self._name(node), _op(node), self._reason(node)))

    def _float_weight(self, node: fx.Node) -> str:
        weight = argument(node, 1, "weight") if kind(node) in WEIGHTED else None
        return self.special.float_tensor_because_of(weight) if isinstance(weight, fx.Node) else ""

    def _name(self, node: fx.Node) -> str:
        return self.layers[node].name if node in self.layers else module_path(node) or node.name

    def _reason(self, node: fx.Node) -> str:
        """Say why an op's result, or its weight, stays in float."""
        said = self.special.float_because_of(node) or self.left.get(node) or self._float_weight(node)
        known = kind(node)
        if said:
            return f"{said} leaves it in float"
        if known in WEIGHTED and node not in self.layers:
            return f"the weight of {_op(node)} is computed from the model's inputs, not a parameter"
        if node in self.fusion.ends.values() or known in self.target.integer_kinds:
            return "nothing that runs on integers reads it"
        return f"{self.target.name} runs {_op(node)} in float"


def _parameter(node: fx.Node, rule: Parameter) -> fx.Node | None:
    """Return the parameter that an op reads where a rule says; None where something else stands there."""
    operand = node.args[rule.operand] if len(node.args) > rule.operand else None
    stored = isinstance(operand, fx.Node) and operand.op == "get_attr" and is_float_tensor(operand)
    return operand if stored else None  # type: ignore[return-value]


def _op(node: fx.Node) -> str:
    """Name an op for people: `aten.gelu`; of a part of several results, the op that gives them."""
    while kind(node) == "getitem" and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return str(node.target).rpartition(".")[0] if node.target in KINDS or "." in str(node.target) else str(node.target)
