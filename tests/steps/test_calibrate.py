"""`calibrate` keeps the ways to find ranges that are nearest to FP32 on samples it did not find them from."""

import pytest
import torch
from torch import Tensor, nn

from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.network import Network
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Calibration, Precision
from qatflow.recipe.steps import Calibrate
from qatflow.steps.calibrate import LEAST_GAIN, _Search, _split, calibrate
from qatflow.steps.context import StepContext
from tests.graph.padded import batch, encoder

METHODS = Calibrate().activations
W16A4 = Design(precision=Precision(weights=16, activations=4))
HELD_OUT = [number for number in range(48) if number % 4 == 3]


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def on_held_out(network: Network, x: Tensor, design: Design) -> float:
    """Return the SQNR on every fourth sample of ranges from the others."""
    simulation = Simulation(network.designed(design))
    simulation.calibrate([((x[[one for one in range(len(x)) if one % 4 != 3]],), {})])
    with torch.no_grad():
        return sqnr_db(network.graph(x[3::4]), simulation.model(x[3::4]))


@pytest.mark.parametrize("outlier", [0.0, 300.0])
def test_the_best_way_is_kept(outlier: float, make_context) -> None:
    model, x = convolutions(), torch.randn(48, 3, 10, 10)
    x[[0, 3, 7], 0, 0, 0] += outlier
    network = captured_network(model, (x[:2],), design=W16A4.found_by("percentile"))
    scores = {one: on_held_out(network, x, W16A4.found_by(one)) for one in METHODS}
    assert max(scores.values()) > min(scores.values()) + 0.5
    result, notes = calibrate(network, Calibrate(weights=(), tensors=0), make_context(*x.split(16)))
    best = max(scores, key=scores.__getitem__)
    assert best != "percentile"
    assert result.design == W16A4.found_by(best)
    assert result.graph is network.graph
    assert notes == {
        "activations": best,
        "weights": "sqnr",
        "tensors": 0,
        "gain_db": pytest.approx(scores[best] - scores["percentile"], abs=0.01),
    }


@pytest.mark.parametrize("used", [True, False])
def test_large_values_are_kept_where_they_matter_and_cut_off_where_they_do_not(used: bool, make_context) -> None:
    """One value in a hundred is large: to a tensor's own error they are next to nothing, to the output all."""
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(256, 8)
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 20 * torch.eye(8)[0], -30.0
        model[2].weight[:, 0] = 30 * used
    best, other = ("minmax", "percentile") if used else ("percentile", "minmax")
    design = Design(precision=W16A4.precision, calibration=Calibration(activations=other, percentile=97))
    network = captured_network(model, (x[:2],), design=design)
    config = Calibrate(activations=("minmax", "percentile"), weights=(), tensors=0)
    result, notes = calibrate(network, config, make_context(*x.split(32)))
    assert result.design == design.found_by(best)
    gain = on_held_out(network, x, design.found_by(best)) - on_held_out(network, x, design)
    assert notes["gain_db"] == pytest.approx(gain, abs=0.01) and gain > 5


@pytest.mark.parametrize(("outlier_is_used", "expected"), [(True, "minmax"), (False, "sqnr")])
@pytest.mark.parametrize("start", ["minmax", "sqnr"])
def test_scales_of_weights_are_tried_too(outlier_is_used: bool, expected: str, start: str, make_context) -> None:
    model, x = nn.Sequential(nn.Linear(512, 8)).eval(), torch.rand(32, 512)
    with torch.no_grad():
        model[0].weight.uniform_(-1, 1)
        model[0].weight[:, 0] += 3
        x[:, 1:] *= not outlier_is_used
        x[:, :1] *= outlier_is_used
    design = Design(precision=Precision(weights=3, activations=16)).found_by("minmax", start)
    network = captured_network(model, (x[:2],), design=design)
    scores = {one: on_held_out(network, x, design.found_by(weights=one)) for one in ("minmax", "sqnr")}
    assert max(scores, key=scores.__getitem__) == expected
    result, _ = calibrate(network, Calibrate(activations=(), tensors=0), make_context(x))
    assert result.design == design.found_by(weights=expected)


