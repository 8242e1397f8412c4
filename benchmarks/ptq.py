"""Post-training quantization side by side: qatflow, AIMET, NNCF and torchao on the same models, data, bits and grids.

    python -m benchmarks.ptq --out reports/ptq                      # every row; AIMET's AdaRound takes hours
    python -m benchmarks.ptq --out DIR --cases resnet --iterations 500 --tools qatflow,aimet

Small networks on 5,000 MNIST digits (accuracy on 1,000 that nothing was fitted to) and EfficientNet-Lite0 with its
ImageNet weights on crops of photographs (agreement with FP32 on photographs that calibration never saw). After every
step: accuracy or agreement, SQNR of the outputs against FP32, and the seconds that the step took. A peer that is not
installed or cannot do a row gives its reason.
"""

from __future__ import annotations

import argparse
import copy
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks import mnist_networks
from benchmarks.peers import aimet, nncf, torchao
from benchmarks.peers.case import Case, Measure, PeerError, inference
from benchmarks.photographs import split_crops
from benchmarks.zoo import efficientnet_lite0
from qatflow import STEPS, Simulation
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.prepare import captured_network
from qatflow.recipe import Precision
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.steps.context import StepContext

LADDER = ("naive", "fold_batch_norms", "equalize", "correct_bias", "search_scales", "adaround")
"""`adaround` builds on `equalize`, as do `correct_bias` and `search_scales`: each is an alternative to the others."""
PHOTOGRAPHS = 256
"""Crops that agreement is measured on."""


@dataclass(frozen=True)
class Bench:
    """A case and what its models are measured on."""

    case: Case
    test: Tensor
    labels: Tensor | None


def benches(names: list[str], calibration: int) -> Iterator[Bench]:
    """Yield the rows of the benchmark whose names begin with one of `names`; all without names."""
    for network in (*mnist_networks.NETWORKS, "efficientnet_lite0"):
        for weights in (8, 4):
            for per_channel in (True, False):
                name = f"{network} W{weights}A8 per {'channel' if per_channel else 'tensor'}"
                if names and not any(name.startswith(one) for one in names):
                    continue
                if network == "efficientnet_lite0":
                    inputs, test = split_crops(calibration, PHOTOGRAPHS, 0)
                    model, labels = efficientnet_lite0().eval(), None
                else:
                    inputs, test, labels = mnist_networks.data()
                    model = mnist_networks.load(network)
                case = Case(name, model, list(inputs.split(32)), weights, 8, per_channel)
                yield Bench(case, test, labels)


def qatflow(case: Case, measure: Measure) -> None:
    """Climb qatflow's ladder, every rung measured."""
    precision = Precision(weights=case.weights, activations=case.activations, per_channel=case.per_channel)
    context = StepContext(lambda limit: [((x,), {}) for x in torch.cat(case.calibration)[:limit].split(32)])
    network = captured_network(
        copy.deepcopy(case.model), (case.calibration[0][:2],), design=Design(precision=precision)
    )
    below = network
    for name in LADDER:
        started = time.perf_counter()
        if name != "naive":
            network, _notes = STEPS[name](below, STEP_CONFIGS[name](), context)
        if name in ("fold_batch_norms", "equalize"):
            below = network
        calibrated, _notes = STEPS["calibrate"](network, STEP_CONFIGS["calibrate"](), context)
        simulation = Simulation(calibrated)
        simulation.calibrate(context.inputs(None))
        measure(name, simulation.model, time.perf_counter() - started)


TOOLS: dict[str, Callable[..., None]] = {
    "qatflow": qatflow,
    "aimet": aimet.run,
    "nncf": nncf.run,
    "torchao": torchao.run,
}


def run(bench: Bench, tool: str, **options: object) -> Iterator[dict[str, object]]:
    """Yield one row per step of a tool on a case."""
    outputs = _outputs(bench.case.model, bench.test)
    rows: list[dict[str, object]] = []

    def measure(step: str, model: Callable[[Tensor], Tensor], seconds: float) -> None:
        got = _outputs(model, bench.test)
        truth = outputs.argmax(1) if bench.labels is None else bench.labels
        rows.append(
            {
                "case": bench.case.name,
                "tool": tool,
                "step": step,
                "score": round(float((got.argmax(1) == truth).float().mean()), 4),
                "sqnr_db": round(sqnr_db(outputs, got), 2),
                "seconds": round(seconds, 1),
            }
        )
        print(rows[-1], flush=True)

    try:
        TOOLS[tool](bench.case, measure, **(options if tool == "aimet" else {}))
    except PeerError as error:
        rows.append({"case": bench.case.name, "tool": tool, "step": f"not run: {error}"})
        print(rows[-1], flush=True)
    yield from rows


def _outputs(model: Callable[[Tensor], Tensor] | nn.Module, inputs: Tensor) -> Tensor:
    call = inference(model) if isinstance(model, nn.Module) else model
    with torch.no_grad():
        return torch.cat([call(part) for part in inputs.split(32)])


def main() -> None:
    """Run the rows asked for and write `ptq.csv` and `ptq.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/ptq"))
    parser.add_argument("--cases", default="", help="beginnings of case names, separated by commas; default: all")
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--iterations", type=int, help="of AIMET's AdaRound; default: its own, 10,000 or 15,000")
    parser.add_argument("--photographs", type=int, default=128, help="crops to calibrate EfficientNet-Lite0 with")
    parser.add_argument("--aimet-steps", default="", help="AIMET's steps, separated by commas; default: all")
    arguments = parser.parse_args()
    options: dict[str, object] = {"iterations": arguments.iterations}
    if arguments.aimet_steps:
        options["steps"] = tuple(arguments.aimet_steps.split(","))
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for bench in benches([one for one in arguments.cases.split(",") if one], arguments.photographs):
        rows.append({"case": bench.case.name, "tool": "fp32", "step": "", "score": _fp32(bench)})
        for tool in arguments.tools.split(","):
            rows += run(bench, tool, **options)
            table = pd.DataFrame(rows)
            table.to_csv(arguments.out / "ptq.csv", index=False)
            (arguments.out / "ptq.md").write_text(markdown(table))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def _fp32(bench: Bench) -> float:
    if bench.labels is None:
        return 1.0
    return round(float((_outputs(bench.case.model, bench.test).argmax(1) == bench.labels).float().mean()), 4)


def markdown(table: pd.DataFrame) -> str:
    """Return the rows as a table for people."""
    shown = table.reindex(columns=["case", "tool", "step", "score", "sqnr_db", "seconds"]).astype(object)
    lines = ["| " + " | ".join(shown.columns) + " |", "|" + "---|" * len(shown.columns)]
    lines += ["| " + " | ".join("" if pd.isna(one) else str(one) for one in row) + " |" for row in shown.to_numpy()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
