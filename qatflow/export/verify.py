"""Run the exported file in its runtime: does it compute what was promised, on integers, and faster?

The metric is measured on the whole evaluation part, and the outputs are compared with the simulation's. Inside the
model every quantized tensor is compared as well, each computed from the runtime's own integers of the tensors before
it, so that a tensor that is named is the one that goes wrong.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from qatflow.export.compare import Difference, compare
from qatflow.export.integer_kernels import kernel_counts, layer_kernels
from qatflow.export.latency import interleaved
from qatflow.export.onnx_export import Exported, weight_bits
from qatflow.export.onnx_file import OnnxOptions, write_onnx
from qatflow.export.processor import exact_on, processor_name
from qatflow.export.runtime import OnnxModel
from qatflow.export.runtimes import LoadedFile, runtime_of
from qatflow.export.signature import Example
from qatflow.export.single_precision import in_single_precision
from qatflow.graph.outputs import output_parts
from qatflow.graph.padding import padding_of
from qatflow.graph.sqnr import OutputSqnr, decibel, part_powers
from qatflow.graph.surgery import finish
from qatflow.graph.tree import tree_map_only
from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate
from qatflow.quant.network import copy_graph
from qatflow.results.latency import SHORT_CALL
from qatflow.results.result import CandidateRecord, FloatLayer, LatencyRecord, TensorDifference, Verification
from qatflow.tasks.metrics import logits

COMPARED = 16
"""Evaluation samples on which tensors inside the model are compared."""
SHOWN = 20
LEAST_SQNR = 35.0
"""A tensor with less, in dB, or with more elements off by over a step than the next, is computed in another way."""
MOST_OFF_BY_MORE = 1e-3


def verify(bench: Bench, winner: Candidate, exported: Exported) -> tuple[CandidateRecord, Verification]:
    """Return the exported file's row, judged by the gate, and what else was found.

    Raises:
        ExportError: the runtime cannot load the file.
    """
    started = time.perf_counter()
    runtime, is_own = runtime_of(bench.base.design.target.road, exported.kind)
    model = runtime.load(exported, not is_own)
    watched = _Watched(model, exported.simulation, bench.base.graph)
    evaluation = bench.testing.evaluator.evaluate(watched)
    record = bench.deployed(evaluation, winner, time.perf_counter() - started)
    differences = _differences(bench, exported, is_own) if exported.kind == "onnx" else []
    found = Verification(
        file=f"export/{exported.path.name}",
        runtime=model.name,
        processor=processor_name(),
        is_target=is_own,
        exact_on=exact_on(exported.weights, weight_bits(exported.placement)),
        weights=exported.weights,
        samples=evaluation.samples,
        agreement=watched.agreement,
        sqnr_db=watched.sqnr_db,
        compared=len(differences),
        worst=_worst(differences, exported),
        bytes=_size(exported.path),
    )
    return record, _timed(bench, exported, found) if is_own and runtime.tells_kernels else found


class _Watched:
    """The file as a model; what it returns is compared with the simulation on the way."""

    def __init__(self, model: LoadedFile, simulation: fx.GraphModule, fp32: fx.GraphModule) -> None:
        self.model, self.simulation, self.fp32 = model, simulation, fp32
        self.same = self.classified = 0
        self.sqnr = OutputSqnr(output_parts(fp32))
        self.classes = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        got, wanted = self.model(*args, **kwargs), self.simulation(*args, **kwargs)
        padding = padding_of(self.fp32, args, kwargs)
        self.sqnr.add(part_powers(self.sqnr.parts, wanted, got, padding))
        scores = logits(wanted)
        if scores.dim() < 2 or scores.dim() == 3 or scores.shape[1] < 2 or not scores.is_floating_point():
            self.classes = False
        else:
            same = scores.argmax(1) == logits(got).argmax(1)
            if padding is not None and same.shape == padding.mask.shape:
                same = same[padding.mask]
            self.same, self.classified = self.same + int(same.sum()), self.classified + same.numel()
        return got

    @property
    def agreement(self) -> float | None:
        return self.same / self.classified if self.classes and self.classified else None

    @property
    def sqnr_db(self) -> float | None:
        ratio = self.sqnr.lowest
        return ratio if math.isfinite(ratio) else None


def _differences(bench: Bench, exported: Exported, optimized: bool) -> list[Difference]:
    """Compare the integers of every quantized activation on a few samples."""
    names = [f"{point.tensor}_quantized" for point in exported.placement.points if not point.parameter]
    model = OnnxModel(exported.path, exported.signature, also=names, as_written=not optimized)
    return compare(exported.graph, model, _few(bench))


def _few(bench: Bench) -> Iterator[Example]:
    left = COMPARED
    for batch in bench.task.test():
        few = batch.to(bench.task.device)
        yield _first(left, (few.args, few.kwargs))
        left -= batch.size
        if left <= 0:
            return


def _first(count: int, example: Example) -> Example:
    """Return the first samples of a batch."""
    return tree_map_only(Tensor, lambda one: one[:count], example)  # type: ignore[no-any-return]


def _worst(differences: list[Difference], exported: Exported) -> tuple[TensorDifference, ...]:
    layers = {point.tensor: point.layer for point in exported.placement.points}
    found = [_record(one, layers.get(one.tensor, one.tensor)) for one in differences if one.elements]
    wrong = sorted((one for one in found if not one.agrees), key=lambda one: one.sqnr_db)
    rest = sorted((one for one in found if one.agrees), key=lambda one: (-one.differing, one.sqnr_db))
    return (*wrong, *rest[: max(0, SHOWN - len(wrong))])


def _record(one: Difference, layer: str) -> TensorDifference:
    ratio = decibel(one.signal, one.noise)
    agrees = one.by_more <= MOST_OFF_BY_MORE * one.elements and ratio >= LEAST_SQNR
    return TensorDifference(
        tensor=one.tensor,
        layer=layer,
        differing=one.differing / one.elements,
        steps=one.steps,
        sqnr_db=ratio,
        agrees=agrees or one.noise == 0,
    )


def _timed(bench: Bench, exported: Exported, found: Verification) -> Verification:
    """Add what only the target itself can tell: its kernels, its latency, and FP32's beside it."""
    with tempfile.TemporaryDirectory() as folder:
        optimized, fp32 = Path(folder) / "optimized.onnx", Path(folder) / "fp32.onnx"
        model = OnnxModel(exported.path, exported.signature, optimized=optimized)
        kernels = layer_kernels(exported.path, optimized)
        counts = kernel_counts(optimized)
        example = bench.task.example()
        write_onnx(_single(bench.base.graph), exported.signature, example, fp32, OnnxOptions())
        latency = _latency(model, OnnxModel(fp32, exported.signature), example)
        fp32_bytes = _size(fp32)
    return found.model_copy(
        update={
            "layers": len(kernels),
            "integer_layers": sum(one.integer for one in kernels),
            "float_layers": tuple(
                FloatLayer(layer=one.layer, op=one.op, reason=one.reason) for one in kernels if not one.integer
            ),
            "kernels": counts,
            "latency": latency,
            "fp32_bytes": fp32_bytes,
        }
    )


def _single(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a copy in single precision, as the exported file is: the runtime has few kernels for doubles."""
    copied = copy_graph(graph)
    in_single_precision(copied)
    return finish(copied)


def _latency(int8: OnnxModel, fp32: OnnxModel, two: Example) -> LatencyRecord:
    """Time two files in turn on one sample; where that takes next to no time, on two as well: see `LatencyRecord`."""
    one = _first(1, two)
    quantized, float32 = interleaved(partial(int8.run, *one), partial(fp32.run, *one))
    of_two: tuple[float | None, float | None] = (None, None)
    if min(quantized.median, float32.median) < SHORT_CALL:
        both = interleaved(partial(int8.run, *two), partial(fp32.run, *two))
        of_two = both[0].median, both[1].median
    return LatencyRecord(
        batch=1,
        int8=quantized.median,
        int8_quartiles=(quantized.low, quantized.high),
        fp32=float32.median,
        fp32_quartiles=(float32.low, float32.high),
        int8_of_two=of_two[0],
        fp32_of_two=of_two[1],
    )


def _size(path: Path) -> int:
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)
