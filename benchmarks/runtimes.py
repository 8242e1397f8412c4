"""`python -m benchmarks.runtimes [--only NAME ...] [--targets NAME ...] [--out FOLDER]`: files in their own runtimes.

A row a model and target at W8A8 with batch norms folded: the file is written, run in the target's own runtime on
samples that calibration has not seen, and compared with the simulation, and with FP32 in PyTorch. Then which layers run
on integers by the runtime's own word, and a call of one sample beside the FP32 model in the same runtime, in turn.
Below that, how often the files of two targets agree with each other. Random weights amplify a single step of difference
through their depth; the rows with real weights and `digits` do not.

Needs `pip install 'qatflow[benchmarks,openvino,qnn,executorch]'`; a runtime that is not there is a row that says so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.coverage import fold, markdown
from benchmarks.photographs import split_crops
from benchmarks.zoo import ZOO, Inputs, efficientnet_lite0
from qatflow.errors import QatflowError
from qatflow.export.latency import Latency, interleaved
from qatflow.export.onnx_export import Exported, export_onnx
from qatflow.export.onnx_file import OnnxOptions, write_onnx
from qatflow.export.pte_export import export_pte, write_program
from qatflow.export.runtimes import Runtime, runtime_of
from qatflow.export.signature import repeated
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.network import Network
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Calibration, Model, Precision
from qatflow.results.intervals import share
from qatflow.tasks.digits import digits
from qatflow.tasks.models import load_model

CALIBRATION, BATCH, UNSEEN = 32, 8, 99
OWN = ("onnxruntime", "openvino", "qnn", "xnnpack")


@dataclass(frozen=True)
class Case:
    """One model: how it is made, and its samples to calibrate with and to compare on, in batches."""

    build: Callable[[], torch.nn.Module]
    calibration: Callable[[], list[Inputs]]
    unseen: Callable[[int], list[Inputs]]


def _batches(samples: Tensor) -> list[Inputs]:
    return [((one,), {}) for one in samples.split(BATCH)]


def _of_the_zoo(name: str) -> Case:
    entry = ZOO[name]
    return Case(
        entry.build,
        lambda: [entry.inputs(BATCH, seed) for seed in range(CALIBRATION // BATCH)],
        lambda count: [entry.inputs(BATCH, UNSEEN + seed) for seed in range(-(-count // BATCH))],
    )


def _digits(part: str, count: int) -> list[Inputs]:
    data = getattr(digits(), part)
    return _batches(torch.stack([data[one][0] for one in range(min(count, len(data)))]))


CASES: dict[str, Case] = {
    "digits": Case(
        lambda: load_model(Model(name="digits_mobilenet")),
        lambda: _digits("calibration", CALIBRATION),
        lambda count: _digits("test", count),
    ),
    "EfficientNet-Lite0 (real weights)": Case(
        efficientnet_lite0,
        lambda: _batches(split_crops(CALIBRATION, 1, 0)[0]),
        lambda count: _batches(split_crops(1, count, 1)[1]),
    ),
    **{
        name: _of_the_zoo(name)
        for name in (
            "all-MiniLM-L6-v2 (real weights)",
            "resnet18",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "vit_tiny_patch16_224",
            "1-d",
        )
    },
}


@dataclass
class Row:
    """What became of one model's file for one target."""

    model: str
    target: str
    runtime: str = ""
    samples: int = 0
    agreement: str = ""
    """Share of samples with the same best class as in the simulation, with its interval."""
    sqnr_db: float | None = None
    """Of the outputs against the simulation's."""
    by_default: str = ""
    """Both as the runtime runs where nobody sets anything, if that is something else."""
    noise_db: float | None = None
    """SQNR of the simulation against FP32."""
    integer_layers: str = ""
    int8_ms: float | None = None
    fp32_ms: float | None = None
    speed_up: float | None = None
    """Of one sample; by the side of FP32 in the same runtime, in turn."""
    speed_up_of_8: float | None = None
    """Of a batch of eight."""
    megabytes: float | None = None
    why: str = ""


def judge(name: str, target: str, samples: int, folder: Path) -> tuple[Row, list[Tensor]]:
    """Export, run and time one model for one target; returns what the file gave as well."""
    row, case = Row(name, target), CASES[name]
    try:
        torch.manual_seed(0)
        calibration = case.calibration()
        design = Design(TARGETS[target], Precision(), Calibration(samples=CALIBRATION))
        base = captured_network(case.build().eval(), *calibration[0], design)
        simulation = Simulation(fold(base))
        simulation.calibrate(calibration)
        kind = "pte" if "pte" in TARGETS[target].road.runtimes else "onnx"
        write = export_pte if kind == "pte" else export_onnx
        exported = write(simulation, calibration[0], folder / f"model.{kind}")
        return row, _run(row, base, exported, case.unseen(samples))
    except (QatflowError, RuntimeError, ValueError, KeyError, TypeError) as error:
        row.why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return row, []


