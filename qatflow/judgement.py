"""Judge quantized activations by themselves, with the weights in float, before weights are rounded better.

Where activations alone miss the gate, no rounding of weights can be expected to meet it. What can help is found out
on the spot: another way to find ranges, 16 bits for the layers whose activations hurt most, or training with range
learning. AIMET's AutoQuant judged in the same way, and gave up there.
"""

from __future__ import annotations

from collections.abc import Iterable

from qatflow.bench import Bench, Candidate
from qatflow.errors import QatflowError
from qatflow.gate import Decision, allowed_drop, decide
from qatflow.quant.network import Network
from qatflow.quant.quantizer import ActivationQuantizer
from qatflow.quant.saved import finite
from qatflow.quant.simulation import METHODS, Simulation
from qatflow.recipe import LayerPrecision, Precision
from qatflow.result import Judgement
from qatflow.store import key_of, read_json, write_json

SIXTEEN_BITS = (1, 2, 4, 8)
"""How many layers get 16-bit activations, one try after the other."""
SAMPLES = 16
"""Calibration samples on which the layers are ranked."""


def judge(bench: Bench, kept: Candidate) -> Judgement:
    """Return what quantized activations alone do to a candidate, and where they miss the gate, what would help.

    A judgement that an earlier run stored in the folder is not made again.
    """
    path = bench.folder / "activations_only.json"
    key = key_of(kept.key, "activations only", bench.recipe.gate.model_dump(mode="json"))
    if path.exists():
        stored = read_json(path)
        if stored.get("key") == key:
            return Judgement.model_validate(stored["judgement"])
    bench.progress.stage("activations only: weights in float, to see what rounding them can reach")
    judgement = _Judge(bench, kept.network).run()
    write_json(path, {"key": key, "judgement": judgement.model_dump(mode="json")})
    return judgement


class _Judge:
    """Measures one network with its weights in float in several ways."""

    def __init__(self, bench: Bench, network: Network) -> None:
        self.bench = bench
        self.network = network
        self.precision = bench.recipe.precision
        self.method = bench.recipe.calibration.activations

    def run(self) -> Judgement:
        first, sqnr = self._measure(self.precision, self.method)
        allowed = allowed_drop(self.bench.recipe.gate.max_drop, self.bench.fp32.value)
        hopeless = not first.passed and not first.low <= allowed
        judgement = Judgement(
            drop=finite(first.drop), drop_low=finite(first.low), passed=first.passed, hopeless=hopeless, sqnr_db=sqnr
        )
        if first.passed:
            return judgement
        tried = {one: self._measure(self.precision, one)[0] for one in METHODS if one != self.method}
        best = min(tried, key=lambda one: (not tried[one].passed, tried[one].drop))
        if tried[best].drop < first.drop:
            judgement = judgement.model_copy(
                update={
                    "calibration": best,
                    "calibration_drop": finite(tried[best].drop),
                    "calibration_passes": tried[best].passed,
                }
            )
        if not judgement.calibration_passes and self.precision.activations < 16:
            judgement = judgement.model_copy(update=self._sixteen_bits())
        return judgement

    def _measure(self, precision: Precision, method: str) -> tuple[Decision, float | None]:
        """Return the gate's decision and the SQNR with quantized activations and float weights."""
        simulation = self._simulation(precision, method)
        evaluation = self.bench.evaluator.evaluate(simulation.model)
        decision = decide(self.bench.recipe.gate, self.bench.fp32, evaluation.measurement, self.bench.recipe.seed)
        return decision, finite(evaluation.sqnr_db)

    def _simulation(self, precision: Precision, method: str) -> Simulation:
        simulation = Simulation(self.network, self.bench.target, precision)
        simulation.quantize_weights(False)
        calibration = self.bench.recipe.calibration.model_copy(update={"activations": method})
        simulation.calibrate(self.bench.task.calibration_inputs(calibration.samples), calibration)
        return simulation

    def _sixteen_bits(self) -> dict[str, object]:
        """Return the layers that need 16-bit activations for the gate; none where 8 of them do not suffice."""
        worst = list(self._worst_layers())
        for count in SIXTEEN_BITS:
            if count > len(worst):
                break
            chosen = tuple(worst[:count])
            decision, _ = self._measure(self._with_16_bits(chosen), self.method)
            if decision.passed:
                return {"sixteen_bits": chosen, "sixteen_bits_drop": finite(decision.drop)}
        return {}

    def _with_16_bits(self, layers: tuple[str, ...]) -> Precision:
        added = {layer: LayerPrecision(activations=16) for layer in layers}
        return self.precision.model_copy(update={"overrides": {**self.precision.overrides, **added}})

    def _worst_layers(self) -> Iterable[str]:
        """Yield layers by what their activation alone costs in SQNR of the outputs, the worst first."""
        simulation = self._simulation(self.precision, self.method)
        inputs = list(self.bench.task.calibration_inputs(SAMPLES))
        points = [point for point in simulation.placement.points if point.parameter is None and point.shares is None]
        quantizers = [simulation.quantizer(point.tensor) for point in points]
        for one in quantizers:
            one.enabled = False
        costs: dict[str, float] = {}
        for point, quantizer in zip(points, quantizers, strict=True):
            assert isinstance(quantizer, ActivationQuantizer)
            quantizer.enabled = True
            costs[point.layer] = min(simulation.closeness(inputs), costs.get(point.layer, float("inf")))
            quantizer.enabled = False
        for layer in sorted(costs, key=costs.__getitem__):
            try:
                Simulation(self.network, self.bench.target, self._with_16_bits((layer,)))
            except QatflowError:
                continue  # not a layer that a recipe can name: an input, or a function of the model's own
            yield layer
