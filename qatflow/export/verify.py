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
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from qatflow.errors import ExportError
from qatflow.export.compare import Difference, compare
from qatflow.export.loaded import LoadedFile
from qatflow.export.onnx_export import Exported, weight_bits
from qatflow.export.processor import exact_on, processor_name
from qatflow.export.runtimes import Chosen, Runtime, runtime_of
from qatflow.export.signature import Example
from qatflow.export.timing import latency_of, size_of, write_fp32
from qatflow.graph.capture_errors import first_sentence
from qatflow.graph.outputs import output_parts
from qatflow.graph.padding import Padding, padding_of
from qatflow.graph.sqnr import OutputSqnr, decibel, part_powers
from qatflow.graph.tree import tree_map_only
from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate
from qatflow.results.outputs import MOST_BYTES, Outputs, keep_outputs
from qatflow.results.result import CandidateRecord, FloatLayer, TensorDifference, Verification
from qatflow.results.verification import ByDefault
from qatflow.tasks.metrics import logits

COMPARED = 16
"""Evaluation samples on which tensors inside the model are compared."""
SHOWN = 20
LEAST_SQNR = 35.0
"""A tensor with less, in dB, or with more elements off by over a step than the next, is computed in another way."""
MOST_OFF_BY_MORE = 1e-3
ALL_BITS = 32


def verify(bench: Bench, winner: Candidate, exported: Exported) -> tuple[CandidateRecord, Verification]:
    """Return the exported file's row, judged by the gate, and what else was found.

    Raises:
        ExportError: neither the runtime nor its stand-in can load the file.
    """
    started = time.perf_counter()
    target = bench.base.design.target
    chosen, model = _loaded(exported, runtime_of(target.road, exported.kind, target.name))
    runtime = chosen.runtime
    default = runtime.by_default(exported.path, exported.signature, ()) if runtime and runtime.by_default else None
    watched = _Watched(model, default, exported.simulation, bench.base.graph)
    ground = bench.testing if runtime is None else bench.first_of_test(runtime.most_samples)
    evaluation = ground.evaluator.evaluate(watched)
    record = bench.deployed(evaluation, winner, time.perf_counter() - started, ground)
    keep_outputs(bench.run_folder, watched.scores)
    differences = _differences(bench, exported, chosen)
    found = Verification(
        file=f"export/{exported.path.name}",
        runtime=model.name,
        processor=processor_name(),
        is_target=runtime is not None,
        stands_in=chosen.missing,
        settings=runtime.exactly if runtime else "",
        by_default=watched.default.record(default.precision) if default is not None else None,
        exact_on=exact_on(exported.weights, weight_bits(exported.placement)),
        weights=exported.weights,
        samples=evaluation.samples,
        of_samples=bench.testing.samples if ground is not bench.testing else None,
        agreement=watched.exact.agreement,
        sqnr_db=watched.exact.sqnr_db,
        compared=len(differences),
        worst=_worst(differences, exported, runtime.exact_bits if runtime else ALL_BITS),
        bytes=size_of(exported.path),
    )
    return record, found if runtime is None else _looked_into(bench, exported, runtime, found)


def _loaded(exported: Exported, chosen: Chosen) -> tuple[Chosen, LoadedFile]:
    """Return a file in its runtime; in a stand-in where that one cannot load it, which is not the end of a run.

    Raises:
        ExportError: the stand-in cannot either.
    """
    if chosen.runtime is None:
        return chosen, chosen.load(exported.path, exported.signature, ())
    try:
        return chosen, chosen.load(exported.path, exported.signature, ())
    except ExportError as error:
        return _loaded(exported, Chosen(runtime=None, missing=first_sentence(error)))


class _Agreement:
    """How far a file's outputs are from the simulation's."""

    def __init__(self, fp32: fx.GraphModule) -> None:
        self.same = self.classified = 0
        self.sqnr = OutputSqnr(output_parts(fp32))
        self.classes = True

    def add(self, wanted: Any, got: Any, padding: Padding | None) -> None:
        """Count a batch."""
        self.sqnr.add(part_powers(self.sqnr.parts, wanted, got, padding))
        scores = logits(wanted)
        if scores.dim() < 2 or scores.dim() == 3 or scores.shape[1] < 2 or not scores.is_floating_point():
            self.classes = False
            return
        same = scores.argmax(1) == logits(got).argmax(1)
        if padding is not None and same.shape == padding.mask.shape:
            same = same[padding.mask]
        self.same, self.classified = self.same + int(same.sum()), self.classified + same.numel()

    def record(self, precision: str) -> ByDefault:
        """Return what was counted."""
        return ByDefault(precision=precision, agreement=self.agreement, sqnr_db=self.sqnr_db)

    @property
    def agreement(self) -> float | None:
        return self.same / self.classified if self.classes and self.classified else None

    @property
    def sqnr_db(self) -> float | None:
        ratio = self.sqnr.lowest
        return ratio if math.isfinite(ratio) else None


