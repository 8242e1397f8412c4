"""The runtimes that run an exported file here, and which of them runs a target's.

A runtime is an entry of `RUNTIMES`; a target's road (`qatflow.recipe.targets`) names the one of its own. A file whose
own runtime is not here is run by a stand-in, node by node as it is written, so that nothing is optimized as the
target would not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qatflow.export.loaded import Inside, LoadedFile
from qatflow.export.onnx_export import Exported
from qatflow.export.runtimes import executorch, onnxruntime, openvino, qnn
from qatflow.export.signature import Signature
from qatflow.recipe.targets import TIMED, FileKind, Road, RuntimeName

Load = Callable[[Path, Signature, Sequence[str]], LoadedFile]
"""Returns a file as a function; its `run` has the tensors of those names as well, as far as the file has them."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One runtime.

    Attributes:
        title: what people call it.
        load: returns a file as it is compared with its simulation.
        inside: says which layers it runs on integers.
        module: what must be importable.
        by_default: returns a file as it runs where nobody sets anything; None where that is the same.
        exactly: what `load` sets, in words.
        timed: whether its latency means something: that of a simulator does not.
        compares: whether `load` can give tensors inside the model.
        most_samples: how many evaluation samples it is given at most; None for all of them.
        exact_bits: tensors of more bits are compared by their noise only.
    """

    title: str
    load: Load
    inside: Callable[[Exported], Inside]
    module: str
    by_default: Load | None = None
    exactly: str = ""
    compares: bool = True
    timed: bool = True
    most_samples: int | None = None
    exact_bits: int = 32

    @property
    def installed(self) -> bool:
        """Whether it can be used here."""
        return importlib.util.find_spec(self.module) is not None


RUNTIMES: dict[RuntimeName, Runtime] = {
    "onnxruntime": Runtime(
        title="ONNX Runtime",
        load=lambda path, signature, also: onnxruntime.OnnxModel(path, signature, also=also),
        inside=onnxruntime.inside,
        module="onnxruntime",
    ),
    "openvino": Runtime(
        title="OpenVINO",
        load=lambda path, signature, also: openvino.OpenVinoModel(path, signature, also=also),
        by_default=lambda path, signature, also: openvino.OpenVinoModel(path, signature, openvino.DEFAULT, also=also),
        exactly=", ".join(f"{name}={value}" for name, value in openvino.EXACT.items()),
        inside=openvino.inside,
        module="openvino",
    ),
    "qnn": Runtime(
        title="QNN",
        load=lambda path, signature, also: qnn.QnnModel(path, signature, also=also),
        inside=qnn.inside,
        module="onnxruntime_qnn",
        timed="qnn" in TIMED,
        most_samples=128,
        exact_bits=8,
    ),
    "executorch": Runtime(
        title="ExecuTorch",
        load=lambda path, signature, _: executorch.PteModel(path, signature),
        inside=executorch.inside,
        module="executorch",
        compares=False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What runs a target's file here.

    Attributes:
        runtime: the target's own; None where that is not here, and a stand-in runs the file node by node.
        missing: why it is not the target's own runtime; empty where it is.
    """

    runtime: Runtime | None
    missing: str = ""

    @property
    def load(self) -> Load:
        """What loads the file."""
        return as_written if self.runtime is None else self.runtime.load


def runtime_of(road: Road, kind: FileKind, target: str) -> Chosen:
    """Return what runs a target's file here."""
    own = road.runtimes.get(kind)
    if own is not None and RUNTIMES[own].installed:
        return Chosen(runtime=RUNTIMES[own])
    return Chosen(runtime=None, missing=missing(road) or f"No runtime of target {target} can be run here")


def missing(road: Road) -> str:
    """Return which of a target's own runtimes is not installed, and what installs it; empty where none is missing."""
    names = (name for name in road.runtimes.values() if not RUNTIMES[name].installed)
    return next((f"{RUNTIMES[name].title} is not installed: pip install 'qatflow[{name}]'" for name in names), "")


def as_written(path: Path, signature: Signature, also: Sequence[str]) -> LoadedFile:
    """Return a file in a stand-in, which optimizes nothing."""
    if path.suffix == ".pte":
        return executorch.PteModel(path, signature)
    return onnxruntime.OnnxModel(path, signature, also=also, as_written=True)
