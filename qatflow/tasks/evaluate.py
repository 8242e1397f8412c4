"""Measure a model on the evaluation part of the data, beside FP32 on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from qatflow.errors import DataError
from qatflow.graph.called import called
from qatflow.graph.outputs import OutputPart, output_parts, whole_outputs
from qatflow.graph.padding import padding_of
from qatflow.graph.sqnr import OutputSqnr, lowest, lowest_of_samples, part_powers
from qatflow.graph.tree import tree_leaves, tree_map
from qatflow.results.gate import Measurement
from qatflow.tasks.data import Batch
from qatflow.tasks.jackknife import Replicated
from qatflow.tasks.metrics import Metric, sqnr_db, update
from qatflow.tasks.splits import naming
from qatflow.users_code import users_code

REMEMBER = 256 * 2**20
"""Most bytes of FP32 outputs that are kept; beyond that FP32 runs again beside every candidate."""


@dataclass(frozen=True)
class Evaluation:
    """What one pass measured.

    Attributes:
        measurement: the metric.
        outputs: name and signal to quantization-noise ratio against FP32's, in dB within `MOST_DB`, of every part of
            the float outputs (`qatflow.graph.outputs`); NaN where a value is not finite. Padded positions do not count.
        samples: how many there were.
    """

    measurement: Measurement
    outputs: tuple[tuple[str, float], ...]
    samples: int

    @property
    def sqnr_db(self) -> float:
        """The lowest ratio of all parts; NaN where one is NaN, or where no output is a float tensor."""
        return lowest(ratio for _, ratio in self.outputs)


class Evaluator:
    """Measures models against one FP32 model on one part of the data.

    Args:
        fp32: called with a batch's inputs; its outputs are the reference. A captured graph knows the parts of its
            outputs, and which positions are padding.
        batches: called for a fresh pass over the same samples in the same order.
        metric: what to measure.
        device: where batches go.
        part: the name of that part, for errors.
    """

    def __init__(
        self,
        fp32: Callable[..., Any],
        batches: Callable[[], Iterable[Batch]],
        metric: Metric,
        device: torch.device,
        part: str = "",
    ) -> None:
        self.part = part
        self.fp32 = fp32
        self.batches = batches
        self.metric = metric
        self.device = device
        self._remembered: list[Any] | None = []
        self._bytes = 0
        self._complete = False

    @torch.no_grad()
    def evaluate(self, model: Callable[..., Any]) -> Evaluation:
        """Measure `model`; a value that is not finite makes the measurement NaN."""
        scores: list[Tensor] = []
        whole = None if self.metric.make_whole is None else Replicated(self._make_whole)
        sqnr: OutputSqnr | None = None
        samples = 0
        for index, cpu_batch in enumerate(self.batches()):
            with naming(self.part, index + 1):
                batch = cpu_batch.to(self.device)
                padding = padding_of(self.fp32, batch.args, batch.kwargs)
                batch = replace(batch, mask=None if padding is None or padding.of_inputs_only else padding.mask)
                reference = self._reference(index, batch)
                outputs = reference if model is self.fp32 else called(model, batch.args, batch.kwargs)
                sqnr = sqnr or OutputSqnr(self._parts(reference))
                powers = part_powers(sqnr.parts, reference, outputs, padding)
                sqnr.add(powers)
                samples += batch.size
                if whole is not None:
                    update(whole, self.metric, outputs, batch.target, batch.size)
                elif self.metric.per_sample is sqnr_db:
                    # Without parts there are no real numbers, which the metric itself refuses in a sentence.
                    known = bool(sqnr.parts)
                    scored = lowest_of_samples(powers, batch.size) if known else sqnr_db(outputs, None, reference)
                    scores.append(scored.cpu())
                elif self.metric.per_sample is not None:
                    scores.append(_scores(self.metric, outputs, batch, reference))
        self._complete = self._remembered is not None
        finite = sqnr is None or all(math.isfinite(ratio) for _, ratio in sqnr.ratios())
        with naming(self.part):
            measurement = self._measurement(scores, whole, samples, finite)
        return Evaluation(measurement, () if sqnr is None else sqnr.ratios(), samples)

    def _parts(self, reference: Any) -> list[OutputPart]:
        return output_parts(self.fp32) if isinstance(self.fp32, fx.GraphModule) else whole_outputs(reference)

    def _make_whole(self) -> Any:
        """Return a fresh metric over all samples, on the device of the batches."""
        assert self.metric.make_whole is not None
        whole = self.metric.make_whole()
        return whole.to(self.device) if hasattr(whole, "to") else whole

    def _measurement(self, scores: list[Tensor], whole: Replicated | None, samples: int, finite: bool) -> Measurement:
        better = self.metric.higher_is_better
        if whole is not None:
            with users_code(f"gate.metric: {self.metric.name}"):
                value, replicates = whole.result() if finite else (math.nan, None)
            return Measurement(value, None, better, replicates, samples)
        per_sample = torch.cat(scores).double().numpy() if scores else np.zeros(0)
        if scores and not len(per_sample):
            message = "no label of the data counts: all of them are ignored; correct them, or data.ignore_index"
            raise DataError(message)
        value = float(per_sample.mean()) if len(per_sample) and finite else math.nan
        return Measurement(value, per_sample, better, samples=samples)

    def _reference(self, index: int, batch: Batch) -> Any:
        """Return FP32's outputs of a batch, from memory where they fit."""
        if self._complete and self._remembered is not None:
            return tree_map(
                lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, self._remembered[index]
            )
        outputs = called(self.fp32, batch.args, batch.kwargs)
        if self._remembered is not None:
            if index == 0:
                self._remembered, self._bytes = [], 0
            leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
            self._bytes += sum(leaf.numel() * leaf.element_size() for leaf in leaves)
            self._remembered.append(tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, outputs))
            if self._bytes > REMEMBER:
                self._remembered = None
        return outputs


def _scores(metric: Metric, outputs: Any, batch: Batch, reference: Any) -> Tensor:
    """Return the scores of a batch on the CPU, one for every sample that counts.

    Raises:
        DataError: the metric returned something else.
    """
    scores = metric.scores(outputs, batch.target, reference, batch.mask)
    if not isinstance(scores, Tensor) or scores.shape != (batch.size,):
        found = f"shape {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        message = f"the metric {metric.name} returned {found} for {batch.size} samples; return one score per sample"
        raise DataError(message)
    return (scores if metric.counts is None else scores[metric.counts(outputs, batch.target, batch.mask)]).cpu()
