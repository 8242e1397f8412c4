"""Find ranges in the way whose outputs are nearest to FP32's.

No way to find ranges is the best for every network (Nagel et al. 2021, "A White Paper on Neural Network Quantization",
section 3.2): min-max keeps outliers, the others cut them off for finer steps. So each is tried, on histograms of three
of four calibration samples, and judged by the outputs on the fourth ones. Then the activations that hurt most are gone
through, and one gets another way by itself where that helps on two halves of those samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

from torch import Tensor

from qatflow.graph.tree import tree_leaves, tree_map_only
from qatflow.quant.design import Design
from qatflow.quant.network import Network
from qatflow.quant.simulation import Simulation
from qatflow.recipe.calibration import Method
from qatflow.recipe.steps import Calibrate
from qatflow.results.result import Note
from qatflow.steps.context import Inputs, StepContext

HELD_OUT = 4
"""Every so many samples one is held out."""
LEAST_GAIN = 0.05
"""What another way has to gain, in dB: less is chance."""


def calibrate(network: Network, config: Calibrate, context: StepContext) -> tuple[Network, dict[str, Note]]:
    """Return the network with the design whose ranges bring its outputs nearest to FP32's.

    Notes give the way for `activations` and for `weights`, how many `tensors` have one of their own, and what was
    gained on held-out samples, `gain_db`.
    """
    search = _Search(network, config, context)
    before = search.closeness(network.design)
    best = search.for_single_tensors(search.for_all(network.design))
    gain = search.closeness(best) - before
    notes: dict[str, Note] = {
        "activations": best.calibration.activations,
        "weights": best.calibration.weights,
        "tensors": len(best.ranges),
        "gain_db": gain if math.isfinite(gain) else 0.0,
    }
    if best == network.design or not gain >= LEAST_GAIN:
        return network, {"reason": "no other way to find ranges is better on held-out samples"}
    return network.designed(best), notes


class _Search:
    """Tries designs that differ in how ranges are found."""

    def __init__(self, network: Network, config: Calibrate, context: StepContext) -> None:
        self.config = config
        self.progress = context.progress
        fit, *halves = _split(list(context.calibration_inputs(network)), config.held_out)
        self.halves: list[list[Inputs]] = halves
        self.simulation = Simulation(network)
        self.simulation.settle_weights()
        self.histograms = self.simulation.observe(fit)
        self.weights = network.design.calibration.weights

    def closeness(self, design: Design) -> float:
        """Return how near a design's outputs are to FP32's on all held-out samples, in dB."""
        if design.calibration.weights != self.weights:
            self.weights = design.calibration.weights
            self.simulation.settle_weights(design)
        self.simulation.settle_activations(self.histograms, design)
        return self._closeness([batch for half in self.halves for batch in half])

    def _closeness(self, inputs: Iterable[Inputs]) -> float:
        found = self.simulation.closeness(inputs)
        return -math.inf if math.isnan(found) else found

    def for_all(self, design: Design) -> Design:
        """Return the best design with one way for all activations, and one for all weights."""
        tried = [design, *(design.found_by(activations=method, ranges={}) for method in self.config.activations)]
        best = self._best(tried)
        return self._best([best, *(best.found_by(weights=method) for method in self.config.weights)])

    def _best(self, designs: list[Design]) -> Design:
        """Return the design with the nearest outputs; the first where none gains enough."""
        first, *others = designs
        found = {position: self.closeness(one) for position, one in enumerate(others) if one != first}
        best = max(found, key=found.__getitem__, default=None)
        gains = best is not None and found[best] >= self.closeness(first) + LEAST_GAIN
        return others[cast("int", best)] if gains else first

    def for_single_tensors(self, design: Design) -> Design:
        """Return the design with another way for single activations, as far as that helps on both halves."""
        if not self.config.tensors:
            return design
        self.closeness(design)
        for tensor in self.progress.track(self._worst(), "calibrate: tensors", self.config.tensors):
            for method in self.config.activations:
                if method != design.calibration_of(tensor).activations:
                    design = self._tried(design, tensor, method)
        return design

    def _tried(self, design: Design, tensor: str, method: Method) -> Design:
        """Return the design with another way for one activation if that helps on both halves; its ranges stay set."""
        other = design.found_by(ranges={**design.ranges, tensor: method})
        before = [self._closeness(half) for half in self.halves]
        histogram = {tensor: self.histograms[tensor]}
        self.simulation.settle_activations(histogram, other)
        after = [self._closeness(half) for half in self.halves]
        if all(new >= old + LEAST_GAIN for old, new in zip(before, after, strict=True)):
            return other
        self.simulation.settle_activations(histogram, design)
        return design

    def _worst(self) -> list[str]:
        """Return the activations without which the outputs would be nearest to FP32's, those that hurt most first."""
        left: dict[str, float] = {}
        for point in self.simulation.placement.points:
            if point.tensor not in self.histograms or point.fixed_range is not None:
                continue
            quantizer = self.simulation.quantizer(point.tensor)
            quantizer.enabled = False
            left[point.tensor] = self._closeness(self.halves[0])
            quantizer.enabled = True
        return sorted(left, key=left.__getitem__, reverse=True)[: self.config.tensors]


def _split(every: list[Inputs], most: int) -> tuple[list[Inputs], list[Inputs], list[Inputs]]:
    """Return batches of three of four samples, and of the fourth ones two halves, of `most` samples together at most.

    Where there are too few samples for that, all are in each.
    """
    place = 2 * HELD_OUT
    halves = [_chosen(every, {HELD_OUT * one - 1}, most // 2 or 1) for one in (1, 2)]
    if not all(halves):
        return every, every, every
    return _chosen(every, {*range(place)} - {HELD_OUT - 1, place - 1}), halves[0], halves[1]


def _chosen(every: list[Inputs], remainders: set[int], most: int | None = None) -> list[Inputs]:
    """Return the samples whose number, modulo twice `HELD_OUT`, is one of `remainders`; at most `most`."""
    found, seen, left = [], 0, most
    for batch in every:
        size = next(len(one) for one in tree_leaves(batch) if isinstance(one, Tensor))
        numbers = [one for one in range(size) if (seen + one) % (2 * HELD_OUT) in remainders][:left]
        seen, left = seen + size, None if left is None else left - len(numbers)
        if numbers:
            found.append(_samples(batch, numbers))
    return found


def _samples(batch: Inputs, numbers: list[int]) -> Inputs:
    return tree_map_only(Tensor, lambda one: one[numbers], batch)  # type: ignore[no-any-return]
