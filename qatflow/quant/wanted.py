"""Which tensors of a graph a target wants quantized, for which readers, and which of them share a grid.

Two ways of placing: behind the op that gives a tensor, for all its readers (the runtime has one Q per tensor), or
before the ops that want it (the runtime quantizes inputs and fuses what lies between). Both move a quantizer up
through ops that only move values, so that those run on integers too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from torch import fx

from qatflow.graph.ops import is_attention_mask, is_divisor, is_float_tensor, kind, scores_of
from qatflow.graph.outputs import leaving
from qatflow.graph.surgery import value_readers
from qatflow.quant.fusion import Fusion
from qatflow.quant.target import Target

ONE_DATA_INPUT = frozenset(
    {
        "conv",
        "conv_transpose",
        "linear",
        "batch_norm",
        "layer_norm",
        "group_norm",
        "instance_norm",
        "rms_norm",
        "prelu",
        "lstm",
        "gru",
    }
)
"""Kinds whose other inputs are parameters."""


@dataclass
class Wanted:
    """The tensors that a target wants quantized.

    Attributes:
        readers: for each tensor with a quantizer, the ops that read it quantized; None is all of them.
        by: the ops because of which it has one.
        moved: for each tensor that only moves values of a quantized one, that one's.
        leaders: for each tensor that shares its grid with others, the first of them.
    """

    readers: dict[fx.Node, set[fx.Node] | None] = field(default_factory=dict)
    by: defaultdict[fx.Node, set[fx.Node]] = field(default_factory=lambda: defaultdict(set))
    moved: dict[fx.Node, fx.Node] = field(default_factory=dict)
    leaders: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def origin(self, node: fx.Node) -> fx.Node:
        """Return the tensor with the quantizer whose values `node` has."""
        while node in self.moved:
            node = self.moved[node]
        return node

    def leader(self, node: fx.Node) -> fx.Node:
        """Return the tensor whose encoding `node` has."""
        node = self.origin(node)
        while self.leaders.get(node, node) is not node:
            node = self.origin(self.leaders[node])
        return node

    def unite(self, nodes: Collection[fx.Node], order: dict[fx.Node, int]) -> None:
        """Let some tensors share one grid, under the first of them."""
        leaders = {self.leader(node) for node in nodes}
        first = min(leaders, key=order.__getitem__)
        self.leaders.update(dict.fromkeys(leaders, first))


def data_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the float tensors that an op computes with; its own weights, biases and masks are left out."""
    known = kind(node)
    if known == "embedding":
        return []
    sources = node.all_input_nodes
    if known in ONE_DATA_INPUT:
        sources = [source for source in node.args[:1] if isinstance(source, fx.Node)]
    elif known == "attention":
        sources = [source for source in node.args[:3] if isinstance(source, fx.Node)]
    elif known == "div":
        sources = [source for source in sources if source is node.args[0]]  # a divisor must not be rounded to zero
    elif known == "attention_bias":
        sources = [source for source in sources if source is scores_of(node)]  # a mask may be minus infinity
    return [source for source in sources if is_float_tensor(source) and not _is_empty(source)]


def _is_empty(node: fx.Node) -> bool:
    """Tell whether a tensor has no value, as a cache has before its first use."""
    return any(isinstance(size, int) and size == 0 for size in node.meta["val"].shape)


def wanted_tensors(
    graph: fx.GraphModule, target: Target, active: Collection[fx.Node], constant: set[fx.Node], fusion: Fusion
) -> Wanted:
    """Return what the target wants quantized.

    Args:
        graph: the float graph.
        target: the table.
        active: ops that may run on integers: known to the table, not excluded by the recipe.
        constant: nodes that do not depend on the graph's inputs.
        fusion: the target's chains in the graph.
    """
    walk = (_AtProducers if target.at == "producer" else _AtReaders)(graph, target, constant, fusion)
    for node in graph.graph.nodes:
        if node in active:
            walk.visit(node)
    walk.finish()
    return walk.wanted


