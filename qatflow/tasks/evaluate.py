"""Measure a model on the evaluation part of the data, beside FP32 on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from qatflow.errors import DataError
from qatflow.gate import Measurement
from qatflow.tasks.data import Batch
from qatflow.tasks.metrics import Metric, update

REMEMBER = 256 * 2**20
"""Most bytes of FP32 outputs that are kept; beyond that FP32 runs again beside every candidate."""


MOST_DB = 300.0
"""What an SQNR is held within, so that an exact match is a number and ranks first."""


@dataclass(frozen=True)
class Evaluation:
    """What one pass measured.

    Attributes:
        measurement: the metric.
        sqnr_db: signal to quantization-noise ratio of all float outputs against FP32's, within `MOST_DB`; NaN where an
            output is not finite.
        samples: how many there were.
    """

    measurement: Measurement
    sqnr_db: float
    samples: int


class Evaluator:
    """Measures models against one FP32 model on one part of the data.

    Args:
        fp32: called with a batch's inputs; its outputs are the reference.
        batches: called for a fresh pass over the same samples in the same order.
        metric: what to measure.
        device: where batches go.
    """

    def __init__(
        self,
        fp32: Callable[..., Any],
        batches: Callable[[], Iterable[Batch]],
        metric: Metric,
        device: torch.device,
    ) -> None:
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
        whole = self._whole()
        signal = noise = 0.0
        samples = 0
        for index, cpu_batch in enumerate(self.batches()):
            batch = cpu_batch.to(self.device)
            reference = self._reference(index, batch)
            outputs = reference if model is self.fp32 else model(*batch.args, **batch.kwargs)
            power, difference = powers(reference, outputs)
            signal, noise, samples = signal + power, noise + difference, samples + batch.size
            if whole is not None:
                update(whole, self.metric, outputs, batch.target)
            elif self.metric.per_sample is not None:
                scores.append(_scores(self.metric, outputs, batch, reference))
        self._complete = self._remembered is not None
        return Evaluation(self._measurement(scores, whole, math.isfinite(noise)), decibel(signal, noise), samples)

    def _whole(self) -> Any:
        """Return a fresh metric over all samples, on the device of the batches; None where there is none."""
        if self.metric.make_whole is None:
            return None
        whole = self.metric.make_whole()
        return whole.to(self.device) if hasattr(whole, "to") else whole

    def _measurement(self, scores: list[Tensor], whole: Any, finite: bool) -> Measurement:
        if whole is not None:
            value = float(whole.compute()) if finite else math.nan
            return Measurement(value, None, self.metric.higher_is_better)
        per_sample = torch.cat(scores).double().numpy() if scores else np.zeros(0)
        if scores and not len(per_sample):
            message = "no label of the data counts: all of them are ignored; correct them, or data.ignore_index"
            raise DataError(message)
        value = float(per_sample.mean()) if len(per_sample) and finite else math.nan
        return Measurement(value, per_sample, self.metric.higher_is_better)

    def _reference(self, index: int, batch: Batch) -> Any:
        """Return FP32's outputs of a batch, from memory where they fit."""
        if self._complete and self._remembered is not None:
            return pytree.tree_map(
                lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, self._remembered[index]
            )
        outputs = self.fp32(*batch.args, **batch.kwargs)
        if self._remembered is not None:
            if index == 0:
                self._remembered, self._bytes = [], 0
            leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
            self._bytes += sum(leaf.numel() * leaf.element_size() for leaf in leaves)
            self._remembered.append(
                pytree.tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, outputs)
            )
            if self._bytes > REMEMBER:
                self._remembered = None
        return outputs


def _scores(metric: Metric, outputs: Any, batch: Batch, reference: Any) -> Tensor:
    """Return the scores of a batch on the CPU, one for every sample that counts.

    Raises:
        DataError: the metric returned something else.
    """
    mask = getattr(batch, "mask", None)
    scores = metric.scores(outputs, batch.target, reference, mask)
    if not isinstance(scores, Tensor) or scores.shape != (batch.size,):
        found = f"shape {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        message = f"the metric {metric.name} returned {found} for {batch.size} samples; return one score per sample"
        raise DataError(message)
    return (scores if metric.counts is None else scores[metric.counts(outputs, batch.target, mask)]).cpu()


def powers(reference: Any, outputs: Any) -> tuple[float, float]:
    """Return the power of the reference and of the difference, summed over all float outputs."""
    signal = noise = 0.0
    for wanted, got in zip(pytree.tree_leaves(reference), pytree.tree_leaves(outputs), strict=True):
        if isinstance(wanted, Tensor) and wanted.is_floating_point():
            signal += float(wanted.double().square().sum())
            noise += float((wanted.double() - got.double()).square().sum())
    return signal, noise


def decibel(signal: float, noise: float) -> float:
    """Return `10 log10(signal / noise)` within `MOST_DB`; NaN where the noise is not finite."""
    if not math.isfinite(noise):
        return math.nan
    if noise == 0:
        return MOST_DB
    return max(-MOST_DB, min(MOST_DB, 10 * math.log10(signal / noise))) if signal > 0 else -MOST_DB
