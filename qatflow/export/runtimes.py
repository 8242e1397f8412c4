"""The runtimes that run an exported file here, and which of them runs a target's.

A runtime is an entry of `RUNTIMES`; a target's road (`qatflow.recipe.targets`) names the one of its own. A file whose
own runtime is not here is run by a stand-in, node by node as it is written, so that nothing is optimized as the
target would not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from qatflow.export.onnx_export import Exported
from qatflow.export.pte_export import PteModel
from qatflow.export.runtime import OnnxModel
from qatflow.recipe.targets import FileKind, Road, RuntimeName


class LoadedFile(Protocol):
    """A file in a runtime, called like the model that it was made of."""

    name: str
    """Of the runtime, with its version."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns, on the device of its inputs."""


@dataclass(frozen=True)
class Runtime:
    """One runtime.

    Attributes:
        load: returns a file, either as the runtime would run it or (True) as it is written.
        tells_kernels: whether it says which layers run on integers, so that its latency means something.
    """

    load: Callable[[Exported, bool], LoadedFile]
    tells_kernels: bool = False


RUNTIMES: dict[RuntimeName, Runtime] = {
    "onnxruntime": Runtime(
        lambda exported, as_written: OnnxModel(exported.path, exported.signature, as_written=as_written),
        tells_kernels=True,
    ),
    "executorch": Runtime(lambda exported, as_written: PteModel(exported.path, exported.signature)),
}
STAND_INS: dict[FileKind, RuntimeName] = {"onnx": "onnxruntime", "pte": "executorch"}


def runtime_of(road: Road, kind: FileKind) -> tuple[Runtime, bool]:
    """Return what runs a target's file here, and whether that is the target's own runtime."""
    own = road.runtimes.get(kind)
    return RUNTIMES[own or STAND_INS[kind]], own is not None
