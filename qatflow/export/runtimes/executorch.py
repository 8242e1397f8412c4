"""ExecuTorch with XNNPACK, an extra: `pip install 'qatflow[executorch]'`."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from qatflow.errors import ExportError
from qatflow.export.loaded import Called, Inside, counted, in_batches_of, own_logging, silent
from qatflow.export.onnx_export import Exported
from qatflow.export.signature import Signature
from qatflow.users_code import blame_machine


class PteModel(Called):
    """A program in ExecuTorch's runtime, called like the model: in batches of its own size, on the CPU.

    Args:
        path: the file.
        signature: of the model.

    Raises:
        ExportError: the runtime cannot load it.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        self.signature = signature
        self.name = f"ExecuTorch {version('executorch')}"
        try:
            with own_logging():
                from executorch.runtime import Runtime
            with silent():
                self._program = Runtime.get().load_program(path)
                self._method = self._program.load_method("forward")
            self.batch = int(self._method.metadata.input_tensor_meta(0).sizes()[0])
        except Exception as error:  # the runtime's errors share no base class
            blame_machine(error)
            message = f"ExecuTorch cannot load {path.name}: {error}"
            raise ExportError(message) from error

    def run(self, args: Any, kwargs: Any) -> dict[str, Tensor]:
        """Return the outputs by name."""
        feed = {name: value.cpu() for name, value in self.signature.feed(args, kwargs).items()}
        with silent():
            outputs = in_batches_of(self.batch, feed, self._batch)
        return dict(zip(self.signature.outputs, outputs, strict=True))

    def _batch(self, feed: dict[str, Tensor]) -> list[Tensor]:
        return [value.clone() for value in self._method.execute([*feed.values()])]


def inside(exported: Exported) -> Inside:
    """Return which layers were given to XNNPACK with integers around them, as the program was lowered."""
    return Inside(list(exported.lowered), counted(one.kernel for one in exported.lowered))
