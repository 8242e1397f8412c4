"""Operators as torch registers them: which change their input, and which give a view of it.

The class of a registered operator and its schema are private in torch, so they are touched here and nowhere else.
"""

from __future__ import annotations

from torch import _ops, fx

from qatflow.graph.ops import aten

Operator = _ops.OpOverload
"""`aten.relu.default`: one overload of one operator."""


def changes_its_input(operator: Operator) -> bool:
    """Tell whether an operator works in place."""
    return bool(operator._schema.is_mutable)


def functional_twin(operator: Operator) -> Operator | None:
    """Return `aten.relu.default` for `aten.relu_.default`; None where there is none."""
    name = operator._schema.name.split("::")[-1]
    packet = getattr(aten, name[:-1], None) if name.endswith("_") else None
    overload = getattr(packet, operator._overloadname, None) if packet is not None else None
    return overload if isinstance(overload, Operator) else None


def is_view(node: fx.Node) -> bool:
    """Tell whether a node's result may share memory with its input."""
    if node.op != "call_function" or not isinstance(node.target, Operator):
        return node.op == "call_function"
    returns = node.target._schema.returns
    return not changes_its_input(node.target) and any(result.alias_info is not None for result in returns)
