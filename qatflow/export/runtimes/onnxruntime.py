"""ONNX Runtime on the CPU."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor

from qatflow.errors import ExportError
from qatflow.export.loaded import Called, Inside, counted, fixed_batch, in_batches_of
from qatflow.export.onnx_export import Exported
from qatflow.export.runtimes.kernels import layer_kernels, read_nodes
from qatflow.export.signature import Signature
from qatflow.users_code import blame_machine

CPU = ["CPUExecutionProvider"]
INTEGER = frozenset({"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger"})

RENAMED = re.compile(r"(_token_\d+|_nhwc|_fused|_kernel|/MatMulAddFusion)+$")
"""What the runtime appends to the name of a node that it replaces."""


class OnnxModel(Called):
    """A file as a function on tensors, on the CPU.

    Args:
        path: the file.
        signature: of the model.
        also: names of tensors inside the model that `run` returns as well, as far as the file has them.
        optimized: where to write the graph as the runtime has optimized it.
        as_written: run the nodes as they stand in the file, without optimizing: what another runtime starts from.

    Raises:
        ExportError: the runtime cannot load it.
    """

    def __init__(
        self,
        path: Path,
        signature: Signature,
        *,
        also: Sequence[str] = (),
        optimized: Path | None = None,
        as_written: bool = False,
    ) -> None:
        self.signature = signature
        self.name = f"ONNX Runtime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        try:
            source = with_outputs(path, also) if also else str(path)
            self._session = onnxruntime.InferenceSession(source, options, providers=CPU)
            self._names = [output.name for output in self._session.get_outputs()]
            self.batch = fixed_batch(one.shape for one in self._session.get_inputs())
        except Exception as error:  # the runtime's errors share no base class
            blame_machine(error)
            message = f"ONNX Runtime {onnxruntime.__version__} cannot load {path.name}: {error}"
            raise ExportError(message) from error

    def run(self, args: Any, kwargs: Any) -> dict[str, Tensor]:
        """Return the outputs by name, those that were asked for besides included."""
        feed = {name: value.detach().cpu() for name, value in self.signature.feed(args, kwargs).items()}
        values = self._batch(feed) if self.batch is None else in_batches_of(self.batch, feed, self._batch)
        return dict(zip(self._names, values, strict=True))

    def _batch(self, feed: dict[str, Tensor]) -> list[Tensor]:
        values = self._session.run(self._names, {name: value.numpy() for name, value in feed.items()})
        return [torch.from_numpy(value) for value in values]


def inside(exported: Exported) -> Inside:
    """Return which layers run on integers, from the graph as the runtime has optimized it."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        OnnxModel(exported.path, exported.signature, optimized=optimized)
        nodes = read_nodes(optimized)
    kernels = {RENAMED.sub("", node.name or ""): node.op_type for node in nodes}
    layers = layer_kernels(exported.path, kernels, lambda kernel: kernel in INTEGER, _reason)
    return Inside(layers, counted(node.op_type for node in nodes))


def _reason(node: ir.Node) -> str:
    """Say why a layer whose operands are bytes has no integer kernel."""
    if node.op_type == "ConvTranspose":
        return "ONNX Runtime has no integer kernel for transposed convolutions"
    users = [use.node.op_type for use in node.outputs[0].uses()]
    if node.op_type == "Conv" and users != ["QuantizeLinear"]:
        return f"its result is not quantized right behind it, but read by {', '.join(sorted(set(users))) or 'nothing'}"
    return "ONNX Runtime did not choose one"


def with_outputs(path: Path, names: Sequence[str]) -> bytes:
    """Return a model with some of its tensors as outputs."""
    model = ir.load(path)
    for node in model.graph:
        model.graph.outputs.extend(value for value in node.outputs if value.name in names)
    return ir.to_proto(model).SerializeToString()  # type: ignore[no-any-return]
