"""Replicates: torchmetrics' metrics against leaving the groups out by hand, outputs of every form, and refusals."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor
from torchmetrics.classification import BinaryAUROC, MulticlassF1Score, MulticlassJaccardIndex
from torchmetrics.image import PeakSignalNoiseRatio

from qatflow.errors import DataError
from qatflow.recipe import Gate
from qatflow.results.gate import Measurement, decide
from qatflow.results.result import Verdict
from qatflow.tasks.jackknife import GROUPS, Replicated, single

SAMPLES = 110


def replicated(make: Callable[[], Any], outputs: Any, target: Any, batch: int = 16, groups: int = GROUPS) -> Replicated:
    found = Replicated(make, groups)
    for start in range(0, len(target), batch):
        rows = slice(start, start + batch)
        found.update(outputs[rows], target[rows], len(target[rows]))
    return found


def by_hand(make: Callable[[], Any], outputs: Any, target: Any) -> tuple[float, list[float]]:
    def value(kept: list[int]) -> float:
        metric = make()
        if isinstance(outputs, Tensor):
            metric.update(outputs[kept], target[kept])
        else:
            metric.update([outputs[row] for row in kept], [target[row] for row in kept])
        return single(metric.compute())

    everything = list(range(len(target)))
    return value(everything), [value([row for row in everything if row % GROUPS != group]) for group in range(GROUPS)]


def classified(*shape: int, classes: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(SAMPLES, classes, *shape), torch.randint(classes, (SAMPLES, *shape))


METRICS = {
    "F1": (lambda: MulticlassF1Score(5), lambda: classified()),
    "mIoU": (lambda: MulticlassJaccardIndex(5), lambda: classified(4, 4)),
    "RMSE": (
        lambda: torchmetrics.MeanSquaredError(squared=False),
        lambda: (torch.randn(SAMPLES), torch.randn(SAMPLES)),
    ),
    "AUROC": (BinaryAUROC, lambda: (torch.rand(SAMPLES), torch.randint(2, (SAMPLES,)))),
    "R2": (torchmetrics.R2Score, lambda: (torch.randn(SAMPLES), torch.randn(SAMPLES))),
    "Pearson": (torchmetrics.PearsonCorrCoef, lambda: (torch.randn(SAMPLES), torch.randn(SAMPLES))),
    "PSNR": (
        lambda: PeakSignalNoiseRatio(data_range=1.0),
        lambda: (torch.rand(SAMPLES, 1, 8, 8), torch.rand(SAMPLES, 1, 8, 8)),
    ),
}


@pytest.mark.parametrize("batch", [1, 16, 200])
@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_torchmetrics_by_hand(name: str, batch: int) -> None:
    make, data = METRICS[name]
    outputs, target = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value, replicates = replicated(make, outputs, target, batch).result()
        wanted, wanted_replicates = by_hand(make, outputs, target)
    assert value == pytest.approx(wanted, rel=1e-5)
    assert replicates is not None and replicates.dtype == np.float64
    assert replicates.tolist() == pytest.approx(wanted_replicates, rel=1e-5, abs=1e-6)


class Found:
    """A metric of detections, per sample dicts of boxes, that returns a mapping as mean average precision does."""

    def __init__(self) -> None:
        self.hits: list[float] = []

    def update(self, outputs: list[dict[str, Tensor]], target: list[dict[str, Tensor]]) -> None:
        assert len(outputs) == len(target)
        for one, wanted in zip(outputs, target, strict=True):
            near = torch.cdist(wanted["boxes"], one["boxes"]).amin(1) < 1
            self.hits.append(float(near.double().mean() * one["scores"].mean()))

    def compute(self) -> dict[str, Tensor]:
        median = torch.tensor(self.hits).median()
        return {"map": median, "map_50": 2 * median}


def detections(count: int, boxes: int | None = None) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    sizes = [boxes or int(one) for one in torch.randint(1, 6, (count,))]
    target = [{"boxes": torch.rand(size, 4) * 3} for size in sizes]
    outputs = [{"boxes": one["boxes"] + torch.randn(4), "scores": torch.rand(len(one["boxes"]))} for one in target]
    return outputs, target


@pytest.mark.parametrize(("batch", "boxes"), [(1, None), (7, None), (3, 3), (1, 1)])
def test_detections_are_taken_apart_by_sample(batch: int, boxes: int | None) -> None:
    outputs, target = detections(60, boxes)
    value, replicates = replicated(Found, outputs, target, batch).result()
    wanted, wanted_replicates = by_hand(Found, outputs, target)
    assert value == wanted
    assert replicates is not None and replicates.tolist() == wanted_replicates


class Summed:
    """A metric of two outputs and a mapping of targets."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def update(self, outputs: tuple[Tensor, None, Tensor], target: dict[str, Tensor]) -> None:
        self.rows.append(outputs[0].sum(1) * outputs[2] - target["labels"])

    def compute(self) -> float:
        return float(torch.cat(self.rows).double().std())