def _run(row: Row, base: Network, exported: Exported, unseen: list[Inputs]) -> list[Tensor]:
    chosen = runtime_of(TARGETS[row.target].road, exported.kind, row.target)
    model = chosen.load(exported.path, exported.signature, ())
    row.runtime, row.why = model.name, chosen.missing
    functions = {"file": model, "simulation": exported.simulation, "fp32": base.graph}
    if chosen.runtime is not None and chosen.runtime.by_default is not None:
        functions["default"] = chosen.runtime.by_default(exported.path, exported.signature, ())
    given = {what: _outputs(function, unseen) for what, function in functions.items()}
    row.samples = len(given["file"][0])
    row.sqnr_db, row.agreement = _compared(given["simulation"], given["file"])
    row.noise_db, _ = _compared(given["fp32"], given["simulation"])
    if "default" in given:
        ratio, agreement = _compared(given["simulation"], given["default"])
        row.by_default = ", ".join(filter(None, (f"{ratio} dB", agreement)))
    row.megabytes = round(exported.path.stat().st_size / 1e6, 2)
    if chosen.runtime is not None:
        layers = chosen.runtime.inside(exported).layers
        row.integer_layers = f"{sum(one.integer for one in layers)} / {len(layers)}"
        row.why = "; ".join(sorted({one.reason for one in layers if not one.integer}))
        if chosen.runtime.timed:
            _time(row, base, exported, chosen.runtime, unseen[0])
    return given["file"]


def _time(row: Row, base: Network, exported: Exported, runtime: Runtime, batch: Inputs) -> None:
    """Time the file beside FP32 in the same runtime, as it runs by default."""
    fp32 = exported.path.with_stem("fp32")
    if exported.kind == "pte":
        write_program(base.graph, exported.signature, batch, fp32)
    else:
        write_onnx(base.graph, exported.signature, batch, fp32, OnnxOptions())
    load = runtime.by_default or runtime.load
    files = [load(path, exported.signature, ()) for path in (exported.path, fp32)]

    def timed(count: int) -> list[Latency]:
        args, kwargs = repeated(count, batch)
        return interleaved(*(lambda one=one: one.run(args, kwargs) for one in files))

    int8, floats = timed(1)
    row.int8_ms, row.fp32_ms = round(int8.median, 2), round(floats.median, 2)
    row.speed_up = round(floats.median / int8.median, 2)
    if exported.kind != "pte":  # a program takes the batch that it is written for
        int8, floats = timed(8)
        row.speed_up_of_8 = round(floats.median / int8.median, 2)


def _outputs(function: Callable[..., Any], unseen: list[Inputs]) -> list[Tensor]:
    """Return each output of all batches together."""
    with torch.no_grad():
        given = [pytree.tree_leaves(function(*args, **kwargs)) for args, kwargs in unseen]
    every = zip(*([one for one in leaves if isinstance(one, Tensor)] for leaves in given), strict=True)
    return [torch.cat(parts) for parts in every if parts[0].is_floating_point()]


def _compared(wanted: list[Tensor], got: list[Tensor]) -> tuple[float, str]:
    """Return the lowest SQNR, and the share of samples with the same best class where there are classes."""
    ratio = round(min(min(sqnr_db(a, b), 300.0) for a, b in zip(wanted, got, strict=True)), 1)
    if wanted[0].dim() != 2:
        return ratio, ""
    same = wanted[0].argmax(1) == got[0].argmax(1)
    interval = share(int(same.sum()), len(same), 0.95)
    return ratio, f"{100 * interval.value:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def between(name: str, given: dict[str, list[Tensor]]) -> list[dict[str, Any]]:
    """Return how far the files of every two targets are from each other, on the samples that both saw."""
    found = []
    for one, other in combinations([target for target, outputs in given.items() if outputs], 2):
        count = min(len(given[one][0]), len(given[other][0]))
        ratio, agreement = _compared([x[:count] for x in given[one]], [x[:count] for x in given[other]])
        found.append({"model": name, "targets": f"{one}, {other}", "agreement": agreement, "sqnr_db": ratio})
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a file was not written or did not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtimes", description="Files in their own runtimes")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=CASES, default=list(CASES))
    parser.add_argument("--targets", nargs="+", metavar="NAME", choices=TARGETS, default=list(OWN))
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--simulated", type=int, default=40, help="samples for a simulator, which is slow")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    asked = parser.parse_args(argv)
    asked.out.mkdir(parents=True, exist_ok=True)
    rows, pairs = [], []
    for name in asked.only:
        given = {}
        for target in asked.targets:
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                samples = asked.simulated if target == "qnn" else asked.samples
                row, given[target] = judge(name, target, samples, Path(folder))
            rows.append(row)
            frame = pd.DataFrame([asdict(row) for row in rows])
            frame.to_csv(asked.out / "runtimes.csv", index=False)
            print(markdown(frame.tail(1)).splitlines()[-1], f"{time.perf_counter() - started:.0f} s", flush=True)
        pairs += between(name, given)
    tables = markdown(frame), markdown(pd.DataFrame(pairs))
    (asked.out / "runtimes.md").write_text("\n\n".join(tables))
    print(*tables, sep="\n\n")
    return int(any(not row.samples for row in rows))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
