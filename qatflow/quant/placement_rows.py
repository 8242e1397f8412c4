"""A placement as lines to be read by people, one a tensor, in the order of the graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qatflow.graph.ops import kind
from qatflow.quant.grid import Grid
from qatflow.quant.placement import Placement, Point


@dataclass(frozen=True)
class Row:
    """One tensor: what gives it, where, and how it is quantized."""

    tensor: str
    op: str
    """Kind of the op that gives it, or `weight`."""
    layer: str
    how: str
    """Its grid; or `float: ` and why; or the tensor that it is one with."""


def placement_rows(graph: fx.GraphModule, placement: Placement) -> list[Row]:
    """Return one row for every tensor that the placement speaks of."""
    kinds = {node.name: kind(node) for node in graph.graph.nodes}
    names = {node.name: str(node.target) if node.op == "get_attr" else node.name for node in graph.graph.nodes}
    rows = {point.tensor: _of_point(point, kinds) for point in placement.points}
    rows |= {name: Row(name, kinds[name], "", f"moves values of {source}") for name, source in placement.tied.items()}
    rows |= {name: Row(name, kinds[name], "", f"fused, up to {end}") for name, end in placement.inside.items()}
    for left in placement.floats:
        rows[left.tensor] = Row(names[left.tensor], kinds[left.tensor], left.layer, f"float: {left.reason}")
    return [rows[node.name] for node in graph.graph.nodes if node.name in rows]


def grid_text(grid: Grid) -> str:
    """Name a grid: `uint8 asymmetric`, `int4 symmetric narrow`."""
    kind = f"{'int' if grid.signed else 'uint'}{grid.bits} {'symmetric' if grid.symmetric else 'asymmetric'}"
    return kind + (" narrow" if grid.narrow else "")


def _of_point(point: Point, kinds: dict[str, str]) -> Row:
    op = "weight" if point.parameter else kinds[point.tensor]
    return Row(point.parameter or point.tensor, op, point.layer, _how(point))


def _how(point: Point) -> str:
    parts = [grid_text(point.grid)]
    if point.parameter:
        parts.append("per tensor" if point.axis is None else f"per channel of axis {point.axis}")
    if point.fixed_range:
        low, high = point.fixed_range
        parts.append(f"range {low:g} to {high:g}")
    if point.shares:
        parts.append(f"one grid with {point.shares}")
    if point.readers is not None:
        parts.append(f"only for {', '.join(point.readers)}")
    if point.from_float:
        parts.append("computed in float")
    return ", ".join(parts)
