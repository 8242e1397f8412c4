"""Which ops of a graph a target runs as one: its chains, found in the graph."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from torch import fx

from qatflow.graph.ops import clip_bounds, is_float_tensor, kind
from qatflow.graph.surgery import sole_user
from qatflow.quant.target import Target

JOINING = frozenset({"add", "sub", "mul", "div"})
"""Kinds that two chains may meet in."""


@dataclass
class Fusion:
    """The chains of one graph.

    Attributes:
        ends: the last op of the chain that starts at an op; ops without a chain are missing.
        inside: ops of chains but for the last of each: no quantizer stands behind them.
        joins: for an op with several inputs, those of them whose chain could go on with it; it does with the last.
    """

    ends: dict[fx.Node, fx.Node] = field(default_factory=dict)
    inside: set[fx.Node] = field(default_factory=set)
    joins: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)


def find_chains(graph: fx.GraphModule, target: Target, roots: Collection[fx.Node]) -> Fusion:
    """Return the longest chain of `target` from each of `roots`; an op that the recipe leaves in float has one too."""
    fusion = Fusion()
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    beginnings = {sequence[:length] for sequence in target.expanded_chains for length in range(1, len(sequence) + 1)}
    for root in sorted(roots, key=order.__getitem__):
        if root in fusion.inside or (kind(root),) not in beginnings:
            continue
        for before, after in _steps(root, beginnings, target):
            if len(_float_inputs(after)) > 1:
                fusion.joins.setdefault(after, []).append(before)
    chosen = {join: max(branches, key=order.__getitem__) for join, branches in fusion.joins.items()}
    for root in sorted(roots, key=order.__getitem__):
        if (kind(root),) in beginnings:
            _follow(root, target, beginnings, chosen, fusion)
    return fusion


def _steps(root: fx.Node, beginnings: set[tuple[str, ...]], target: Target) -> list[tuple[fx.Node, fx.Node]]:
    """Return the neighbours along which a chain from `root` could go."""
    found = []
    kinds: tuple[str, ...] = (kind(root),)
    node = root
    while (reader := sole_user(node)) is not None and (*kinds, kind(reader)) in beginnings:
        if not _is_plain(reader, target):
            break
        found.append((node, reader))
        node, kinds = reader, (*kinds, kind(reader))
    return found


def _follow(
    root: fx.Node,
    target: Target,
    beginnings: set[tuple[str, ...]],
    chosen: dict[fx.Node, fx.Node],
    fusion: Fusion,
) -> None:
    """Note the longest whole chain from `root`; where two chains meet, only the chosen one goes on."""
    kinds: tuple[str, ...] = (kind(root),)
    passed, inside = [root], 0
    for before, after in _steps(root, beginnings, target):
        if chosen.get(after, before) is not before:
            break
        kinds = (*kinds, kind(after))
        passed.append(after)
        if kinds in target.expanded_chains:
            inside = len(passed) - 1
    if inside:
        fusion.ends[root] = passed[inside]
        fusion.inside.update(passed[:inside])


def _float_inputs(node: fx.Node) -> list[fx.Node]:
    return [source for source in node.all_input_nodes if is_float_tensor(source)] if kind(node) in JOINING else []


def _is_plain(node: fx.Node, target: Target) -> bool:
    """Tell whether a clip has number bounds and zero on its range, as a grid has, or at its lower end where the target
    wants that; every other kind is plain.
    """
    if kind(node) != "clip":
        return True
    try:
        low, high = clip_bounds(node)
    except TypeError:
        return False
    return low == 0 <= high if target.clips_from_zero else low <= 0 <= high
