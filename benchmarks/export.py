"""`python -m benchmarks.export [--only NAME ...] [--min-speedup 1.0] [--out FOLDER]`: are files as promised, how fast?

One row a model at W8A8 per channel for ONNX Runtime: the file is written, loaded, run on inputs that calibration has
not seen, and compared with the simulation: the best class or the outputs as a whole, and every tensor inside the model
given the runtime's own integers before it. Random weights amplify a single step of difference through their depth, as
they amplify the rounding itself; the comparison tensor by tensor does not. Then: layers that run as integer kernels,
sizes, and the latency of one sample beside the same model in FP32, in turn. With `--min-speedup`, a file that is slower
gets the parts in float that are faster so, as `gate.min_speedup` does it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.coverage import fold, markdown
from benchmarks.zoo import ZOO, Entry
from qatflow.errors import QatflowError
from qatflow.export.compare import compare
from qatflow.export.float_parts import Files, float_parts
from qatflow.export.latency import interleaved
from qatflow.export.onnx_export import export_onnx
from qatflow.export.onnx_file import OnnxOptions, write_onnx
from qatflow.export.runtimes import RUNTIMES
from qatflow.export.runtimes.onnxruntime import OnnxModel, inside
from qatflow.quant.grid import sqnr_db
from qatflow.quant.network import Network
from qatflow.quant.prepare import captured_network
from qatflow.quant.regions import in_float
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Export

CALIBRATION_BATCHES, BATCH = 2, 4
SAMPLES = 32
UNSEEN = 99
COMPARED = 8


@dataclass
class Row:
    """What became of one model."""

    model: str
    file: bool = False
    """Whether it was written and loads."""
    agreement: float | None = None
    """Share of samples, in percent, with the same best class as in the simulation."""
    sqnr_db: float | None = None
    """Of the outputs against the simulation's."""
    noise_db: float | None = None
    """SQNR of the simulation against FP32, to compare with."""
    differing: float | None = None
    """Share of elements inside the model, in percent, that differ given the same inputs."""
    steps: int | None = None
    """The largest of those differences, in steps of the grid."""
    integer_layers: str = ""
    speed_up: float | None = None
    int8_ms: float | None = None
    fp32_ms: float | None = None
    before: float | None = None
    """As fast as FP32 before parts went to float, where any did."""
    in_float: str = ""
    """Patterns of these parts."""
    search_s: float | None = None
    megabytes: str = ""
    seconds: float = 0.0
    why: str = ""


def judge(name: str, entry: Entry, folder: Path, min_speedup: float = 0.0) -> Row:
    """Export, run and time one model; with parts in float where it is slower than asked for."""
    row, start = Row(name), time.perf_counter()
    try:
        torch.manual_seed(0)
        base = captured_network(entry.build(), *entry.inputs(2, 0))
        simulation = Simulation(fold(base))
        simulation.calibrate(entry.inputs(BATCH, one) for one in range(CALIBRATION_BATCHES))
        _check(row, base, simulation, entry, folder)
        if (row.speed_up or 0.0) < min_speedup:
            _speed_up(row, base, simulation, entry, folder)
    except (QatflowError, RuntimeError, ValueError, KeyError, TypeError) as error:
        row.why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    row.seconds = round(time.perf_counter() - start, 1)
    return row


