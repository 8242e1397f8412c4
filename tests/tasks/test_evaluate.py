"""Measuring a model beside FP32: metric, SQNR, values that are not finite, and FP32's outputs kept or not."""

import math

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from qatflow.errors import DataError, UserCodeError
from qatflow.graph.capture import capture
from qatflow.tasks import evaluate
from qatflow.tasks.data import Batch
from qatflow.tasks.evaluate import Evaluation, Evaluator
from qatflow.tasks.metrics import METRICS, Metric
from tests.graph import padded

CPU = torch.device("cpu")


class Counting(nn.Module):
    """A linear model that knows how often it ran."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(6, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


def data(sizes: tuple[int, ...] = (5, 5, 3)) -> list[Batch]:
    torch.manual_seed(9)
    return [Batch((torch.randn(size, 6),), {}, torch.randint(4, (size,)), size) for size in sizes]


def evaluator(fp32: nn.Module, metric: Metric | None = None, batches: list[Batch] | None = None) -> Evaluator:
    made = data() if batches is None else batches
    return Evaluator(fp32, lambda: made, metric or METRICS["accuracy"], CPU)


def same(one: Evaluation, other: Evaluation) -> bool:
    return (
        one.measurement.value == other.measurement.value
        and one.sqnr_db == other.sqnr_db
        and np.array_equal(one.measurement.per_sample, other.measurement.per_sample)
    )


def test_value_scores_and_sqnr_by_hand() -> None:
    fp32, other = Counting(0), Counting(1)
    got = evaluator(fp32).evaluate(other)
    x, target = torch.cat([one.args[0] for one in data()]), torch.cat([one.target for one in data()])
    wanted, outputs = fp32(x).detach().double().numpy(), other(x).detach().double().numpy()
    hits = outputs.argmax(1) == target.numpy()
    assert got.measurement.per_sample.tolist() == hits.tolist()
    assert got.measurement.value == pytest.approx(hits.mean())
    assert got.measurement.higher_is_better is True
    assert got.samples == 13
    assert got.sqnr_db == pytest.approx(10 * math.log10((wanted**2).sum() / ((wanted - outputs) ** 2).sum()), rel=1e-6)


def test_fp32_itself_runs_once_a_batch_and_has_no_noise() -> None:
    fp32 = Counting()
    got = evaluator(fp32).evaluate(fp32)
    assert fp32.calls == 3
    assert got.sqnr_db == 300


def test_outputs_of_fp32_are_kept_for_the_next_models() -> None:
    fp32, other = Counting(0), Counting(1)
    one = evaluator(fp32)
    one.evaluate(fp32)
    first, second = one.evaluate(other), one.evaluate(other)
    assert (fp32.calls, other.calls) == (3, 6)
    assert same(first, second)
    assert same(first, evaluator(fp32).evaluate(other))


def test_beyond_the_limit_fp32_runs_again_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    fp32, other = Counting(0), Counting(1)
    wanted = evaluator(fp32).evaluate(other)
    for limit, kept in ((5 * 4 * 4 + 1, False), (13 * 4 * 4, True), (13 * 4 * 4 - 1, False)):
        monkeypatch.setattr(evaluate, "REMEMBER", limit)
        fp32.calls = 0
        one = evaluator(fp32)
        results = [one.evaluate(other) for _ in range(3)]
        assert fp32.calls == (3 if kept else 9)
        assert all(same(result, wanted) for result in results)


def test_a_pass_that_broke_off_leaves_nothing_half_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "REMEMBER", 13 * 4 * 4)
    fp32, other = Counting(0), Counting(1)
    wanted = evaluator(fp32).evaluate(other)
    one = evaluator(fp32)

    def breaks(x: Tensor) -> Tensor:
        if len(x) == 3:
            raise KeyboardInterrupt
        return other(x)

    with pytest.raises(KeyboardInterrupt):
        one.evaluate(breaks)
    assert same(one.evaluate(other), wanted)
    fp32.calls = 0
    assert same(one.evaluate(other), wanted)
    assert fp32.calls == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["accuracy", "sqnr_db"])
def test_one_value_that_is_not_finite_makes_the_measurement_nan(bad: float, name: str) -> None:
    fp32 = Counting()

    def broken(x: Tensor) -> Tensor:
        outputs = fp32(x).clone()
        if len(x) == 3:
            outputs[1, 2] = bad
        return outputs

    got = evaluator(fp32, METRICS[name]).evaluate(broken)
    assert math.isnan(got.measurement.value)
    assert math.isnan(got.sqnr_db)
    assert len(got.measurement.per_sample) == 13


def test_a_metric_over_all_samples() -> None:
    metric = Metric("f1", True, make_whole=lambda: torchmetrics.classification.MulticlassF1Score(4))
    fp32, other = Counting(0), Counting(1)
    one = evaluator(fp32, metric)
    got = one.evaluate(other)
    outputs = torch.cat([other(batch.args[0]) for batch in data()])
    wanted = torchmetrics.functional.classification.multiclass_f1_score(
        outputs, torch.cat([batch.target for batch in data()]), 4
    )
    assert got.measurement.value == pytest.approx(float(wanted))
    assert got.measurement.per_sample is None
    assert got.measurement.replicates is not None
    again = one.evaluate(other).measurement
    assert (again.value, again.replicates.tolist()) == (got.measurement.value, got.measurement.replicates.tolist())
    assert math.isnan(one.evaluate(lambda x: other(x) * math.nan).measurement.value)


def test_every_float_output_has_its_own_sqnr_and_no_other() -> None:
    def outputs(noise: float) -> object:
        return lambda x: {"a": x, "b": (x[:, :1] * 10 + noise, x.long()), "c": 3 + noise}

    fp32 = outputs(0.0)
    metric = Metric("zero", True, per_sample=lambda out, target, reference: torch.zeros(len(out["a"])))
    batch = data((4,))
    got = Evaluator(fp32, lambda: batch, metric, CPU).evaluate(outputs(0.5))
    x = batch[0].args[0].double()
    power = float(((x[:, :1] * 10) ** 2).sum())
    assert dict(got.outputs) == {"a": 300, "b_0": pytest.approx(10 * math.log10(power / (4 * 0.25)), rel=1e-5)}
    assert got.sqnr_db == min(dict(got.outputs).values())


@pytest.mark.parametrize(
    "scores", [lambda out, target, fp32: out.mean(), lambda out, target, fp32: out, lambda out, target, fp32: [1, 2]]
)
def test_a_metric_without_one_score_per_sample_is_told_of(scores: object) -> None:
    fp32 = Counting()
    with pytest.raises(DataError, match=r"the metric mine returned .* for 5 samples; return one score per sample"):
        evaluator(fp32, Metric("mine", True, per_sample=scores)).evaluate(fp32)


def test_no_samples_and_no_signal() -> None:
    fp32 = Counting()
    got = evaluator(fp32, batches=[]).evaluate(fp32)
    assert math.isnan(got.measurement.value)
    assert got.samples == 0
    assert evaluator(lambda x: x * 0, METRICS["agreement"]).evaluate(lambda x: x).sqnr_db == -300


class Named(nn.Module):
    """Returns its scores by name, as transformers' models do."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"hidden": x, "logits": x[:, :4]}


