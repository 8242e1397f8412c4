"""`python -m benchmarks.coverage [--only NAME ...] [--out FOLDER]`: which models qatflow takes, and how well.

One row a model: is it captured, is the graph the same function at other batch sizes and for gradients, are batch norms
folded with the function kept, how many of its weighted layers are quantized, what stays in float, and the SQNR of its
outputs at W8A8 per channel for every target. Writes `coverage.csv` and `coverage.md`; a row is green when nothing in
it failed, and says why where it is not.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from benchmarks.zoo import ZOO, Entry
from qatflow.errors import QatflowError
from qatflow.graph.capture import capture
from qatflow.graph.ops import kind
from qatflow.quant.design import Design
from qatflow.quant.network import Network, copy_graph
from qatflow.quant.prepare import prepare
from qatflow.quant.simulation import Simulation
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Precision
from qatflow.recipe.steps import FoldBatchNorms
from qatflow.steps.context import StepContext
from qatflow.steps.fold_batch_norms import fold_batch_norms

CALIBRATION_BATCHES, BATCH = 2, 4
SAME, SAME_GRADIENT = 1e-4, 1e-3
"""Largest difference, relative to the largest value, that counts as float rounding."""
LEAST_SQNR = 15.0
"""Outputs that are noisier than that at W8A8, in dB, are looked at again with 16 bits."""
LEAST_SQNR_16 = 30.0
"""With 16 bits, and on the inputs of calibration, whose values are all in range, rounding noise is 48 dB lower: with
less than this, in dB, a quantizer stands where none should."""
UNSEEN = 99
"""Seed of inputs that calibration has not seen."""


@dataclass
class Row:
    """What became of one model."""

    model: str
    library: str
    green: bool = False
    captured: bool = False
    same_output: float | None = None
    """Largest difference at batch sizes 1, 3 and 5, relative to the largest value."""
    same_gradient: float | None = None
    batch_norms: str = ""
    """Folded / found."""
    same_folded: float | None = None
    layers: str = ""
    """Weighted layers quantized / found, in the target that quantizes fewest."""
    left_in_float: str = ""
    """Tensors in float with ONNX Runtime, by op."""
    sqnr_db: dict[str, float] = field(default_factory=dict)
    at_16_bits: float | None = None
    """The SQNR at W16A16 on inputs of calibration, where that at W8A8 is low."""
    seconds: float = 0.0
    why: str = ""


def relative(wanted: Any, got: Any) -> float:
    """Return the largest difference between two nested outputs, relative to each tensor's largest value."""
    worst = 0.0
    for a, b in zip(pytree.tree_leaves(wanted), pytree.tree_leaves(got), strict=True):
        if isinstance(a, Tensor) and a.numel():
            a, b = a.detach().double(), b.detach().double()
            apart = (a - b).abs().where((a != b) & ~(a.isnan() & b.isnan()), 0.0).nan_to_num(math.inf, math.inf)
            reach = float(a.where(a.isfinite(), 0.0).abs().max())
            worst = max(worst, float(apart.max()) / max(reach, 1e-12))
    return worst


def gradients(
    call: Any, parameters: dict[str, Tensor], inputs: tuple[tuple[Any, ...], dict[str, Any]]
) -> dict[str, Tensor]:
    """Return the gradient of a fixed mix of the outputs by every parameter that they depend on."""
    outputs = [one for one in pytree.tree_leaves(call(*inputs[0], **inputs[1])) if isinstance(one, Tensor)]
    generator = torch.Generator().manual_seed(1)
    parts = [(one * torch.randn(one.shape, generator=generator)).sum() for one in outputs if one.requires_grad]
    found = torch.autograd.grad(sum(parts[1:], parts[0]), list(parameters.values()), allow_unused=True)
    return {name: one for name, one in zip(parameters, found, strict=True) if one is not None}