def _check(row: Row, base: Network, simulation: Simulation, entry: Entry, folder: Path) -> None:
    exported = export_onnx(simulation, entry.inputs(2, 0), folder / "model.onnx")
    model = OnnxModel(exported.path, exported.signature)
    row.file = True
    got, wanted, floats = [], [], []
    for seed in range(UNSEEN, UNSEEN + SAMPLES // BATCH):
        args, kwargs = entry.inputs(BATCH, seed)
        with torch.no_grad():
            for run, into in ((model, got), (exported.simulation, wanted), (base.graph, floats)):
                into.append(_outputs(run(*args, **kwargs)))
    classes = [(_best(a), _best(b)) for a, b in zip(wanted, got, strict=True)]
    if all(a is not None for a, _ in classes):
        same = torch.cat([(a == b).flatten() for a, b in classes])  # type: ignore[union-attr]
        row.agreement = round(100 * float(same.float().mean()), 2)
    row.sqnr_db, row.noise_db = _ratio(wanted, got), _ratio(floats, wanted)
    _look_inside(row, exported, entry)
    kernels = inside(exported).layers
    row.integer_layers = f"{sum(one.integer for one in kernels)} / {len(kernels)}"
    row.why = "; ".join(sorted({one.reason for one in kernels if not one.integer}))
    write_onnx(base.graph, exported.signature, entry.inputs(2, 0), folder / "fp32.onnx", OnnxOptions())
    in_float, (args, kwargs) = OnnxModel(folder / "fp32.onnx", exported.signature), entry.inputs(1, UNSEEN)
    int8, fp32 = interleaved(lambda: model.run(args, kwargs), lambda: in_float.run(args, kwargs))
    row.int8_ms, row.fp32_ms = round(int8.median, 2), round(fp32.median, 2)
    row.speed_up = round(fp32.median / int8.median, 2)
    row.megabytes = " / ".join(f"{path.stat().st_size / 1e6:.1f}" for path in (exported.path, folder / "fp32.onnx"))


def _speed_up(row: Row, base: Network, simulation: Simulation, entry: Entry, folder: Path) -> None:
    """Find the parts that are faster in float, and judge the file with these once more."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as aside:
        example, runtime = entry.inputs(2, 0), RUNTIMES["onnxruntime"]
        parts = float_parts(Files(simulation, example, Export(), "onnx", runtime, Path(aside)), lambda every, _: every)
    row.search_s = round(time.perf_counter() - started, 1)
    network = in_float(simulation.network, parts)
    if parts and network is not None:
        faster = Simulation(network)
        faster.calibrate(entry.inputs(BATCH, one) for one in range(CALIBRATION_BATCHES))
        row.before, row.in_float = row.speed_up, " ".join(parts)
        _check(row, base, faster, entry, folder)


def _look_inside(row: Row, exported: Any, entry: Entry) -> None:
    names = [f"{point.tensor}_quantized" for point in exported.placement.points if not point.parameter]
    inside = OnnxModel(exported.path, exported.signature, also=names)
    found = compare(exported.graph, inside, [entry.inputs(COMPARED, UNSEEN)])
    elements, differing = sum(one.elements for one in found), sum(one.differing for one in found)
    row.differing = 100 * differing / max(1, elements)
    row.steps = max((one.steps for one in found), default=0)


def _outputs(outputs: Any) -> list[Tensor]:
    return [one for one in pytree.tree_leaves(outputs) if isinstance(one, Tensor) and one.is_floating_point()]


def _best(outputs: list[Tensor]) -> Tensor | None:
    """Return the best class of every sample; None where the first output holds no scores of classes."""
    scores = outputs[0]
    return scores.argmax(1) if scores.dim() == 2 else None


def _ratio(wanted: list[list[Tensor]], got: list[list[Tensor]]) -> float:
    flat = [torch.cat([one.flatten() for batch in side for one in batch]) for side in (wanted, got)]
    return round(min(sqnr_db(*flat), 300.0), 1)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a file was not written or does not load."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description="Are exported files as promised?")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of: {', '.join(ZOO)}")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    parser.add_argument("--min-speedup", type=float, default=0.0)
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.only or []) - ZOO.keys())
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(ZOO)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in arguments.only or ZOO:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(judge(name, ZOO[name], Path(folder), arguments.min_speedup))
        frame = pd.DataFrame([asdict(row) for row in rows])
        frame.to_csv(arguments.out / "export.csv", index=False)
        (arguments.out / "export.md").write_text(markdown(frame))
        print(markdown(frame.tail(1)).splitlines()[-1], flush=True)
    return 0 if all(row.file for row in rows) else 1


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