def test_a_metric_over_all_samples_gets_the_scores_of_a_dict() -> None:
    made = lambda: torchmetrics.classification.MulticlassAccuracy(4, average="micro")  # noqa: E731
    got = evaluator(Named(), Metric("accuracy", True, make_whole=made)).evaluate(Named())
    assert got.measurement.value == pytest.approx(evaluator(Named()).evaluate(Named()).measurement.value)


def test_a_metric_that_cannot_take_the_outputs_is_told_of() -> None:
    made = lambda: torchmetrics.classification.MulticlassAccuracy(3)  # noqa: E731
    with pytest.raises(UserCodeError, match=r"^ValueError: .*gate.metric: three, given the model's outputs"):
        evaluator(Counting(), Metric("three", True, make_whole=made)).evaluate(Counting())


def test_sqnr_goes_by_the_lowest_part_of_every_sample() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.boxes, self.scores = nn.Linear(6, 4), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"det": torch.cat([self.boxes(x) * 640, self.scores(x).sigmoid()], 1), "aux": x[:, :2]}

    torch.manual_seed(0)
    fp32 = capture(Detector().eval(), (torch.randn(2, 6),))

    def file(x: Tensor) -> dict[str, Tensor]:
        det, aux = fp32(x)["det"].clone(), fp32(x)["aux"]
        det[:, 4:] = det[:, 4:].round()
        return {"det": det, "aux": aux}

    got = Evaluator(fp32, data, METRICS["sqnr_db"], CPU).evaluate(file)
    x = torch.cat([one.args[0] for one in data()])
    wanted, other = fp32(x)["det"][:, 4:].detach().double(), file(x)["det"][:, 4:].detach().double()
    signal, noise = wanted.square(), (wanted - other).square()
    assert [name for name, _ in got.outputs] == ["det[:, 0:4] (boxes)", "det[:, 4:7] (scores)", "aux"]
    assert dict(got.outputs)["det[:, 0:4] (boxes)"] == 300
    assert got.sqnr_db == pytest.approx(10 * math.log10(float(signal.sum() / noise.sum())))
    assert got.measurement.per_sample == pytest.approx(10 * torch.log10(signal.sum(1) / noise.sum(1)).numpy())


def test_padded_positions_do_not_count() -> None:
    fp32 = capture(padded.encoder(), padded.batch(2))
    inputs = padded.batch(5)
    batch = Batch(inputs, {}, None, 5)
    real = inputs[1] != 0

    def file(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        outputs = {name: value.clone() for name, value in fp32(ids, mask).items()}
        outputs["tokens"][~real] = math.nan
        outputs["ends"] = outputs["ends"] + real * 0.1
        return outputs

    metric = Metric("any", True, per_sample=lambda out, target, reference: torch.zeros(5))
    got = dict(Evaluator(fp32, lambda: [batch], metric, CPU).evaluate(file).outputs)
    ends = fp32(*inputs)["ends"][real].detach().double()
    wanted = 10 * math.log10(float(ends.square().sum()) / (0.01 * int(real.sum())))
    assert got == {"tokens": 300, "pooled": 300, "ends": pytest.approx(wanted, abs=1e-4), "turned": 300}


def test_minus_infinity_in_the_same_place_is_no_failure() -> None:
    def masked(x: Tensor) -> Tensor:
        return torch.where(torch.arange(6) > 3, -math.inf, x)

    got = evaluator(masked).evaluate(lambda x: masked(x) + 0.1)
    assert math.isfinite(got.sqnr_db)
    assert math.isfinite(got.measurement.value)
    assert evaluator(masked).evaluate(masked).sqnr_db == 300


def test_whole_numbers_have_no_sqnr() -> None:
    got = evaluator(lambda x: x.long(), Metric("any", True, per_sample=lambda out, t, r: torch.ones(len(out))))
    found = got.evaluate(lambda x: x.long() + 1)
    assert math.isnan(found.sqnr_db)
    assert found.measurement.value == 1
