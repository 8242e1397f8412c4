"""Which layers and tensors have another precision than the rest, by patterns and for the first and last layer.

A pattern means layers where it matches any, and else tensors, by the names that files and listings give them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from torch import fx

from qatflow.errors import Mistake, RecipeError, near_match
from qatflow.graph.layers import Layer, weighted_layers
from qatflow.graph.ops import is_float_tensor, module_path
from qatflow.recipe import LayerPrecision, Precision


class LayerPrecisions:
    """The precision of every op and tensor of a graph where it differs from the rest.

    Args:
        graph: the float graph.
        precision: of the design.
        layers: the graph's weighted layers, by their ops.

    Raises:
        RecipeError: a pattern matches no layer and no tensor.
    """

    def __init__(self, graph: fx.GraphModule, precision: Precision, layers: dict[fx.Node, Layer]) -> None:
        self._patterns: dict[str, tuple[LayerPrecision, list[fx.Node]]] = {}
        self._by_op: dict[fx.Node, tuple[str, LayerPrecision]] = {}
        self._by_tensor: dict[fx.Node, tuple[str, LayerPrecision]] = {}
        self._tensor_patterns: set[str] = set()
        if precision.first_layer is not None:
            self._set(_ends(layers, forward=False), "precision.first_layer", precision.first_layer)
        if precision.last_layer is not None:
            self._set(_ends(layers, forward=True), "precision.last_layer", precision.last_layer)
        ops = [node for node in graph.graph.nodes if node.op == "call_function"]
        paths = {node: _paths(node, layers) for node in ops}
        mistakes = []
        for pattern, wanted in precision.overrides.items():
            source = f"precision.overrides[{pattern!r}]"
            matched = [node for node in ops if _matches(pattern, paths[node])]
            tensors = [] if matched else [node for node in graph.graph.nodes if _matches(pattern, _tensor_name(node))]
            self._patterns[pattern] = wanted, matched or tensors
            self._set(matched, source, wanted)
            self._by_tensor.update(dict.fromkeys(tensors, (source, wanted)))
            self._tensor_patterns |= {pattern} if tensors else set()
            if not matched and not tensors:
                mistakes.append(_no_match(pattern, {path for one in paths.values() for path in one}))
        if mistakes:
            raise RecipeError(mistakes)

    def _set(self, nodes: Iterable[fx.Node], source: str, wanted: LayerPrecision) -> None:
        self._by_op.update(dict.fromkeys(nodes, (source, wanted)))

    def of(self, node: fx.Node) -> LayerPrecision | None:
        """Return what is said of an op; None where nothing is."""
        return self._by_op[node][1] if node in self._by_op else None

    def of_tensor(self, node: fx.Node) -> LayerPrecision | None:
        """Return what is said of a tensor by its own name; None where nothing is."""
        return self._by_tensor[node][1] if node in self._by_tensor else None

    def float_because_of(self, node: fx.Node) -> str:
        """Return the recipe's key that leaves an op in float; empty where none does."""
        return _float_key(self._by_op, node)

    def float_tensor_because_of(self, node: fx.Node) -> str:
        """Return the recipe's key that leaves a tensor in float by its own name; empty where none does."""
        return _float_key(self._by_tensor, node)

    def check_effect(
        self,
        weighted: Collection[fx.Node],
        computing: Collection[fx.Node],
        tensors: Collection[fx.Node],
        target: str,
    ) -> None:
        """Check that every pattern changes something.

        Args:
            weighted: ops with a quantized parameter.
            computing: ops that would run on integers, or read or give a quantized tensor.
            tensors: that are quantized.
            target: name of the target, for the message.

        Raises:
            RecipeError: one does not.
        """
        mistakes = []
        for pattern, (wanted, ops) in self._patterns.items():
            by_weight = wanted.weights is not None or wanted.per_channel is not None
            reached = [*(weighted if by_weight else ()), *(computing if wanted.activations is not None else ())]
            named = ops if pattern in self._tensor_patterns else []
            if named:
                reached = [node for node in named if node in tensors and (node.op == "get_attr") == by_weight]
            if not wanted.quantized:
                reached = ops if not named else [node for node in named if node in tensors]
            if not set(ops) & set(reached):
                what = "it" if named else "no weight of it" if by_weight else "no tensor of it"
                problem = f"changes nothing: target {target} {'does not quantize' if named else 'quantizes'} {what}"
                problem += _other_letter(named, tensors, by_weight)
                mistakes.append(Mistake(f"precision.overrides[{pattern!r}]", problem, "remove it"))
        if mistakes:
            raise RecipeError(mistakes)

    def activation_bits(self, ops: Collection[fx.Node], tensors: Collection[fx.Node], default: int) -> int:
        """Return the bits of `tensors` on one grid, which `ops` read and give; what is said of a tensor itself wins."""
        for said in (map(self.of_tensor, tensors), map(self.of, ops)):
            stated = [one.activations for one in said if one is not None and one.activations is not None]
            if stated:
                return max(stated)
        return default


def _float_key(said: Mapping[fx.Node, tuple[str, LayerPrecision]], node: fx.Node) -> str:
    source, wanted = said.get(node, ("", None))
    return source if wanted is not None and not wanted.quantized else ""


def layer_paths(graph: fx.GraphModule) -> set[str]:
    """Return all names that a pattern of the overrides can match in a graph."""
    layers = {layer.node: layer for layer in weighted_layers(graph)}
    return {path for node in graph.graph.nodes if node.op == "call_function" for path in _paths(node, layers)}


def _paths(node: fx.Node, layers: dict[fx.Node, Layer]) -> set[str]:
    """Return the paths of the modules that an op belongs to, the outermost ones included."""
    own = {module_path(node)} | ({layers[node].name} if node in layers else set())
    return {".".join(path.split(".")[:length]) for path in own if path for length in range(1, path.count(".") + 2)}


def _tensor_name(node: fx.Node) -> set[str]:
    """Return the name of a tensor: a parameter's as in the state dict, any other's as in the graph."""
    if node.op == "output" or not is_float_tensor(node):
        return set()
    return {str(node.target) if node.op == "get_attr" else node.name}


def _other_letter(named: Collection[fx.Node], tensors: Collection[fx.Node], by_weight: bool) -> str:
    """Say so where a tensor is quantized, but `w` was written for an activation, or `a` for a weight."""
    if not any(node in tensors for node in named):
        return ""
    return f" as {'a weight' if by_weight else 'an activation'} (write {'a' if by_weight else 'w'} and the bits)"


def _matches(pattern: str, paths: set[str]) -> bool:
    return any(fnmatchcase(path, pattern) for path in paths)


def _no_match(pattern: str, paths: set[str]) -> Mistake:
    names = sorted(paths)
    hint = near_match(pattern.rstrip(".*"), names) or near_match(pattern, names)
    top = ", ".join(sorted({name for name in names if "." not in name}))
    fix = f"{hint} " if hint else ""
    fix += f"the model's parts are {top or '(none)'}; `python -m qatflow.inspect` lists tensors"
    return Mistake(f"precision.overrides[{pattern!r}]", "matches no layer and no tensor", fix)


def _ends(layers: dict[fx.Node, Layer], forward: bool) -> list[fx.Node]:
    """Return the weighted layers behind which (or before which) no other comes."""
    found = []
    for start in layers:
        pending, seen, meets = [start], {start}, False
        while pending and not meets:
            node = pending.pop()
            for near in node.users if forward else node.all_input_nodes:
                if near not in seen:
                    seen.add(near)
                    pending.append(near)
                    meets = meets or near in layers
        if not meets:
            found.append(start)
    return found