def same_gradient(model: nn.Module, graph: fx.GraphModule, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> float:
    """Return the largest difference of gradients, relative to the largest gradient of all."""
    wanted = gradients(model, dict(model.named_parameters()), inputs)
    known = dict(graph.named_parameters())
    got = gradients(graph, {name: known[name] for name in wanted if name in known}, inputs)
    missing = wanted.keys() - got.keys()
    if missing:
        message = f"no gradient in the graph for {', '.join(sorted(missing)[:3])}"
        raise AssertionError(message)
    largest = max(float(one.abs().max()) for one in wanted.values())
    apart = torch.stack([(wanted[name] - got[name]).abs().max() for name in wanted])
    return float(apart.max()) / largest  # NaN where one is, which no limit lets through


def fold(network: Network) -> Network:
    """Fold batch norms."""
    return fold_batch_norms(network, FoldBatchNorms(), StepContext(lambda limit: []))[0]


def folded_in_double(entry: Entry) -> float:
    """Return how much folding changes the outputs in double precision, relative to the largest value."""

    def double(inputs: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)

    torch.manual_seed(0)
    model = entry.build().double()
    graph = capture(model, *double(entry.inputs(2, 0)))
    args, kwargs = double(entry.inputs(3, 3))
    with torch.no_grad():
        return relative(graph(*args, **kwargs), fold(Network(graph)).graph(*args, **kwargs))


def calibrated(network: Network, entry: Entry, seed: int) -> tuple[Simulation, float]:
    """Return a calibrated simulation, and the SQNR of its noisiest output on the inputs of a seed, in dB.

    Padded positions do not count: nobody reads them, and calibration leaves them out as well.
    """
    simulation = Simulation(network)
    simulation.calibrate(entry.inputs(BATCH, known) for known in range(CALIBRATION_BATCHES))
    return simulation, round(simulation.closeness([entry.inputs(BATCH, seed)]), 1)


def simulate(network: Network, entry: Entry, row: Row) -> tuple[int, int]:
    """Quantize for one target and note the SQNR; returns how many weighted layers are quantized, and found."""
    target = network.design.target
    simulation, noise = calibrated(network, entry, UNSEEN)
    row.sqnr_db[target.name] = noise
    placement = simulation.placement
    if target.name == "onnxruntime":
        counts = Counter(left.op.removeprefix("aten.") for left in placement.floats)
        row.left_in_float = ", ".join(f"{count} {op}" for op, count in counts.most_common())
    if placement.float_layers:
        row.why = f"{target.name}: {placement.float_layers[0].reason}"
    return len(placement.layers) - len(placement.float_layers), len(placement.layers)


def judge(name: str, entry: Entry) -> Row:
    """Take one model through everything."""
    row = Row(name, entry.library)
    start = time.perf_counter()
    try:
        torch.manual_seed(0)
        model = entry.build()
        graph = capture(model, *entry.inputs(2, 0))
        row.captured = True
        with torch.no_grad():
            batches = [entry.inputs(size, size) for size in (1, 3, 5)]
            row.same_output = max(relative(model(*a, **k), graph(*a, **k)) for a, k in batches)
        row.same_gradient = same_gradient(model, graph, entry.inputs(2, 3))
        worst: tuple[int, int] | None = None
        for target in TARGETS.values():
            prepared = Network(prepare(copy_graph(graph), target), Design(target))
            norms = sum(kind(node) == "batch_norm" for node in prepared.graph.graph.nodes)
            folded = fold(prepared)
            left = sum(kind(node) == "batch_norm" for node in folded.graph.graph.nodes)
            row.batch_norms = f"{norms - left} / {norms}" if norms else ""
            args, kwargs = batches[1]
            with torch.no_grad():
                difference = relative(model(*args, **kwargs), folded.graph(*args, **kwargs))
            if difference > SAME:  # float rounding in the first layer, grown in the later ones, or a mistake?
                difference = folded_in_double(entry)
            row.same_folded = max(difference, row.same_folded or 0.0)
            counts = simulate(folded, entry, row)
            worst = counts if worst is None or counts < worst else worst
            lowest = row.sqnr_db[target.name] == min(row.sqnr_db.values())
            if lowest and row.sqnr_db[target.name] < LEAST_SQNR:
                wide = folded.designed(Design(target, Precision(weights=16, activations=16)))
                row.at_16_bits = calibrated(wide, entry, 0)[1]
                row.why = (
                    f"8 bits are too coarse for these weights: {row.sqnr_db[target.name]} dB on {target.name}, but "
                    f"{row.at_16_bits} dB with 16 bits on the inputs of calibration"
                )
        assert worst is not None
        row.layers = f"{worst[0]} / {worst[1]}"
        row.green = (
            row.same_output < SAME
            and row.same_gradient < SAME_GRADIENT
            and (row.same_folded or 0) < SAME
            and worst[0] == worst[1]
            and (min(row.sqnr_db.values()) >= LEAST_SQNR or (row.at_16_bits or 0) >= LEAST_SQNR_16)
        )
    except (QatflowError, AssertionError, RuntimeError, ValueError, KeyError, TypeError) as error:
        row.why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    row.seconds = round(time.perf_counter() - start, 1)
    return row


def table(rows: list[Row]) -> pd.DataFrame:
    """Return the rows as a frame, one column a target's SQNR."""
    flat = [{**asdict(row), **{f"{name} dB": db for name, db in row.sqnr_db.items()}} for row in rows]
    frame = pd.DataFrame(flat).drop(columns="sqnr_db")
    last = ["at_16_bits", "seconds", "why"]
    return frame[[*(name for name in frame.columns if name not in last), *last]]


def markdown(frame: pd.DataFrame) -> str:
    """Return a frame as a Markdown table."""

    def cell(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "**no**"
        if isinstance(value, float):
            return "" if value != value else f"{value:.0e}" if 0 < abs(value) < 0.01 else f"{value:g}"
        return str(value).replace("|", "\\|")

    lines = [[name.replace("_", " ") for name in frame.columns], ["---"] * len(frame.columns)]
    lines += [[cell(value) for value in row] for row in frame.astype(object).itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a row is not green."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description="Which models qatflow takes.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of: {', '.join(ZOO)}")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    args = parser.parse_args(argv)
    unknown = sorted(set(args.only or []) - ZOO.keys())
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(ZOO)}")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.only or ZOO:
        rows.append(judge(name, ZOO[name]))
        frame = table(rows)
        frame.to_csv(args.out / "coverage.csv", index=False)
        (args.out / "coverage.md").write_text(markdown(frame))
        print(markdown(frame.tail(1)).splitlines()[-1], flush=True)
    green = sum(row.green for row in rows)
    print(f"{green} of {len(rows)} rows are green; tables in {args.out}")
    return 0 if green == len(rows) else 1


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
