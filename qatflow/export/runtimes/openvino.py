"""OpenVINO on the CPU, an extra: `pip install 'qatflow[openvino]'`.

On a processor with bf16 OpenVINO computes whatever is not integer in bf16 unless it is told otherwise, and linear
layers that are not integer quantize their activations once more, in groups. A file is compared with its simulation
where both are turned off (`EXACT`); what the default makes of it is told beside that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from qatflow.errors import ExportError
from qatflow.export.loaded import Called, Inside, counted, fixed_batch, in_batches_of
from qatflow.export.onnx_export import Exported
from qatflow.export.runtimes.kernels import LAYERS, giver, layer_kernels, read_nodes
from qatflow.export.runtimes.onnxruntime import with_outputs
from qatflow.export.signature import Signature
from qatflow.users_code import blame_machine

EXACT: Mapping[str, str | int] = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
"""What makes OpenVINO compute in single precision what is not integer."""
DEFAULT: Mapping[str, str | int] = {}
INTEGER = ("_I8", "_i8")
"""How the name of a kernel of oneDNN's ends that multiplies bytes."""
NOT_WORK = frozenset({"Const", "Input", "Output", "Result"})
MULTIPLYING = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "Subgraph"})
"""Kinds of its nodes that a layer goes into; the last is attention as a whole."""


class OpenVinoModel(Called):
    """A file as a function on tensors, on the CPU.

    Args:
        path: the file, an ONNX model.
        signature: of the model.
        settings: of the compiled model.
        also: names of tensors inside the model that `run` returns as well, as far as the file has them.

    Raises:
        ExportError: the runtime cannot load it.
    """

    def __init__(
        self,
        path: Path,
        signature: Signature,
        settings: Mapping[str, str | int] = EXACT,
        *,
        also: Sequence[str] = (),
    ) -> None:
        import openvino

        self.signature = signature
        self.name = f"OpenVINO {version('openvino')}"
        core = openvino.Core()
        try:
            source = with_outputs(path, also) if also else str(path)
            self._compiled = core.compile_model(core.read_model(source), "CPU", dict(settings))
        except Exception as error:  # the runtime's errors share no base class
            blame_machine(error)
            message = f"{self.name} cannot load {path.name}: {error}"
            raise ExportError(message) from error
        self.precision = str(self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        self._names = [one.get_any_name() for one in self._compiled.outputs]
        shapes = [one.get_partial_shape() for one in self._compiled.inputs]
        self.batch = fixed_batch([one.get_length() if one.is_static else None for one in shape] for shape in shapes)

    def run(self, args: Any, kwargs: Any) -> dict[str, Tensor]:
        """Return the outputs by name, those that were asked for besides included."""
        feed = {name: value.detach().cpu() for name, value in self.signature.feed(args, kwargs).items()}
        values = self._batch(feed) if self.batch is None else in_batches_of(self.batch, feed, self._batch)
        return dict(zip(self._names, values, strict=True))

    def _batch(self, feed: dict[str, Tensor]) -> list[Tensor]:
        found = self._compiled({name: value.numpy() for name, value in feed.items()})
        return [torch.from_numpy(found[name]).clone() for name in self._names]

    def kernels(self) -> dict[str, str]:
        """Return the kernel that each node of the file went into, by the node's name, as OpenVINO tells it; those that
        multiply only.
        """
        found: dict[str, str] = {}
        for kind, kernel, names in self._ran():
            for name in names if kind in MULTIPLYING else ():
                found[name] = kernel if is_integer(kernel) or name not in found else found[name]
        return found

    def counted(self) -> dict[str, int]:
        """Return how often each kind of kernel is in the graph that runs."""
        ran = ((kind, kernel) for kind, kernel, _ in self._ran() if kind not in NOT_WORK)
        return counted(f"{kind} {kernel.rpartition('_')[2].lower()}" for kind, kernel in ran)

    def _ran(self) -> Iterable[tuple[str, str, list[str]]]:
        """Yield kind, kernel and the file's names of every node that runs."""
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            told = {key: _text(value) for key, value in node.get_rt_info().items()}
            names = [name.strip().partition("/")[0] for name in told.get("originalLayersNames", "").split(",")]
            yield told.get("layerType", ""), told.get("primitiveType", ""), [name for name in names if name]


def is_integer(kernel: str) -> bool:
    """Tell whether a kernel multiplies bytes."""
    return kernel.endswith(INTEGER)


def inside(exported: Exported) -> Inside:
    """Return which layers run on integers, from the graph that OpenVINO says it runs."""
    model = OpenVinoModel(exported.path, exported.signature)
    known = model.kernels()
    kernels = {node.name or "": _kernel(node, known) for node in read_nodes(exported.path) if node.op_type in LAYERS}
    return Inside(layer_kernels(exported.path, kernels, is_integer, _reason), model.counted())


def _kernel(layer: ir.Node, known: Mapping[str, str]) -> str:
    """Return the kernel that a layer went into: by its name or its result's, or, where OpenVINO has folded a factor
    into its weight and forgotten both, by those of the ops that went into the same kernel behind it.
    """
    node: ir.Node | None = layer
    while node is not None and (node is layer or node.op_type not in LAYERS):
        for name in (node.name or "", node.outputs[0].name or ""):
            if name in known:
                return known[name]
        uses = list(node.outputs[0].uses())
        node = uses[0].node if len(uses) == 1 else None
    return ""


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _reason(node: ir.Node) -> str:
    """Say why a layer whose operands are bytes has no integer kernel."""
    for place, value in enumerate(node.inputs[:2]):
        source = giver(value)
        zero_point = None if source is None or len(source.inputs) < 3 else source.inputs[2]
        number = None if zero_point is None else zero_point.const_value
        if source is None or number is None or not number.numpy().any():
            continue
        stored = source.inputs[0] is not None and source.inputs[0].is_initializer()
        if stored or node.op_type in ("ConvTranspose", "MatMul"):
            what = "weight" if stored else ("input", "second input")[place]
            return f"its {what} has a zero point other than 0, which OpenVINO computes in float"
    return "OpenVINO did not choose one"