@pytest.mark.parametrize("batch", [2, 3, 10])
def test_trees_of_tensors_are_taken_apart_by_their_first_dimension(batch: int) -> None:
    first, second, labels = torch.randn(40, 3), torch.randn(40), torch.randn(40)
    found = Replicated(Summed)
    for start in range(0, 40, batch):
        rows = slice(start, start + batch)
        found.update((first[rows], None, second[rows]), {"labels": labels[rows]}, len(labels[rows]))
    value, replicates = found.result()
    scores = first.sum(1) * second - labels
    assert value == pytest.approx(float(scores.double().std()))
    kept = [torch.arange(40) % GROUPS != group for group in range(GROUPS)]
    assert replicates is not None
    assert replicates.tolist() == pytest.approx([float(scores[one].double().std()) for one in kept])


class Whole:
    """A metric that makes nothing of its inputs."""

    def update(self, outputs: Any, target: Any) -> None:
        pass

    def compute(self) -> float:
        return 0.5


@pytest.mark.parametrize(
    "outputs", [torch.tensor(3.0), torch.zeros(5), {"a": torch.zeros(4), "b": 7}, [torch.zeros(2)]]
)
def test_outputs_that_cannot_be_taken_apart_give_a_value_alone(outputs: Any) -> None:
    found = Replicated(Whole)
    found.update(outputs, None, 4)
    assert found.result() == (0.5, None)


class BatchesOnly(Whole):
    """A metric that cannot take less than four samples, or has no value for less than all of them."""

    def __init__(self, in_update: bool) -> None:
        self.in_update, self.seen = in_update, 0

    def update(self, outputs: Tensor, target: Any) -> None:
        self.seen += len(outputs)
        if self.in_update and len(outputs) < 4:
            raise ValueError("at least four")

    def compute(self) -> float:
        if self.seen < 40:
            raise RuntimeError("at least forty")
        return 0.5


@pytest.mark.parametrize("in_update", [True, False])
def test_a_metric_that_takes_whole_batches_only_gives_a_value_alone(in_update: bool) -> None:
    found = Replicated(lambda: BatchesOnly(in_update))
    for _ in range(10):
        found.update(torch.zeros(4), None, 4)
    assert found.result() == (0.5, None)


def test_few_samples_are_as_many_groups() -> None:
    values = torch.randn(6)
    value, replicates = replicated(torchmetrics.MeanAbsoluteError, values, torch.zeros(6), 4).result()
    assert value == pytest.approx(float(values.abs().mean()))
    assert replicates is not None
    assert replicates.tolist() == pytest.approx(
        [float(values[torch.arange(6) != one].abs().mean()) for one in range(6)]
    )
    assert replicated(torchmetrics.MeanAbsoluteError, values[:1], torch.zeros(1)).result()[1] is None


def test_without_groups_there_is_the_value_alone() -> None:
    outputs, target = classified()
    found = replicated(lambda: MulticlassF1Score(5), outputs, target, groups=0)
    assert found.result() == (replicated(lambda: MulticlassF1Score(5), outputs, target).result()[0], None)
    assert found.samples == SAMPLES


@pytest.mark.parametrize(
    ("computed", "value"),
    [
        (0.25, 0.25),
        (torch.tensor([0.25]), 0.25),
        (np.float32(0.25), 0.25),
        ({"map": torch.tensor(0.25), "map_50": torch.tensor(0.5)}, 0.25),
        ({"MulticlassAccuracy": torch.tensor(0.25)}, 0.25),
    ],
)
def test_one_number_of_what_is_computed(computed: Any, value: float) -> None:
    assert single(computed) == value


def test_several_numbers_are_refused() -> None:
    with pytest.raises(DataError, match=r"gate.metric: it computes precision, recall; return a metric of one of them"):
        single({"precision": 1.0, "recall": 0.5})
    with pytest.raises(DataError, match=r"computes 3 numbers and the gate takes one; average them"):
        replicated(lambda: MulticlassF1Score(3, average=None), *classified(classes=3)).result()
    assert math.isnan(single(torch.tensor(math.nan)))


def test_a_metric_that_is_no_mean_of_samples_is_judged_with_an_interval() -> None:
    target = torch.randint(5, (1000,))
    scores = torch.nn.functional.one_hot(target, 5) + 0.4 * torch.randn(1000, 5)

    def measured(outputs: Tensor) -> Measurement:
        value, replicates = replicated(lambda: MulticlassF1Score(5), outputs, target).result()
        return Measurement(value, None, True, replicates, len(target))

    fp32 = measured(scores)
    same, near, far = (measured(scores + noise * torch.randn(1000, 5)) for noise in (0.0, 0.01, 0.2))
    found = [decide(Gate(max_drop=0.05), fp32, one) for one in (same, near, far)]
    assert all(one.low < one.drop < one.high and one.lost is None for one in found)
    assert [one.verdict for one in found[:2]] == [Verdict.MET, Verdict.MET]
    assert "over 1000 samples: with 95 % confidence" in found[1].sentence
    low, drop, high = found[2].low, found[2].drop, found[2].high
    limits = {(low + drop) / 2: Verdict.MISSED, (drop + high) / 2: Verdict.WITHIN_NOISE, 1.01 * high: Verdict.MET}
    assert {limit: decide(Gate(max_drop=limit), fp32, far).verdict for limit in limits} == limits
