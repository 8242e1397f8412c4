"""`mixed_precision`: within its budget, on precisions that the target runs, by overrides that a recipe can hold."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from qatflow import Network, Simulation
from qatflow.graph.work import multiply_accumulates
from qatflow.quant.design import Design
from qatflow.quant.placement import place
from qatflow.quant.prepare import captured_network
from qatflow.quant.quantizer import WeightFakeQuantize
from qatflow.quant.sensitivity import Sensitivity
from qatflow.quant.simulation import Inputs
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Precision
from qatflow.recipe.steps import AdaRound, MixedPrecision
from qatflow.results.progress import Silent
from qatflow.results.result import Note
from qatflow.steps.adaround import adaround
from qatflow.steps.context import StepContext, Trial
from qatflow.steps.mixed_precision import mixed_precision
from tests.networks import Classifier


def inputs(limit: int | None = None) -> list[Inputs]:
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return [((part,), {}) for part in x.split(16)]


def network(target: str = "onnxruntime", **precision: Any) -> Network:
    torch.manual_seed(0)
    design = Design(TARGETS[target], Precision(**precision))
    return captured_network(Classifier().eval(), *inputs()[0], design)


class Told(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Gate:
    """A gate on the outputs' SQNR, which keeps what is tabulated."""

    def __init__(self, least: float) -> None:
        self.least, self.tables, self.trials = least, dict[str, list[Mapping[str, Note]]](), 0

    def context(self, refit: Any = None) -> StepContext:
        return StepContext(inputs, measure=self.measure, refit=refit, table=self.keep)

    def measure(self, simulation: Simulation) -> Trial:
        self.trials += 1
        found = simulation.closeness(inputs())
        return Trial(found >= self.least, found, (found, 0.0))

    def keep(self, name: str, rows: Sequence[Mapping[str, Note]]) -> None:
        self.tables[name] = list(rows)


def closeness(one: Network) -> float:
    simulation = Simulation(one)
    simulation.calibrate(inputs())
    return simulation.closeness(inputs())


def share_above(one: Network, bits: int = 8) -> float:
    """Return the share of the multiply-accumulates in layers whose weight or input has more bits, or none."""
    work = multiply_accumulates(one.graph, inputs()[0])
    points = {point.tensor: point.grid.bits for point in place(one).points}
    weights = {
        layer: next(a.name for a in node.all_input_nodes if a.op == "get_attr") for layer, node in nodes(one).items()
    }
    above = [layer for layer in work if points.get(weights[layer], 99) > bits]
    return sum(work[layer] for layer in above) / sum(work.values())


def nodes(one: Network) -> dict[str, Any]:
    return {
        node.name: node for node in one.graph.graph.nodes if node.name in multiply_accumulates(one.graph, inputs()[0])
    }


@pytest.mark.parametrize("budget", [0.02, 0.3, 1.0])
def test_it_stays_within_the_budget_and_helps(budget: float) -> None:
    start, gate = network(weights=4), Gate(200.0)
    found, notes = mixed_precision(start, MixedPrecision(budget=budget), gate.context())
    assert share_above(found, bits=4) <= budget
    assert not notes["met"] if notes["tensors"] else "better" in str(notes["reason"])
    assert closeness(found) >= closeness(start)


def test_the_cheapest_choice_that_meets_the_gate_is_taken() -> None:
    start = network(weights=4)
    best = closeness(start.designed(Design(precision=Precision())))
    least = (closeness(start) + best) / 2
    gate = Gate(least)
    found, notes = mixed_precision(start, MixedPrecision(budget=None), gate.context())
    assert notes["met"]
    assert closeness(found) >= least
    rows = gate.tables["mixed_precision"]
    assert [row["cost"] for row in rows] == sorted(row["cost"] for row in rows)  # type: ignore[type-var]
    passed = [row["cost"] for row in rows if row["passed"]]
    assert notes["cost"] == min(passed)  # type: ignore[type-var]
    assert len(rows) == gate.trials


def test_a_met_gate_and_a_target_without_better_precision_change_nothing() -> None:
    start = network()
    found, notes = mixed_precision(start, MixedPrecision(), Gate(0.0).context())
    assert found is start
    assert notes["reason"] == "the gate is met without it"
    start = network("qnn", activations=16)
    found, notes = mixed_precision(start, MixedPrecision(), Gate(200.0).context())
    assert found is start
    assert notes["reason"] == "qnn has no better precision to give"


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "xnnpack", "qnn"])
def test_only_precisions_that_the_target_runs(target: str) -> None:
    start = network(target)
    found, notes = mixed_precision(start, MixedPrecision(budget=0.5), Gate(200.0).context())
    assert notes["tensors"]
    bits = {point.grid.bits for point in place(found).points if point.parameter is None}
    assert bits == {8, 16} if target == "qnn" else bits == {8}
    assert {point.grid.bits for point in place(found).points if point.parameter} <= {8}
    assert (not place(found).float_layers) == (target == "qnn")


@pytest.mark.parametrize(("target", "precision"), [("onnxruntime", {"weights": 4}), ("qnn", {}), ("openvino", {})])
def test_its_overrides_give_the_same_network_in_a_recipe(target: str, precision: dict[str, int]) -> None:
    found, notes = mixed_precision(network(target, **precision), MixedPrecision(budget=0.6), Gate(200.0).context())
    overrides = yaml.safe_load(str(notes["overrides"]))
    again = network(target, **precision, overrides=overrides)
    assert place(again) == place(found)
    assert closeness(again) == pytest.approx(closeness(found))


