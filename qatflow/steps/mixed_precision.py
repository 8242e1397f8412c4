"""Mixed precision: more bits, or float, where they save most noise for what they cost, until the gate is met.

What each tensor costs at the outputs is estimated in one pass (`qatflow.quant.sensitivity`); noise of small independent
errors adds up, so that the best choice within a budget is a small linear program (`qatflow.quant.assignment`). Choices
for growing budgets are measured, the cheapest that meets the gate is taken, and a cheaper one between it and the one
below is looked for. Where none does, the tensors that matter most are measured one by one, and the choice is made anew.

Rounding that was fitted before makes up for the errors of one weight by another: relieving one of them alone undoes
that. So weights are chosen for, and then fitted, from FP32's values, as the steps before have fitted them; of the noise
of nearest rounding they count as much as was left of it. (What a fitted weight costs by itself is no guide: much of it
makes up for others.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.stats import spearmanr

from qatflow.graph.capture_errors import first_sentence
from qatflow.graph.layers import tensor
from qatflow.graph.sqnr import decibel
from qatflow.graph.work import multiply_accumulates
from qatflow.quant.assignment import Item, assign
from qatflow.quant.budget import UNITS, prices
from qatflow.quant.grid import Encoding, Grid
from qatflow.quant.histogram import Histogram
from qatflow.quant.network import Network
from qatflow.quant.relief import Reliefs
from qatflow.quant.sensitivity import Sensitivity
from qatflow.quant.simulation import Inputs, Simulation
from qatflow.recipe import LayerPrecision
from qatflow.recipe.precision import written
from qatflow.recipe.steps import MixedPrecision
from qatflow.results.result import Note
from qatflow.steps.context import StepContext, Trial
from qatflow.steps.set_precision import redesigned
from qatflow.users_code import blame_machine

SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
"""Of the budget, tried from the first on."""
FEW_SHARES = (1.0,)
"""Likewise where weights are fitted for each, which takes as long as the step that fits them."""
OF_ALL = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Likewise where the budget has no end: shares of what all that can be relieved costs."""
FEW_OF_ALL = (0.1, 0.4, 1.0)
"""Both."""
HALVINGS = 2
"""Cheaper choices that are tried between one that meets the gate and the one below it."""
EXACT = 24
"""Tensors that are measured one by one where no choice met the gate."""


def mixed_precision(network: Network, config: MixedPrecision, context: StepContext) -> tuple[Network, dict[str, Note]]:
    """Return the network with a better precision of some tensors, by overrides that a recipe can hold.

    Notes tell what was relieved (`tensors`, `overrides`), what it costs (`cost`, `multiply_accumulates`, their share),
    and in a run whether the budget met the gate (`met`). Every choice that was measured is a row of
    `mixed_precision.csv`.
    """
    search = _Search(network, config, context)
    if not search.reliefs.by_tensor:
        return network, {"tensors": 0, "reason": f"{network.design.target.name} has no better precision to give"}
    start = search.measured([])
    if start.passed:
        return network, {"tensors": 0, "reason": "the gate is met without it"}
    found = search.run(start)
    context.table("mixed_precision", search.rows())
    context.table("mixed_precision_tensors", search.ranked(found))
    if not found.chosen:
        return network, {"tensors": 0, "reason": f"no choice within {config.budget} {UNITS[config.cost]} is better"}
    notes = search.notes(found)
    context.progress.note(_sentence(config, notes))
    return found.network, notes


@dataclass(frozen=True)
class _Point:
    """One choice of tensors, and what it measured."""

    chosen: tuple[str, ...]
    network: Network
    overrides: Mapping[str, LayerPrecision]
    cost: float
    trial: Trial
    sqnr_db: float
    """Of the outputs, on calibration samples."""

    @property
    def passed(self) -> bool:
        return self.trial.passed


