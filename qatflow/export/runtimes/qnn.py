"""Qualcomm's HTP simulator through ONNX Runtime, an extra: `pip install 'qatflow[qnn]'` (Linux on x86-64, Windows).

The backend takes no node of a model with a free batch, and says nothing: all then runs on ONNX Runtime's own CPU
kernels. So the batch is fixed when a session is made, and so is what else is free, anew for every other size; what the
backend left is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor

from qatflow.errors import ExportError
from qatflow.export.loaded import Called, Inside, counted, fixed_batch, in_batches_of, silent
from qatflow.export.onnx_export import Exported
from qatflow.export.runtimes.kernels import LAYERS, layer_kernels, read_nodes
from qatflow.export.runtimes.onnxruntime import RENAMED, with_outputs
from qatflow.export.signature import Signature
from qatflow.graph.free import BATCH, free_sizes
from qatflow.users_code import blame_machine

PROVIDER = "QNNExecutionProvider"
HTP, LEFT, IN_FLOAT = "HTP", "left to the CPU", "HTP in float"


class QnnModel(Called):
    """A file as a function on tensors, run by the simulator of the Hexagon Tensor Processor.

    Args:
        path: the file, an ONNX model.
        signature: of the model.
        also: names of tensors inside the model that `run` returns as well, as far as the file has them.

    Raises:
        ExportError: the runtime cannot load it.
    """

    def __init__(self, path: Path, signature: Signature, *, also: Sequence[str] = ()) -> None:
        import onnxruntime_qnn

        self.signature, self._path, self._also = signature, path, also
        self.name = f"the HTP simulator of onnxruntime-qnn {onnxruntime_qnn.__version__}"
        self.batch = written_batch(path) or 1
        self._sizes = dict(signature.sizes)
        self._session = self._made()
        self._names = [output.name for output in self._session.get_outputs()]

    def _made(self) -> onnxruntime.InferenceSession:
        """Return a session for one batch, and one size of every other dimension that is free."""
        import onnxruntime_qnn

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        for name, size in {BATCH: self.batch, **self._sizes}.items():
            options.add_free_dimension_override_by_name(name, size)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        own = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "offload_graph_io_quantization": "0"}
        options.add_provider_for_devices(_devices()[:1], own)
        try:
            with silent():
                source = with_outputs(self._path, self._also) if self._also else str(self._path)
                return onnxruntime.InferenceSession(source, options)
        except Exception as error:  # the runtime's errors share no base class
            blame_machine(error)
            message = f"{self.name} cannot load {self._path.name}: {error}"
            raise ExportError(message) from error

    def run(self, args: Any, kwargs: Any) -> dict[str, Tensor]:
        """Return the outputs by name, those that were asked for besides included."""
        feed = {name: value.detach().cpu() for name, value in self.signature.feed(args, kwargs).items()}
        sizes = free_sizes(self.signature.free, feed)
        if sizes != self._sizes:
            self._sizes = sizes
            self._session = self._made()
        return dict(zip(self._names, in_batches_of(self.batch, feed, self._batch), strict=True))

    def _batch(self, feed: dict[str, Tensor]) -> list[Tensor]:
        values = self._session.run(self._names, {name: value.numpy() for name, value in feed.items()})
        return [torch.from_numpy(value) for value in values]

    def kernels(self) -> dict[str, str]:
        """Return who runs each node of the file: the backend, or ONNX Runtime's own kernels."""
        return {
            RENAMED.sub("", node.name): HTP if part.ep_name == PROVIDER else LEFT
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        }


def inside(exported: Exported) -> Inside:
    """Return which layers the backend runs on integers."""
    kernels = QnnModel(exported.path, exported.signature).kernels()
    nodes = read_nodes(exported.path)
    in_float = [node.name or "" for node in nodes if _fed_floats(node, kernels)]
    kernels |= {name: IN_FLOAT for name in in_float if kernels.get(name) == HTP}
    layers = layer_kernels(exported.path, kernels, lambda kernel: kernel == HTP, lambda node: _reason(node, kernels))
    ops = {node.name: node.op_type for node in nodes}
    return Inside(layers, counted(f"{ops[name]} {kernel}" for name, kernel in kernels.items() if name in ops))


def _fed_floats(node: ir.Node, kernels: Mapping[str, str]) -> bool:
    """Tell whether ONNX Runtime dequantizes what a layer reads: the backend has floats then, and computes with them."""
    if node.op_type not in LAYERS:
        return False
    sources = (value.producer() for value in node.inputs[:2] if value is not None)
    return any(one is not None and kernels.get(one.name or "") == LEFT for one in sources)


def written_batch(path: Path) -> int | None:
    """Return the batch of a file's inputs; None where it is free."""
    return fixed_batch([*(value.shape or ())] for value in ir.load(path).graph.inputs)


@cache
def _devices() -> list[Any]:
    """Return where the backend runs; its library is loaded once a process."""
    import onnxruntime_qnn

    with silent():
        onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]


def _reason(node: ir.Node, kernels: Mapping[str, str]) -> str:
    """Say why a layer whose operands are integers is not one of the backend's integer kernels."""
    if kernels.get(node.name or "") == IN_FLOAT:
        return "the HTP has its weight in float: ONNX Runtime did not keep its quantizers around it"
    users = [use.node.op_type for use in node.outputs[0].uses()]
    if "QuantizeLinear" not in users:
        return "its result is not quantized, and the HTP gives no floats"
    return "the backend did not take it"
