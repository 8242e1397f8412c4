"""Time an exported file beside the FP32 model in the same runtime."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import fx

from qatflow.export.latency import ENOUGH_SECONDS, beside, interleaved
from qatflow.export.loaded import LoadedFile
from qatflow.export.onnx_file import OnnxOptions, write_onnx
from qatflow.export.pte_export import write_program
from qatflow.export.signature import Example, Signature, repeated
from qatflow.export.single_precision import in_single_precision
from qatflow.graph.surgery import finish
from qatflow.ladder.bench import Bench
from qatflow.quant.network import copy_graph
from qatflow.recipe.targets import FileKind
from qatflow.results.latency import SHORT_CALL, LatencyRecord


def write_fp32(bench: Bench, signature: Signature, kind: FileKind, folder: Path) -> Path:
    """Write the FP32 model as a file of the same kind, and return its path.

    Raises:
        ExportError: it cannot be written as one.
    """
    path = folder / f"fp32.{kind}"
    example, batch, graph = bench.task.example(), bench.recipe.export.batch, _single(bench.base.graph)
    if kind == "pte":
        write_program(graph, signature, example, path, batch=batch or 1)
    else:
        write_onnx(graph, signature, example, path, OnnxOptions(batch=batch))
    return path


def latency_of(
    int8: LoadedFile, fp32: LoadedFile, two: Example, batch: int | None = None, seconds: float = ENOUGH_SECONDS
) -> LatencyRecord:
    """Time two files in turn on one sample; where that takes next to no time, on two as well: see `LatencyRecord`."""
    one = repeated(batch or 1, two)
    found = beside(partial(int8.run, *one), partial(fp32.run, *one), seconds)
    of_two: tuple[float | None, float | None] = (None, None)
    if batch is None and min(found.one.median, found.other.median) < SHORT_CALL:
        both = interleaved(partial(int8.run, *two), partial(fp32.run, *two), seconds=seconds)
        of_two = both[0].median, both[1].median
    return LatencyRecord(
        batch=batch or 1,
        int8=found.one.median,
        int8_quartiles=(found.one.low, found.one.high),
        fp32=found.other.median,
        fp32_quartiles=(found.other.low, found.other.high),
        speed_up_interval=(found.low, found.high),
        int8_of_two=of_two[0],
        fp32_of_two=of_two[1],
    )


def size_of(path: Path) -> int:
    """Return the bytes of a file, with the data that it keeps beside it."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def _single(graph: fx.GraphModule) -> fx.GraphModule:
    """Return a copy in single precision, as the exported file is: the runtime has few kernels for doubles."""
    copied = copy_graph(graph)
    in_single_precision(copied)
    return finish(copied)