class _Search:
    """Chooses and measures."""

    def __init__(self, network: Network, config: MixedPrecision, context: StepContext) -> None:
        fitted = bool(network.goal or network.encodings)
        self.refit = context.refit if fitted else None
        self.given, self.config, self.context = network, config, context
        self.network = network if self.refit is None else network.unfitted()
        self.batches: list[Inputs] = list(context.inputs(config.samples))
        self.histograms: dict[str, Histogram] = {}
        self.scales: dict[tuple[str, Grid], Encoding] = {}
        self.simulation = Simulation(self.network)
        self.simulation.calibrate_on_fp32(context.calibration_inputs(self.network))
        self._keep_scales(self.simulation)
        self.work = multiply_accumulates(network.graph, self.batches[0])
        self.reliefs = Reliefs(self.simulation, self.work, floats=config.floats)
        self.prices = prices(config.cost, self.reliefs, self.work)
        self.points: dict[tuple[str, ...], _Point] = {}
        self.correlation = math.nan

    @cached_property
    def sensitivity(self) -> Sensitivity:
        return Sensitivity(self.simulation)

    @cached_property
    def noise(self) -> dict[str, float]:
        """Noise of every tensor by itself, relative to the signal; of weights, what fitting leaves of it."""
        return {name: found * self._left(name) for name, found in self.estimated.items()}

    @cached_property
    def estimated(self) -> dict[str, float]:
        """Noise of every tensor by itself with nearest rounding, relative to the signal."""
        try:
            return self.sensitivity.estimate(self.batches, seed=self.context.seed)
        except RuntimeError as error:  # an op of the model has no derivative
            blame_machine(error)
            said = "mixed_precision measures every tensor by itself, since no gradient can be had"
            self.context.progress.note(f"{said}: {first_sentence(error)}")
            return {point.tensor: self._alone(point.tensor) for point in self.sensitivity.points}

    def _alone(self, name: str) -> float:
        return self.sensitivity.alone(name, self.batches[:1]).noise

    @cached_property
    def weights(self) -> set[str]:
        return {point.tensor for point in self.simulation.placement.points if point.parameter}

    @cached_property
    def left_of_weights(self) -> float:
        """Share of the noise of nearest rounding that fitting has left, 1 where nothing was fitted."""
        if self.refit is None:
            return 1.0
        of_weights = sum(self.estimated[name] for name in self.weights)
        together = 10 ** (-self.measured([]).sqnr_db / 10)
        others = sum(self.estimated.values()) - of_weights
        return min(max(together - others, 0.0) / of_weights, 1.0) if of_weights else 1.0

    def _left(self, name: str) -> float:
        return self.left_of_weights if name in self.weights else 1.0

    @property
    def most(self) -> float:
        """The budget, or what everything costs."""
        every = self.prices.of(list(self.reliefs.by_tensor))
        return every if self.config.budget is None else min(self.config.budget, every)

    def run(self, start: _Point) -> _Point:
        """Return the cheapest choice that meets the gate, or else the best there is."""
        below = start
        endless, fitted = self.config.budget is None, self.refit is not None
        shares = (FEW_OF_ALL if fitted else OF_ALL) if endless else FEW_SHARES if fitted else SHARES
        for share in shares:
            point = self.measured(self._chosen(share * self.most))
            if point.passed:
                return self._cheaper(point, below)
            below = max(below, point, key=_rank)
        self._measure_one_by_one()
        again = self.measured(self._chosen(self.most))
        return again if again.passed else max(below, again, key=_rank)

    def _cheaper(self, met: _Point, missed: _Point) -> _Point:
        low, high = missed.cost, met.cost
        for _ in range(HALVINGS if self.refit is None else 1):
            point = self.measured(self._chosen((low + high) / 2))
            if point.passed and point.cost < met.cost:
                met = point
            low, high = (low, (low + high) / 2) if point.passed else ((low + high) / 2, high)
        return met

    def _measure_one_by_one(self) -> None:
        """Put what the tensors with most noise really cost in the place of the estimate."""
        worst = sorted(self.reliefs.by_tensor, key=lambda name: -self.noise[name])[:EXACT]
        exact = {name: self._alone(name) * self._left(name) for name in worst}
        estimated = [self.noise[name] for name in worst]
        if len(worst) > 2:
            self.correlation = float(spearmanr(estimated, list(exact.values())).statistic)
        self.noise.update(exact)

    def _chosen(self, budget: float) -> list[str]:
        items = [
            Item(name, self.noise[name] * (1 - one.left), self.prices.charges[name])
            for name, one in self.reliefs.by_tensor.items()
        ]
        chosen = assign(items, self.prices.costs, budget)
        if self.reliefs.float_layers(chosen) >= {*self.reliefs.layers}:  # a network in float is no answer
            gain = {
                layer: sum(item.gain for item in items if self._floats(item, layer)) for layer in self.reliefs.layers
            }
            least = min(gain, key=gain.__getitem__)
            chosen = assign([item for item in items if not self._floats(item, least)], self.prices.costs, budget)
        return chosen

    def _floats(self, item: Item, layer: str) -> bool:
        """Tell whether a layer runs in float for an item's sake."""
        relief = self.reliefs.by_tensor[item.tensor]
        return relief.bits is None and layer in relief.layers

    def measured(self, chosen: Iterable[str]) -> _Point:
        """Return a choice with what it measures; one that was measured is not measured again."""
        key = tuple(chosen)
        if key not in self.points:
            network, overrides = self._network(key)
            simulation = self._simulated(network)
            sqnr = simulation.closeness(self.batches)
            measure: Callable[[Simulation], Trial] | None = self.context.measure
            trial = Trial(False, sqnr, (sqnr, 0.0)) if measure is None else measure(simulation)
            self.points[key] = _Point(key, network, overrides, self.prices.of(list(key)), trial, sqnr)
        return self.points[key]

    def _network(self, chosen: tuple[str, ...]) -> tuple[Network, Mapping[str, LayerPrecision]]:
        """Return the network with a choice, its weights fitted as they were; the given one where nothing is chosen."""
        if not chosen:
            return self.given, {}
        designed, overrides = self.reliefs.applied(chosen)
        if self.refit is not None:
            return self.refit(designed), overrides
        return redesigned(self.network, designed), overrides

    def _predicted_db(self, point: _Point) -> float:
        saved = sum(self.noise[name] * (1 - self.reliefs.by_tensor[name].left) for name in point.chosen)
        left = sum(self.noise.values()) - saved
        return round(-10 * math.log10(left), 2) if left > 0 else math.inf

    def _simulated(self, network: Network) -> Simulation:
        simulation = Simulation(network)
        grids = self._nearest(simulation).items()
        simulation.settle_weights(known={one[0]: self.scales[one] for one in grids if one in self.scales})
        self._keep_scales(simulation)
        if self.refit is not None:  # other weights, other ranges
            simulation.settle_activations(simulation.observe(self.context.calibration_inputs(network)))
            return simulation
        own = [one.tensor for one in simulation.placement.points if one.parameter is None and one.shares is None]
        if any(name not in self.histograms for name in own):
            self.histograms |= simulation.observe(self.context.calibration_inputs(network))
        simulation.settle_activations(self.histograms)
        return simulation

    def _keep_scales(self, simulation: Simulation) -> None:
        """Keep what was found for FP32's weights: finding it for a large one takes longer than all else."""
        grids, found = self._nearest(simulation), simulation.encodings()
        tensors = {point.parameter: point.tensor for point in simulation.placement.points}
        self.scales |= {(name, grid): found[tensors[name]] for name, grid in grids.items()}

    def _nearest(self, simulation: Simulation) -> dict[str, Grid]:
        """Return the grids of the weights that have FP32's values and no encoding of their own."""
        network = simulation.network
        return {
            point.parameter: point.grid
            for point in simulation.placement.points
            if point.parameter is not None
            and point.parameter not in network.encodings
            and torch.equal(tensor(network.graph, point.parameter), tensor(self.network.graph, point.parameter))
        }

    def notes(self, found: _Point) -> dict[str, Note]:
        """Return what is told of a choice."""
        layers = {name for one in found.chosen for name in self.reliefs.by_tensor[one].layers}
        share = sum(self.work[name] for name in layers) / max(sum(self.work.values()), 1)
        notes: dict[str, Note] = {
            "tensors": len(found.chosen),
            **({} if self.context.measure is None else {"met": found.passed}),
            "cost": round(found.cost, 6),
            "multiply_accumulates": round(share, 4),
            "overrides": written(found.overrides),
        }
        return notes if math.isnan(self.correlation) else {**notes, "rank_correlation": round(self.correlation, 3)}

    def ranked(self, found: _Point) -> list[dict[str, Note]]:
        """Return one row for every quantizer that was ranked, the worst first."""
        points = {point.tensor: point for point in self.sensitivity.points}
        total = max(sum(self.work.values()), 1)
        shares = {name: sum(self.work[layer] for layer in one.layers) for name, one in self.reliefs.by_tensor.items()}
        return [
            {
                "tensor": points[name].parameter or name,
                "kind": "weight" if points[name].parameter else "activation",
                "sqnr_db": round(decibel(1.0, noise), 2),
                "share": round(shares.get(name, 0) / total, 6),
                "relieved": name in found.chosen,
            }
            for name, noise in sorted(self.noise.items(), key=lambda one: -one[1])
        ]

    def rows(self) -> list[dict[str, Note]]:
        """Return one row for every choice that was measured, the cheapest first."""
        return [
            {
                "cost": round(one.cost, 6),
                "tensors": len(one.chosen),
                "value": one.trial.value,
                "sqnr_db": round(one.sqnr_db, 2),
                "predicted_db": self._predicted_db(one),
                "passed": one.passed,
                "overrides": written(one.overrides),
            }
            for one in sorted(self.points.values(), key=lambda one: one.cost)
        ]


def _sentence(config: MixedPrecision, notes: Mapping[str, Note]) -> str:
    asked = "whatever it costs" if config.budget is None else f"within {config.budget:g} {UNITS[config.cost]}"
    said = f"the best choice {asked}"
    if "met" in notes:
        said = (
            "the cheapest choice that meets the gate" if notes["met"] else f"no choice {asked} meets the gate; the best"
        )
    return (
        f"mixed_precision: {said} relieves {notes['tensors']} tensors for {float(notes['cost']):.3g} "
        f"{UNITS[config.cost]}: 'precision.overrides={notes['overrides']}'"
    )


def _rank(point: _Point) -> tuple[float, float]:
    return point.trial.rank