@pytest.mark.parametrize(
    ("cost", "budget"),
    [("bit_operations", 0.5), ("average_bits", 1.5), ("size", 0.001), ("layers", 2), ("layers", 0)],
)
def test_other_budgets(cost: Any, budget: float) -> None:
    start = network(weights=4)
    found, notes = mixed_precision(start, MixedPrecision(cost=cost, budget=budget), Gate(200.0).context())
    assert float(notes.get("cost", 0)) <= budget
    before, after = ({p.tensor: p.grid.bits for p in place(one).points if p.parameter} for one in (start, found))
    above = [name for name in before if after.get(name, 32) > before[name]]
    if cost == "layers":
        assert len(above) <= budget
    sizes = {node.name: node.meta["val"].numel() for node in found.graph.graph.nodes if node.name in before}
    added = sum(sizes[name] * (after.get(name, 32) - before[name]) for name in before)
    if cost == "average_bits":
        assert added / sum(sizes.values()) <= budget + 1e-6
        assert added
    if cost == "size":
        assert added / 8e6 <= budget + 1e-9


def test_what_was_fitted_is_fitted_anew() -> None:
    """Rounding makes up for one weight's error by another's: relieving one alone would undo that."""
    start, fits = network(weights=3), []

    def refit(one: Network) -> Network:
        fits.append(one.design)
        return adaround(one, AdaRound(samples=64), StepContext(inputs))[0]

    fitted = refit(start)
    found, notes = mixed_precision(fitted, MixedPrecision(budget=0.6), Gate(200.0).context(refit))
    assert len(fits) > 1
    assert notes["tensors"]
    assert found.goal
    assert closeness(found) > closeness(fitted)


def test_without_a_run_it_spends_the_budget() -> None:
    told = Told()
    found, notes = mixed_precision(network(weights=4), MixedPrecision(budget=1.0), StepContext(inputs, progress=told))
    assert notes["tensors"]
    assert "met" not in notes
    assert told.notes[0].startswith("mixed_precision: the best choice within 1 of the multiply-accumulates relieves ")
    assert closeness(found) > closeness(network(weights=4))


def test_an_op_without_a_derivative_is_measured_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> dict[str, float]:
        raise NotImplementedError("derivative for aten::something is not implemented")

    monkeypatch.setattr(Sensitivity, "estimate", none)
    start = network(weights=4)
    told = Told()
    found, notes = mixed_precision(start, MixedPrecision(budget=0.3), replace(Gate(200.0).context(), progress=told))
    assert notes["tensors"]
    assert closeness(found) > closeness(start)
    assert "derivative for aten::something is not implemented" in told.notes[0]


def test_noise_that_fitting_took_away_does_not_count_when_tensors_are_measured_one_by_one() -> None:
    def refit(one: Network) -> Network:
        return adaround(one, AdaRound(samples=64), StepContext(inputs))[0]

    gate = Gate(200.0)
    mixed_precision(refit(network(weights=3)), MixedPrecision(budget=0.3), gate.context(refit))
    nearest = Simulation(network(weights=3))
    nearest.calibrate_on_fp32(inputs())
    sensitivity = Sensitivity(nearest)
    rows = {row["tensor"]: row for row in gate.tables["mixed_precision_tensors"] if row["kind"] == "weight"}
    assert len(rows) == 4
    for point in (one for one in sensitivity.points if one.parameter):
        alone = sensitivity.alone(point.tensor, inputs()[:1]).lowest
        assert float(rows[str(point.parameter)]["sqnr_db"]) > alone + 1  # that of nearest rounding


class Recurrent(nn.Module):
    """A part whose weights no layer of a table reads."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.recurrent, self.out = nn.Embedding(20, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.recurrent(self.words(x))[0].mean(1))


@pytest.mark.parametrize("target", ["onnxruntime", "qnn", "openvino", "xnnpack"])
def test_words_and_recurrent_layers(target: str) -> None:
    torch.manual_seed(0)
    words: list[Inputs] = [((torch.randint(0, 20, (16, 6)),), {})]
    start = captured_network(Recurrent().eval(), *words[0], Design(TARGETS[target], Precision(weights=4)))
    found, notes = mixed_precision(start, MixedPrecision(budget=None), StepContext(lambda limit: words))
    assert notes["tensors"]
    simulations = [Simulation(one) for one in (start, found)]
    for one in simulations:
        one.calibrate(words)
    assert simulations[1].closeness(words) > simulations[0].closeness(words)


def test_scales_of_a_weight_are_found_once_for_every_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes longer than all else where one is large, and choices differ in few weights."""
    calls: list[tuple[int, tuple[int, ...]]] = []
    settle = WeightFakeQuantize.settle

    def counted(self: WeightFakeQuantize, weight: Tensor, method: str) -> None:
        calls.append((self.grid.bits, tuple(weight.shape)))
        settle(self, weight, method)

    start, gate = network(weights=4), Gate(200.0)
    monkeypatch.setattr(WeightFakeQuantize, "settle", counted)
    found, notes = mixed_precision(start, MixedPrecision(budget=0.6), gate.context())
    monkeypatch.undo()
    assert len(gate.tables["mixed_precision"]) > 2
    assert len({shape for bits, shape in calls if bits == 4}) == 4
    assert len(calls) == len(set(calls))
    (told,) = [row for row in gate.tables["mixed_precision"] if row["overrides"] == notes["overrides"]]
    assert told["sqnr_db"] == pytest.approx(closeness(found), abs=0.01)


def test_no_layer_runs_in_float_where_that_is_not_allowed() -> None:
    """On a processor a weight of four bits can have eight, and an activation nothing but float."""
    for floats in (True, False):
        gate = Gate(200.0)
        _, notes = mixed_precision(
            network(weights=4), MixedPrecision(cost="bit_operations", budget=None, floats=floats), gate.context()
        )
        assert ("float" in str(notes["overrides"])) is floats
        assert "w8" in str(notes["overrides"]) or floats