class Branches(nn.Module):
    """Two branches with a channel of rare large values each: the first one's head needs them, the second's ignores it.

    Their inputs are on one grid, and hold no large value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.needs, self.ignores = nn.Linear(8, 8), nn.Linear(8, 8)
        self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 4)
        with torch.no_grad():
            for layer in (self.needs, self.ignores):
                layer.weight[0], layer.bias[0] = 20 * torch.eye(8)[0], -30.0
            self.second.weight[:, 0] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.needs(x).relu()) + 4 * self.second(self.ignores(x).relu())


def test_a_tensor_gets_a_way_of_its_own_where_that_pays(make_context) -> None:
    model, x = Branches().eval(), torch.randn(256, 8)
    clipping = Calibration(activations="minmax", percentile=97)
    design = Design(precision=Precision(weights=16, activations=4), calibration=clipping)
    network = captured_network(model, (x[:2],), design=design)
    config = Calibrate(activations=("minmax", "percentile"), weights=())
    result, notes = calibrate(network, config, make_context(*x.split(32)))
    assert result.design.calibration == clipping
    assert result.design.ranges["relu_1"] == "percentile"
    assert "relu" not in result.design.ranges
    assert notes["tensors"] == len(result.design.ranges)
    for other in (design, design.found_by("percentile")):
        assert on_held_out(network, x, result.design) > on_held_out(network, x, other) + 1
    together, _ = calibrate(network, config.model_copy(update={"tensors": 0}), make_context(*x.split(32)))
    assert together.design.ranges == {}


def test_only_so_many_tensors_are_tried_those_that_hurt_most_first(make_context) -> None:
    model, x = Branches().eval(), torch.randn(256, 8)
    design = Design(precision=Precision(weights=16, activations=4), calibration=Calibration(percentile=97))
    network = captured_network(model, (x[:2],), design=design.found_by("minmax"))
    search = _Search(network, Calibrate(tensors=1), make_context(x))
    search.closeness(network.design)
    assert search._worst() == ["relu_1"]
    config = Calibrate(activations=("minmax", "percentile"), weights=(), tensors=1)
    assert set(calibrate(network, config, make_context(x))[0].design.ranges) == {"relu_1"}


def test_where_nothing_is_gained_the_network_is_left_as_it_is(make_context) -> None:
    model, x = convolutions(), torch.randn(48, 3, 10, 10)
    config, context = Calibrate(tensors=0), make_context(x)
    once, _ = calibrate(captured_network(model, (x[:2],), design=W16A4.found_by("minmax")), config, context)
    assert once.design != W16A4.found_by("minmax")
    again, notes = calibrate(once, config, context)
    assert again is once
    assert notes == {"reason": "no other way to find ranges is better on held-out samples"}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_few_samples_do(count: int, make_context) -> None:
    model, x = convolutions(), torch.randn(count, 3, 10, 10)
    design = Design(W16A4.target, W16A4.precision, Calibration(activations="percentile", percentile=60))
    network = captured_network(model, (torch.randn(2, 3, 10, 10),), design=design)
    result, notes = calibrate(network, Calibrate(), make_context(*x.split(2)))
    assert result.design.calibration.activations != "percentile"
    assert notes["gain_db"] > LEAST_GAIN


def test_every_fourth_sample_is_held_out_in_two_halves_whatever_the_batches() -> None:
    for size in (1, 3, 16, 48):
        batches = [((part,), {"y": -part}) for part in torch.arange(48).split(size)]
        fit, first, second = _split(batches, 64)
        seen = [torch.cat([args[0] for args, _ in part]).tolist() for part in (fit, first, second)]
        assert seen == [
            [number for number in range(48) if number % 4 != 3],
            [number for number in HELD_OUT if number % 8 == 3],
            [number for number in HELD_OUT if number % 8 == 7],
        ]
        assert all(torch.equal(kwargs["y"], -args[0]) for part in (fit, first, second) for args, kwargs in part)
        limited = _split(batches, 6)[1:]
        assert [torch.cat([args[0] for args, _ in part]).tolist() for part in limited] == [[3, 11, 19], [7, 15, 23]]
        assert len(torch.cat([args[0] for args, _ in _split(batches, 6)[0]])) == 36


def test_held_out_samples_are_not_observed(make_context) -> None:
    model, x = convolutions(), torch.rand(48, 3, 10, 10)
    x[HELD_OUT] *= 1000
    network = captured_network(model, (x[:2],), design=W16A4)
    search = _Search(network, Calibrate(), make_context(*x.split(16)))
    fit = x[[one for one in range(48) if one not in HELD_OUT]]
    assert search.histograms["input_1"].high == float(fit.max())
    assert float(torch.cat([args[0] for half in search.halves for args, _ in half]).max()) == float(x.max()) > 900


def test_only_real_positions_count_for_what_is_near_to_fp32() -> None:
    inputs = batch(32)
    held_out = tuple(one[3::4] for one in inputs)
    real = held_out[1] != 0
    design = Design(calibration=Calibration(activations="percentile", percentile=90))
    network = captured_network(encoder(), tuple(one[:2] for one in inputs), design=design)

    def by_hand(one: Design) -> float:
        """Return the lowest SQNR of the four outputs, at the positions that hold a word."""
        simulation = Simulation(network.designed(one))
        simulation.calibrate([(tuple(part[[n for n in range(32) if n % 4 != 3]] for part in inputs), {})])
        with torch.no_grad():
            wanted, got = network.graph(*held_out), simulation.model(*held_out)
        pairs = [(wanted[name][real], got[name][real]) for name in ("tokens", "ends")]
        pairs += [(wanted["pooled"], got["pooled"]), (wanted["turned"].mT[real], got["turned"].mT[real])]
        return min(sqnr_db(*pair) for pair in pairs)

    context = StepContext(lambda limit: [(inputs, {})])
    result, notes = calibrate(network, Calibrate(weights=(), tensors=0), context)
    scores = {one: by_hand(design.found_by(one)) for one in METHODS}
    assert result.design.calibration.activations == max(scores, key=scores.__getitem__)
    assert notes["gain_db"] == pytest.approx(max(scores.values()) - scores["percentile"], abs=0.01)


def test_the_design_decides_how_many_samples_are_asked_for() -> None:
    model, x = convolutions(), torch.randn(48, 3, 10, 10)
    asked: list[int | None] = []

    def inputs(limit: int | None) -> list[tuple[tuple[Tensor], dict[str, Tensor]]]:
        asked.append(limit)
        return [((x[:limit],), {})]

    network = captured_network(model, (x[:2],), design=Design(calibration=Calibration(samples=24)))
    calibrate(network, Calibrate(tensors=0), StepContext(inputs))
    assert asked == [24]
