"""Give an exported ONNX model the shape that runtimes like, and names that people can read.

- A stored weight is transposed in the file, not by a Transpose behind its DequantizeLinear.
- A Pad with zeros before a convolution becomes the convolution's own padding.
- Layers are called as in the user's module, inputs and outputs as in its `forward`; the batch dimension is `batch`,
  other free ones have the user's names.
- No Identity, no unread initializer, no stack trace of the exporter is left.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from qatflow.export.onnx_qdq import given_by, same_grid
from qatflow.graph.free import BATCH, Free

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def tidy(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str], free: Free) -> None:
    """Tidy a model with its Q/DQ in place.

    Args:
        model: changed in place.
        inputs: names for its inputs, in order.
        outputs: names for its outputs, in order.
        free: names for the free dimensions of inputs besides the batch.
    """
    for node in list(model.graph):
        if node.op_type == "Transpose":
            _transpose_stored(node)
        elif node.op_type == "Gemm":
            _transpose_gemm(node)
        elif node.op_type == "Conv":
            _take_padding(node)
    for one in (
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
        passes.TopologicalSortPass(),
    ):
        one(model)
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        value.metadata_props.clear()
    _name_layers(model.graph)
    _name_ends(model.graph, inputs, outputs)
    _name_dimensions(model.graph, free)
    passes.NameFixPass()(model)


def _stored(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear of a stored weight that gives a value; None where it is something else."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    return node if node.inputs[0].is_initializer() else None


def _transpose_stored(node: ir.Node) -> None:
    """Turn Transpose behind a stored weight into a stored weight."""
    stored = _stored(node.inputs[0])
    if stored is None or len(stored.outputs[0].uses()) != 1:
        return
    rank = len(stored.inputs[0].shape)  # type: ignore[union-attr, arg-type]
    default = list(reversed(range(rank)))
    _permute(stored, list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else default)
    ir.convenience.replace_all_uses_with(node.outputs[0], stored.outputs[0])


def _transpose_gemm(node: ir.Node) -> None:
    """Store the weight of a Gemm as it multiplies: a runtime packs it either way, a MatMul has no other."""
    stored = _stored(node.inputs[1])
    if stored is None or len(stored.outputs[0].uses()) != 1:
        return
    if "transB" in node.attributes and node.attributes["transB"].as_int():
        _permute(stored, [1, 0])
        node.attributes.pop("transB")


def _permute(stored: ir.Node, order: list[int]) -> None:
    source = stored.inputs[0]
    assert source is not None
    assert source.const_value is not None
    value = np.ascontiguousarray(np.transpose(source.const_value.numpy(), order))
    source.const_value = ir.Tensor(value, dtype=source.dtype, name=source.name)
    source.shape = ir.Shape(value.shape)
    stored.outputs[0].shape = ir.Shape(value.shape)
    if "axis" in stored.attributes:
        axis = order.index(stored.attributes["axis"].as_int())
        stored.attributes["axis"] = ir.AttrInt64("axis", axis)


def _take_padding(node: ir.Node) -> None:
    """Take over the zeros that a Pad, and only for this convolution, puts around its input."""
    chain = []
    value = node.inputs[0]
    for wanted in ("DequantizeLinear", "QuantizeLinear", "Pad"):
        producer = None if value is None else value.producer()
        if producer is not None and producer.op_type == wanted and len(value.uses()) == 1:  # type: ignore[union-attr]
            chain.append(producer)
            value = producer.inputs[0]
    if not chain or chain[-1].op_type != "Pad":
        return
    pad = chain[-1]
    pads = _spatial_pads(pad)
    if pads is None or ("auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() != "NOTSET"):
        return
    if len(chain) > 1 and not _on_the_grid_of(chain[0], pad.inputs[0]):
        return
    own = list(node.attributes["pads"].as_ints()) if "pads" in node.attributes else [0] * len(pads)
    node.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(own, pads, strict=True)])
    node.replace_input_with(0, pad.inputs[0])


def _on_the_grid_of(after: ir.Node, before: ir.Value | None) -> bool:
    """Tell whether what is padded is on the grid of the result already, so that quantizing that changes nothing."""
    source = given_by(before)
    return source is not None and same_grid(after, source)


def _spatial_pads(pad: ir.Node) -> list[int] | None:
    """Return what a Pad adds to the spatial dimensions, begins first; None where a convolution cannot do it."""
    mode = pad.attributes["mode"].as_string() if "mode" in pad.attributes else "constant"
    amounts = ir.convenience.get_const_tensor(pad.inputs[1]) if pad.inputs[1] is not None else None
    filling = pad.inputs[2] if len(pad.inputs) > 2 else None
    zero = None if filling is None else ir.convenience.get_const_tensor(filling)
    if mode != "constant" or amounts is None or (filling is not None and (zero is None or float(zero.numpy()) != 0)):
        return None
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        return None
    flat = [int(amount) for amount in amounts.numpy()]
    rank = len(flat) // 2
    if min(flat) < 0 or any(flat[at] for at in (0, 1, rank, rank + 1)):
        return None
    return flat[2:rank] + flat[rank + 2 :]


def _name_layers(graph: ir.Graph) -> None:
    """Call a node after the layer whose weight it reads, and others after their result."""
    seen: set[str] = set()
    for node in graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        name = re.sub(r"^node_", "", node.name or node.outputs[0].name or node.op_type)
        if node.op_type in WEIGHTED and len(node.inputs) > 1 and node.inputs[1] is not None:
            stored = _stored(node.inputs[1])
            weight = node.inputs[1].name if stored or node.inputs[1].is_initializer() else None
            name = (weight or "").rpartition(".")[0] or name
        node.name = name if name not in seen else f"{name}_{len(seen)}"
        seen.add(node.name)


def _name_ends(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    wanted = dict(zip(graph.inputs, inputs, strict=True))
    for place, name in enumerate(outputs):
        value = graph.outputs[place]
        if value.producer() is None or value in wanted:
            node = ir.node("Identity", [value], name=name)
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[place] = value = node.outputs[0]
        wanted[value] = name
    names = set(wanted.values())
    for node in graph:
        for value in node.outputs:
            if value.name in names and value not in wanted:
                value.name = f"{value.name}_inside"
    for value, name in wanted.items():
        value.name = name


def _name_dimensions(graph: ir.Graph, free: Free) -> None:
    """Call free dimensions `batch`, or as the user does, also where they are a part of another one."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        for place, called in {0: BATCH, **free.get(value.name or "", {})}.items():
            size = value.shape[place] if value.shape is not None and len(value.shape) > place else None
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                names[str(size)] = called
    if not names:
        return
    pattern = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in sorted(names)))
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is not None and not value.is_initializer():
            value.shape = ir.Shape([_renamed(size, pattern, names) for size in value.shape])


def fix_batch(model: ir.Model, size: int) -> None:
    """Give a tidied model's inputs and outputs a batch of one size; what is between them is a runtime's to infer."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([size if str(one) == BATCH else one for one in value.shape])
    ends = {*model.graph.inputs, *model.graph.outputs}
    for value in (value for node in model.graph for value in node.outputs):
        if value not in ends and value.shape is not None and not value.shape.is_static():
            value.shape = None


def _renamed(size: int | ir.SymbolicDim, pattern: re.Pattern[str], names: Mapping[str, str]) -> int | str | None:
    if isinstance(size, int):
        return size
    return None if size.value is None else pattern.sub(lambda found: names[found[0]], size.value)
