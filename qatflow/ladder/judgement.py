"""Judge quantized activations by themselves, with the weights in float, before weights are rounded better.

Where activations alone miss the gate, rounding weights better can hardly be expected to meet it. What can help is
found out on the spot: another way to find ranges, which the ladder then climbs, 16 bits for the layers whose
activations hurt most, or training with range learning. AIMET's AutoQuant judged in the same way, and gave up there.

What is judged is the network before anything was fitted to its weights: biases that make up for rounded weights are
wrong beside float ones. It is to take a small share of the run: activations are observed once, whatever is tried with
what was seen is compared on a few calibration samples, and only the best of it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from qatflow.errors import RecipeError
from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate
from qatflow.quant.grid import Encoding, Grid
from qatflow.quant.layer_precision import layer_paths
from qatflow.quant.network import Method, Network
from qatflow.quant.placement import Point
from qatflow.quant.quantizer import ActivationQuantizer
from qatflow.quant.saved import finite
from qatflow.quant.simulation import Inputs, Simulation
from qatflow.recipe import LayerPrecision, Precision
from qatflow.results.gate import Decision, decide, meets
from qatflow.results.result import Judgement
from qatflow.results.store import key_of, read_usable, write_json

SIXTEEN_BITS = (1, 2, 4, 8)
"""How many layers get 16-bit activations, one try after the other."""
TRIED: tuple[Method, ...] = ("sqnr", "minmax", "percentile")
"""Ways to find ranges that are looked at: entropy takes most of the time, and is seldom the best."""
SAMPLES = 8
"""Calibration samples on which the layers are ranked."""


def judge(bench: Bench, kept: Candidate) -> Judgement:
    """Return what quantized activations alone do to a candidate, and where they miss the gate, what would help.

    A judgement that an earlier run stored in the folder is not made again.
    """
    path = bench.run_folder / "activations_only.json"
    key = key_of(kept.key, "activations only", bench.recipe.gate.model_dump(mode="json"))
    stored = read_usable(path, bench.progress.note)
    if isinstance(stored, dict) and stored.get("key") == key:
        return Judgement.model_validate(stored["judgement"])
    bench.progress.stage("activations only: weights in float, to see what rounding them can reach")
    judgement = _Judge(bench, kept.network.unfitted()).run()
    write_json(path, {"key": key, "judgement": judgement.model_dump(mode="json")})
    return judgement


class _Judge:
    """Measures one network with its weights in float in several ways."""

    def __init__(self, bench: Bench, network: Network) -> None:
        self.bench = bench
        self.network = network
        self.precision = bench.recipe.precision
        self.calibration = network.calibration(bench.recipe.calibration)
        self.few: list[Inputs] = []
        self.found: dict[tuple[Method, str, Grid], Encoding] = {}
        self.simulation = self._simulation(self.precision)
        self.histograms = self.simulation.observe(self._inputs(self.calibration.samples), self.few)

    def run(self) -> Judgement:
        """Return the judgement."""
        stated = self.calibration.activations
        closeness = {one: self._closeness(one) for one in (*TRIED, *(() if stated in (*TRIED, "auto") else (stated,)))}
        best = max(closeness, key=closeness.__getitem__)
        own = best if stated == "auto" else stated
        first, sqnr = self._measure(self.simulation, own)
        judgement = Judgement(
            drop=finite(first.drop),
            drop_low=finite(first.low),
            passed=first.passed,
            hopeless=not first.passed and first.missed_beyond_noise,
            sqnr_db=sqnr,
        )
        if first.passed:
            return judgement
        if closeness[best] > closeness[own]:
            found, _ = self._measure(self.simulation, best)
            if found.drop < first.drop:
                told = {"calibration": best, "calibration_drop": finite(found.drop)}
                judgement = judgement.model_copy(update={**told, "calibration_passes": found.passed})
        if not judgement.calibration_passes and self.precision.activations < 16:
            judgement = judgement.model_copy(update=self._sixteen_bits(own))
        return judgement

    def _inputs(self, samples: int) -> Iterable[Inputs]:
        return self.bench.task.calibration_inputs(samples)

    def _simulation(self, precision: Precision) -> Simulation:
        simulation = Simulation(self.network, self.bench.target, precision)
        simulation.quantize_weights(False)
        return simulation

    def _settle(self, simulation: Simulation, method: Method) -> None:
        """Take the ranges that one method finds; what it has found before for a tensor and a grid is not looked for."""
        points = [one for one in simulation.placement.points if one.parameter is None and one.shares is None]
        if any(point.tensor not in self.histograms for point in points):
            self.histograms |= simulation.observe(self._inputs(self.calibration.samples))
        missing = {}
        for point in points:
            found = self.found.get((method, point.tensor, point.grid))
            if found is None:
                missing[point.tensor] = self.histograms[point.tensor]
            else:
                _activation(simulation, point).encoding = found
        simulation.settle_activations(missing, self.calibration.model_copy(update={"activations": method}))
        for point in points:
            self.found[method, point.tensor, point.grid] = _activation(simulation, point).encoding

    def _closeness(self, method: Method) -> float:
        """Return the SQNR of the outputs on a few calibration samples, in dB, with ranges by one method."""
        self._settle(self.simulation, method)
        found = self.simulation.closeness(self.few)
        return -math.inf if math.isnan(found) else found

    def _measure(self, simulation: Simulation, method: Method) -> tuple[Decision, float | None]:
        """Return the decision by the point estimate on the choosing part, and the SQNR, with ranges by one method."""
        self._settle(simulation, method)
        evaluation = self.bench.choosing.evaluator.evaluate(simulation.model)
        gate, fp32 = self.bench.recipe.gate, self.bench.choosing.fp32
        decision = decide(gate, fp32, evaluation.measurement, self.bench.recipe.seed)
        passed = meets(gate, fp32, evaluation.measurement)
        return replace(decision, passed=passed), finite(evaluation.sqnr_db)

    def _sixteen_bits(self, method: Method) -> dict[str, object]:
        """Return the layers that need 16-bit activations for the gate; none where 8 of them do not suffice."""
        worst = self._worst_layers(method)
        for count in SIXTEEN_BITS:
            chosen = tuple(worst[:count])
            try:
                simulation = self._simulation(self._with_16_bits(chosen))
            except RecipeError:
                return {}  # a name that the target's table gives no tensor
            decision, _ = self._measure(simulation, method)
            if decision.passed:
                return {"sixteen_bits": chosen, "sixteen_bits_drop": finite(decision.drop)}
            if count >= len(worst):
                break
        return {}

    def _with_16_bits(self, layers: tuple[str, ...]) -> Precision:
        added = {layer: LayerPrecision(activations=16) for layer in layers}
        return self.precision.model_copy(update={"overrides": {**self.precision.overrides, **added}})

    def _worst_layers(self, method: Method) -> list[str]:
        """Return the layers that a recipe can name, by what their activation alone costs in SQNR, the worst first."""
        self._settle(self.simulation, method)
        inputs = list(self._inputs(SAMPLES))
        points = [point for point in self.simulation.placement.points if point.parameter is None]
        quantizers = [self.simulation.quantizer(point.tensor) for point in points if point.shares is None]
        for one in quantizers:
            one.enabled = False
        nameable = layer_paths(self.network.graph)
        costs: dict[str, float] = {}
        for point in points:
            if point.shares is not None or point.layer not in nameable:
                continue
            quantizer = self.simulation.quantizer(point.tensor)
            quantizer.enabled = True
            costs[point.layer] = min(self.simulation.closeness(inputs), costs.get(point.layer, math.inf))
            quantizer.enabled = False
        for one in quantizers:
            one.enabled = True
        return sorted(costs, key=costs.__getitem__)


def _activation(simulation: Simulation, point: Point) -> ActivationQuantizer:
    quantizer = simulation.quantizer(point.tensor)
    assert isinstance(quantizer, ActivationQuantizer)
    return quantizer