class _Watched:
    """The file as a model; what it returns, also by default, is compared with the simulation on the way."""

    def __init__(
        self, model: LoadedFile, by_default: LoadedFile | None, simulation: fx.GraphModule, fp32: fx.GraphModule
    ) -> None:
        self.model, self.by_default, self.simulation, self.fp32 = model, by_default, simulation, fp32
        self.exact, self.default = _Agreement(fp32), _Agreement(fp32)
        self.scores: list[Outputs] = []
        """The main output of the first batches, as much as is kept."""
        self.bytes = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        got, wanted = self.model(*args, **kwargs), self.simulation(*args, **kwargs)
        padding = padding_of(self.fp32, args, kwargs)
        self.exact.add(wanted, got, padding)
        if self.bytes < MOST_BYTES:
            self.scores.append(logits(got).detach().float().cpu().numpy())
            self.bytes += self.scores[-1].nbytes
        if self.by_default is not None:
            self.default.add(wanted, self.by_default(*args, **kwargs), padding)
        return got


def _differences(bench: Bench, exported: Exported, chosen: Chosen) -> list[Difference]:
    """Compare the integers of every quantized activation on a few samples, where the runtime shows them."""
    if exported.kind != "onnx":
        return []
    names = [f"{point.tensor}_quantized" for point in exported.placement.points if not point.parameter]
    try:
        model = chosen.load(exported.path, exported.signature, names)
    except ExportError as error:
        bench.progress.note(f"tensors inside the file are not compared: {first_sentence(error)}")
        return []
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


def _worst(differences: list[Difference], exported: Exported, exact_bits: int) -> tuple[TensorDifference, ...]:
    points = {point.tensor: point for point in exported.placement.points if not point.parameter}
    found = [
        _record(one, points[one.tensor].layer, by_steps=points[one.tensor].grid.bits <= exact_bits)
        for one in differences
        if one.elements
    ]
    wrong = sorted((one for one in found if not one.agrees), key=lambda one: one.sqnr_db)
    rest = sorted((one for one in found if one.agrees), key=lambda one: (-one.differing, one.sqnr_db))
    return (*wrong, *rest[: max(0, SHOWN - len(wrong))])


def _record(one: Difference, layer: str, *, by_steps: bool) -> TensorDifference:
    ratio = decibel(one.signal, one.noise)
    agrees = ratio >= LEAST_SQNR and (not by_steps or one.by_more <= MOST_OFF_BY_MORE * one.elements)
    return TensorDifference(
        tensor=one.tensor,
        layer=layer,
        differing=one.differing / one.elements,
        steps=one.steps,
        sqnr_db=ratio,
        agrees=agrees or one.noise == 0,
    )


def _looked_into(bench: Bench, exported: Exported, runtime: Runtime, found: Verification) -> Verification:
    """Add what only the target itself can tell: its kernels, its latency, and FP32's beside it."""
    inside = runtime.inside(exported)
    found = found.model_copy(
        update={
            "layers": len(inside.layers),
            "integer_layers": sum(one.integer for one in inside.layers),
            "float_layers": tuple(
                FloatLayer(layer=one.layer, op=one.op, reason=one.reason) for one in inside.layers if not one.integer
            ),
            "kernels": inside.kernels,
        }
    )
    try:
        return found.model_copy(update=_timed(bench, exported, runtime)) if runtime.timed else found
    except ExportError as error:
        bench.progress.note(f"the file is not timed, as FP32 does not run beside it: {first_sentence(error)}")
        return found


def _timed(bench: Bench, exported: Exported, runtime: Runtime) -> dict[str, Any]:
    """Return what a call takes beside one of FP32 in the same runtime, and FP32's size."""
    example, batch = bench.task.example(), bench.recipe.export.batch
    with tempfile.TemporaryDirectory() as folder:
        fp32 = write_fp32(bench, exported.signature, exported.kind, Path(folder))
        loads = (runtime.by_default or runtime.load, *([runtime.load] if runtime.by_default else []))
        times = [
            latency_of(load(exported.path, exported.signature, ()), load(fp32, exported.signature, ()), example, batch)
            for load in loads
        ]
        return dict(zip(("latency", "exact_latency"), times, strict=False)) | {"fp32_bytes": size_of(fp32)}