class _AtProducers:
    """One quantizer a tensor, behind the op that gives it."""

    def __init__(self, graph: fx.GraphModule, target: Target, constant: set[fx.Node], fusion: Fusion) -> None:
        self.target = target
        self.constant = constant
        self.fusion = fusion
        self.chain_ends = set(fusion.ends.values())
        self.asked: set[tuple[fx.Node, fx.Node]] = set()
        self.order = {node: position for position, node in enumerate(graph.graph.nodes)}
        concats = [node for node in graph.graph.nodes if kind(node) == "concat"]
        self.leaving = {one for node in concats for one in leaving(node)}
        self.wanted = Wanted()

    def visit(self, node: fx.Node) -> None:
        """Ask for what the rules of an op's kind want.

        A concatenation that only leaves the model gets no grid: what is in it keeps its own, so that scores of 0 to 1
        are not lost beside boxes in pixels.
        """
        if node in self.leaving:
            return
        if kind(node) in self.target.inputs:
            for source in data_inputs(node):
                if source not in self.fusion.inside and not _is_own_parameter(node, source, self.target):
                    self._want(source, node)
        if kind(node) in self.target.outputs and node not in self.fusion.inside and is_float_tensor(node):
            self._want(node, node)
        elif kind(node) in self.target.outputs and node in self.fusion.ends:
            self._want(self.fusion.ends[node], node)

    def finish(self) -> None:
        """Nothing is left to do."""

    def _want(self, node: fx.Node, by: fx.Node) -> None:
        """Note that a tensor must be quantized: itself, or those whose grid it has."""
        if (node, by) in self.asked:
            return
        self.asked.add((node, by))
        if is_attention_mask(node) or is_divisor(node):
            return  # one may hold minus infinity, the other must not become zero
        known = kind(node)
        if node not in self.constant and node not in self.chain_ends:
            if known in self.target.preserving and (source := moved_from(node, self.target)) is not None:
                self.wanted.moved[node] = source
                self._want(source, by)
                return
            if known in self.target.tied:
                sources = data_inputs(node)
                for source in sources:
                    self._want(source, by)
                self.wanted.unite(sources, self.order)
                self.wanted.moved[node] = sources[0]
                return
            if known in self.target.sharing:
                (source, *_) = data_inputs(node)
                self._want(source, by)
                self.wanted.unite([source, node], self.order)
        self.wanted.readers[node] = None
        self.wanted.by[node].add(by)


class _AtReaders:
    """Quantizers before the ops that want them; other readers of the tensor see floats."""

    def __init__(self, graph: fx.GraphModule, target: Target, constant: set[fx.Node], fusion: Fusion) -> None:
        self.nodes = list(graph.graph.nodes)
        self.target = target
        self.constant = constant
        self.fusion = fusion
        self.order = {node: position for position, node in enumerate(graph.graph.nodes)}
        self.edges: defaultdict[fx.Node, set[fx.Node]] = defaultdict(set)
        self.ties: list[list[fx.Node]] = []
        self.wanted = Wanted()

    def visit(self, node: fx.Node) -> None:
        """Ask for what the rules of an op's kind want."""
        if kind(node) not in self.target.inputs:
            return
        sources = data_inputs(node)
        if kind(node) == "add" and self.target.residual == "skip_input":
            branches = self.fusion.joins.get(node, [])
            sources = [source for source in sources if source not in branches] if len(branches) == 1 else []
        for source in sources:
            if source not in self.fusion.inside and not _is_own_parameter(node, source, self.target):
                self.edges[source].add(node)
                self.wanted.by[source].add(node)

    def finish(self) -> None:
        """Move quantizers up through what only moves values, last op first, and note where they stand."""
        for node in reversed(self.nodes):
            if node in self.constant or node.op != "call_function" or not self._all_want(node):
                continue
            known = kind(node)
            if known in self.target.tied:
                self._move(node, data_inputs(node))
            elif known in self.target.preserving and known != "getitem":
                source = moved_from(node, self.target)
                if source is not None and source not in self.fusion.inside:
                    self._move(node, [source])
        for tie in self.ties:
            self.wanted.unite(tie, self.order)
        for node, readers in self.edges.items():
            if readers:
                self.wanted.readers[node] = None if readers == value_readers(node) else readers

    def _all_want(self, node: fx.Node) -> bool:
        """Tell whether every reader of an op's result wants it quantized; of several results, of every one."""
        if is_float_tensor(node):
            return bool(node.users) and self.edges[node] == value_readers(node)
        parts = [user for user in node.users if is_float_tensor(user)]
        return bool(parts) and all(kind(part) == "getitem" and self._all_want(part) for part in parts)

    def _move(self, node: fx.Node, sources: list[fx.Node]) -> None:
        """Put what stood behind an op before it."""
        results = [node] if is_float_tensor(node) else [user for user in node.users if is_float_tensor(user)]
        for source in sources:
            self.edges[source].add(node)
            for result in results:
                self.wanted.by[source] |= self.wanted.by[result]
        for result in results:
            self.edges.pop(result, None)
            self.wanted.moved[result] = sources[0]
        self.ties.append(sources)


def moved_from(node: fx.Node, target: Target) -> fx.Node | None:
    """Return the float tensor whose values an op of a preserving kind moves; None where there is none."""
    source = node.args[0] if node.args else None
    if isinstance(source, fx.Node) and not is_float_tensor(source) and kind(source) in target.preserving:
        source = source.args[0]  # one of several results
    return source if isinstance(source, fx.Node) and is_float_tensor(source) else None


def _is_own_parameter(node: fx.Node, source: fx.Node, target: Target) -> bool:
    """Tell whether an input of an op is a parameter that has a weight's grid."""
    if source.op != "get_attr":
        return False
    operands = [rule.operand for rule in target.parameters_of(kind(node))]
    return any(len(node.args) > place and node.args[place] is source for place in operands)
