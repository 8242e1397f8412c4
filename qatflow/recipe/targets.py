"""The targets by name: what a recipe is checked against before torch is imported, and each one's road to its runtime.

An entry here and the table of placement rules in `qatflow/quant/targets/NAME.py`, which takes its road from here, are
all that a target is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qatflow.errors import Mistake

FileKind = Literal["onnx", "pte"]
"""An ONNX file with Q/DQ, or an ExecuTorch program whose layers XNNPACK runs."""
RuntimeName = Literal["onnxruntime", "openvino", "qnn", "executorch"]
"""Also the names of the extras that bring them."""
TIMED: frozenset[RuntimeName] = frozenset({"onnxruntime", "openvino", "executorch"})
"""Those whose latency means something: that of a simulator does not."""
Spelling = Literal[
    "weight_behind_reshape",
    "float_layer_before_sum",
    "hard_sigmoid_as_clip",
    "four_dimensions",
    "constant_as_integers",
    "reciprocal",
    "relu_in_quantizer",
    "one_width",
]
"""How an op is written where a runtime runs it otherwise than its table says: see `qatflow.export.onnx_spelling`."""


@dataclass(frozen=True, kw_only=True)
class Road:
    """How a quantized network gets to its runtime.

    Raises:
        ValueError: it speaks of a file that it does not have.
    """

    files: tuple[FileKind, ...] = ("onnx",)
    """Files that can be written for it."""
    written: tuple[FileKind, ...] = ("onnx",)
    """Those that are written where the recipe does not say."""
    runtimes: Mapping[FileKind, RuntimeName] = field(default_factory=dict)
    """Files that its own runtime verifies, and that runtime. A file without one is run by a stand-in, as it is written:
    ONNX Runtime for ONNX files, ExecuTorch for its programs."""
    unsigned_weights: bool = False
    """Whether it takes signed weights as unsigned bytes around 128 as well: see `export.weights`."""
    packed_int4: bool = True
    """Whether weights of up to 4 bits are packed, two to a byte, where the recipe does not say."""
    opset: int = 18
    """The opset of its ONNX files, where the recipe does not say and no more is needed."""
    spelling: tuple[Spelling, ...] = ()
    """How ops are written in its ONNX files."""

    def __post_init__(self) -> None:
        unknown = sorted({*self.written, *self.runtimes} - {*self.files})
        if unknown:
            message = f"a road has {', '.join(unknown)} in written or runtimes, and not in files"
            raise ValueError(message)

    def writes(self, kind: FileKind, asked: bool | None) -> bool:
        """Tell whether a file is written; `asked` is what the recipe says, None where it says nothing.

        An ONNX file takes the place of a program that cannot be written here.
        """
        if asked is not None:
            return asked
        if not can_write_programs() and "pte" in self.written:
            return kind == "onnx"
        return kind in self.written


@dataclass(frozen=True, kw_only=True)
class TargetEntry:
    """What a recipe that names a target is checked against."""

    about: str = ""
    """One line."""
    symmetric_only: bool = False
    """Whether its activations have no zero point."""
    road: Road = Road()


TARGETS: dict[str, TargetEntry] = {
    "onnxruntime": TargetEntry(
        about="ONNX Runtime on CPU: uint8 activations, Q/DQ around every integer kernel",
        road=Road(
            runtimes={"onnx": "onnxruntime"},
            unsigned_weights=True,
            packed_int4=False,
            spelling=("weight_behind_reshape", "float_layer_before_sum"),
        ),
    ),
    "tensorrt": TargetEntry(
        about="NVIDIA TensorRT: symmetric int8, Q/DQ on the inputs of fused layers",
        symmetric_only=True,
    ),
    "qnn": TargetEntry(
        about="Qualcomm QNN (Hexagon): uint8 or uint16 everywhere, supergroups as AIMET simulates them",
        road=Road(runtimes={"onnx": "qnn"}, opset=20, spelling=("reciprocal", "relu_in_quantizer", "one_width")),
    ),
    "xnnpack": TargetEntry(
        about="XNNPACK through ExecuTorch: int8 with zero points",
        road=Road(files=("onnx", "pte"), written=("pte",), runtimes={"pte": "executorch"}),
    ),
    "openvino": TargetEntry(
        about="OpenVINO on CPU: Q/DQ on the inputs of fused layers, as NNCF puts them",
        road=Road(
            runtimes={"onnx": "openvino"},
            packed_int4=False,
            spelling=("hard_sigmoid_as_clip", "four_dimensions", "constant_as_integers"),
        ),
    ),
}


def can_write_programs() -> bool:
    """Tell whether ExecuTorch is installed."""
    return importlib.util.find_spec("executorch") is not None


def target_mistakes(
    name: str, entry: TargetEntry, precision: Mapping[str, Any], export: Mapping[str, Any], gate: Mapping[str, Any]
) -> Iterator[Mistake]:
    """Tell what a recipe asks of a target that it does not have, before hours are spent on it.

    Args:
        name: as the recipe has it.
        entry: of the target.
        precision: that section of the recipe.
        export: likewise.
        gate: likewise.
    """
    if entry.symmetric_only and precision.get("activations_symmetric") is False:
        problem = f"false, but target {name} has symmetric activations only"
        yield Mistake("precision.activations_symmetric", problem, "remove it")
    road = entry.road
    if gate.get("min_speedup") is not None:
        yield from _speed_mistakes(name, road, export)
    if export.get("onnx") and "onnx" not in road.files:
        yield Mistake("export.onnx", f"target {name} has no ONNX file", "remove it")
    if export.get("pte") and "pte" not in road.files:
        able = " or ".join(other for other, one in TARGETS.items() if "pte" in one.road.files)
        problem = f"an ExecuTorch program is for target {able}, not {name!r}"
        yield Mistake("export.pte", problem, f"write target: {able}, or export.pte: false")
    elif export.get("pte") and not can_write_programs():
        yield Mistake("export.pte", "the package 'executorch' is not installed", "pip install 'qatflow[executorch]'")


def _speed_mistakes(name: str, road: Road, export: Mapping[str, Any]) -> Iterator[Mistake]:
    """Tell why a target's exported file is not timed, where it is not."""
    key, kind = "gate.min_speedup", "pte" if road.writes("pte", export.get("pte")) else "onnx"
    timed = {one: runtime for one, runtime in road.runtimes.items() if runtime in TIMED}
    if not timed:
        able = ", ".join(other for other, one in TARGETS.items() if TIMED & {*one.road.runtimes.values()})
        problem = f"nothing here can tell how fast target {name} is, only {able}"
        yield Mistake(key, problem, "remove it, and measure on the device")
    elif "onnx" not in timed and not can_write_programs():
        yield Mistake(key, f"target {name} is timed by ExecuTorch", "pip install 'qatflow[executorch]'")
    elif export.get("verify") is False:
        problem = "is measured when the exported file is verified, and export.verify is false"
        yield Mistake(key, problem, "remove one of both")
    elif kind not in timed or not road.writes(kind, export.get(kind)):
        written = " or ".join(f"export.{one}" for one in timed)
        yield Mistake(key, f"the file that is timed is not written: see {written}", "write that file")
