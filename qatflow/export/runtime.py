"""An exported file in ONNX Runtime, called like the model that it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor

from qatflow.errors import ExportError
from qatflow.export.signature import Signature
from qatflow.graph.tree import tree_leaves
from qatflow.users_code import blame_machine

CPU = ["CPUExecutionProvider"]


class OnnxModel:
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
            source = _with_outputs(path, also) if also else str(path)
            self._session = onnxruntime.InferenceSession(source, options, providers=CPU)
            self._names = [output.name for output in self._session.get_outputs()]
        except Exception as error:  # the runtime's errors share no base class
            blame_machine(error)
            message = f"ONNX Runtime {onnxruntime.__version__} cannot load {path.name}: {error}"
            raise ExportError(message) from error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns, on the device of its inputs."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = self.run(args, kwargs)
        return self.signature.result([outputs[name].to(tensors[0].device) for name in self.signature.outputs])

    def run(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Return the outputs by name, those that were asked for besides included."""
        feed = {name: value.detach().cpu().numpy() for name, value in self.signature.feed(args, kwargs).items()}
        values = self._session.run(self._names, feed)
        return {name: torch.from_numpy(value) for name, value in zip(self._names, values, strict=True)}


def _with_outputs(path: Path, names: Sequence[str]) -> bytes:
    """Return a model with some of its tensors as outputs."""
    model = ir.load(path)
    for node in model.graph:
        model.graph.outputs.extend(value for value in node.outputs if value.name in names)
    return ir.to_proto(model).SerializeToString()  # type: ignore[no-any-return]
