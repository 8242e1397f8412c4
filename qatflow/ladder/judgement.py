"""Judge quantized activations by themselves, with the weights in float, before weights are rounded better.

Where activations alone miss the gate, rounding weights better can hardly be expected to meet it. What can help is other
ranges, more bits for the activations that hurt most, or training with range learning: the ladder climbs the first two
as rungs, `calibrate` and `set_precision`. AIMET's AutoQuant judged in the same way, and gave up there.

What is judged is the network before anything was fitted to its weights: biases that make up for rounded weights are
wrong beside float ones. Activations are observed once, whatever is tried with what was seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate
from qatflow.quant.layer_precision import layer_paths
from qatflow.quant.network import Network
from qatflow.quant.saved import finite
from qatflow.quant.sensitivity import Sensitivity
from qatflow.quant.simulation import Inputs, Simulation
from qatflow.quant.target import Target
from qatflow.recipe import LayerPrecision
from qatflow.results.gate import Decision, decide, meets
from qatflow.results.result import Judgement
from qatflow.results.store import key_of, read_usable, write_json

FEW = (1, 2, 4, 8)
"""How many activations get more bits, one try after the other."""
SAMPLES = 8
"""Calibration samples on which activations are ranked."""
MANY_BITS = 16
T = TypeVar("T")
_JUDGEMENT, _NAMES = TypeAdapter(Judgement), TypeAdapter(list[str])


class Judge:
    """Judges one candidate; what an earlier run found of it and stored is not looked for again."""

    def __init__(self, bench: Bench, kept: Candidate) -> None:
        self._bench = bench
        self._kept = kept
        self._path = bench.run_folder / "activations_only.json"
        self._key = key_of(kept.key, "activations only", bench.recipe.gate.model_dump(mode="json"))

    @cached_property
    def _trials(self) -> _Trials:
        return _Trials(self._bench, self._kept.network)

    def judgement(self) -> Judgement:
        """Return what quantized activations alone cost."""
        said = "activations only: weights in float, to see what rounding them can reach"
        return self._found("judgement", said, lambda: self._trials.judgement(), _JUDGEMENT)

    def tensors_in_need(self) -> dict[str, LayerPrecision]:
        """Return the activations with which all alone meet the gate, if they have more bits; none where 8 do not do.

        More bits are 16 where the target has integer kernels for them, and float elsewhere.
        """
        relief, said = more_bits(self._bench.base.design.target), "sensitivity: which activations hurt most"
        found = self._found("tensors", said, lambda: self._trials.tensors_in_need(relief), _NAMES)
        return dict.fromkeys(found, relief)

    def _found(self, what: str, stage: str, look: Callable[[], T], form: TypeAdapter[T]) -> T:
        """Return what is stored under a name; where nothing of its form is, look for it and store it."""
        stored = read_usable(self._path, self._bench.progress.note)
        every = {key: one for key, one in stored.items() if isinstance(one, dict)} if isinstance(stored, dict) else {}
        own = every.get(self._key, {})
        with suppress(KeyError, ValidationError):
            return form.validate_python(own[what])
        self._bench.progress.stage(stage)
        found = look()
        write_json(self._path, {**every, self._key: {**own, what: form.dump_python(found, mode="json")}})
        return found


def more_bits(target: Target) -> LayerPrecision:
    """Return the next better precision of an activation that a target really runs."""
    able = MANY_BITS in target.integer_activations
    return LayerPrecision(activations=MANY_BITS) if able else LayerPrecision(quantized=False)


class _Trials:
    """Measures one network with its weights in float, with several precisions of activations."""

    def __init__(self, bench: Bench, network: Network) -> None:
        self.bench = bench
        self.network = network.unfitted()
        self.simulation = self._simulation(self.network)
        self.histograms = self.simulation.observe(self._inputs(network.design.calibration.samples))

    def judgement(self) -> Judgement:
        """Return what quantized activations alone cost."""
        decision, sqnr = self._measure(self.simulation)
        return Judgement(
            drop=finite(decision.drop),
            drop_low=finite(decision.low),
            passed=decision.passed,
            hopeless=not decision.passed and decision.missed_beyond_noise,
            sqnr_db=sqnr,
        )

    def tensors_in_need(self, relief: LayerPrecision) -> list[str]:
        """Return the activations that need `relief` for the gate; none where 8 of them do not suffice."""
        worst = self._worst()
        for count in FEW:
            chosen = worst[:count]
            design = self.network.design.with_overrides(dict.fromkeys(chosen, relief))
            if self._measure(self._simulation(self.network.designed(design)))[0].passed:
                return chosen
            if count >= len(worst):
                break
        return []

    def _inputs(self, samples: int) -> Iterable[Inputs]:
        return self.bench.task.calibration_inputs(samples)

    def _simulation(self, network: Network) -> Simulation:
        simulation = Simulation(network)
        simulation.quantize_weights(False)
        return simulation

    def _settle(self, simulation: Simulation) -> None:
        """Take the ranges that the design finds in what was seen, and in what had no quantizer then."""
        points = [one for one in simulation.placement.points if one.parameter is None and one.shares is None]
        if any(point.tensor not in self.histograms for point in points):
            self.histograms |= simulation.observe(self._inputs(self.network.design.calibration.samples))
        simulation.settle_activations(self.histograms)

    def _measure(self, simulation: Simulation) -> tuple[Decision, float | None]:
        """Return the decision by the point estimate on the choosing part, and the SQNR."""
        self._settle(simulation)
        evaluation = self.bench.choosing.evaluator.evaluate(simulation.model)
        gate, fp32 = self.bench.recipe.gate, self.bench.choosing.fp32
        decision = decide(gate, fp32, evaluation.measurement, self.bench.recipe.seed)
        passed = meets(gate, fp32, evaluation.measurement)
        return replace(decision, passed=passed), finite(evaluation.sqnr_db)

    def _worst(self) -> list[str]:
        """Return the activations that a recipe can name, by what each alone costs in SQNR, the worst first."""
        self._settle(self.simulation)
        inputs = list(self._inputs(SAMPLES))
        sensitivity, of_layers = Sensitivity(self.simulation), layer_paths(self.network.graph)
        named = [one.tensor for one in sensitivity.points if one.parameter is None and one.tensor not in of_layers]
        found = {name: sensitivity.alone(name, inputs).lowest for name in named}
        costs = {name: -math.inf if math.isnan(one) else one for name, one in found.items()}
        return sorted(costs, key=costs.__getitem__)
