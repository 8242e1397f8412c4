"""Solve one layer after another for the least reconstruction error, all in one walk over the calibration samples.

Every layer sees its input as the layers before it, already solved and quantized, give it, and is to give what FP32
gives there, whatever steps before have made of the weights. Its moments (`qatflow.quant.moments`) are collected once;
what a step does with them is its own affair. Every fourth sample is held out of the fit, so that a solution can be
judged on samples it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qatflow.graph.chains import out_channels
from qatflow.graph.columns import columns, patches, per_row, weight_from_rows, weight_rows
from qatflow.graph.layers import Layer, set_tensor, shared_parameters, tensor, weighted_layers
from qatflow.graph.padding import mask_of, real_positions
from qatflow.graph.surgery import finish, give_bias
from qatflow.quant.grid import Encoding
from qatflow.quant.moments import Collector, Moments
from qatflow.quant.network import Network
from qatflow.quant.quantizer import WeightFakeQuantize
from qatflow.quant.simulation import Simulation
from qatflow.quant.streams import Chunks, walk
from qatflow.steps.context import StepContext

HELD_OUT = 4
"""Every so many samples one is held out."""
FEWEST_COLUMNS = 2**16
"""Output positions that moments are taken over, if the samples have so many ..."""
COLUMNS_PER_UNKNOWN = 32
"""... and so many for every weight of a row, if that is more."""


@dataclass(frozen=True)
class Problem:
    """One layer to solve.

    Attributes:
        layer: in the float network's graph.
        weight: FP32's weight, the goal.
        start: the weight as the steps before left it.
        encoding: of that, as it is in force.
        bias: what the layer's bias has beyond FP32's, float64, shape `[groups, rows]`.
        fit: moments over the samples to fit to.
        held: moments over the samples held out.
    """

    layer: Layer
    weight: Tensor
    start: Tensor
    encoding: Encoding
    bias: Tensor
    fit: Moments
    held: Moments

    @property
    def rows(self) -> Tensor:
        """FP32's weight as rows, float64, shape `[groups, rows, columns]`."""
        return weight_rows(self.weight, self.layer).double()

    def quantized_rows(self, encoding: Encoding) -> Tensor:
        """Return the weight as it is, rounded to nearest on a grid, as rows."""
        return weight_rows(encoding.dequantize(encoding.quantize(self.start)), self.layer).double()

    def per_row(self, values: Tensor) -> Tensor:
        """Return values per channel of the encoding as values per row, float64, shape `[groups, rows, 1]` or ones."""
        return per_row(values, self.layer, self.encoding.axis).double()

    def per_channel_sum(self, values: Tensor) -> Tensor:
        """Sum values per row, shape `[groups, rows]`, over the rows that share a scale; the shape of a scale."""
        if self.encoding.axis is None:
            return values.sum()
        return values.sum(0) if self.layer.kind == "conv_transpose" else values.flatten()


@dataclass(frozen=True)
class Solution:
    """What a step makes of a layer; None leaves a part as it is.

    Attributes:
        encoding: a new one for the weight.
        rows: the weight, as rows on the grid of the encoding.
        shift: what to add to FP32's bias, shape `[output channels]`.
    """

    encoding: Encoding | None = None
    rows: Tensor | None = None
    shift: Tensor | None = None


Solve = Callable[[Problem], Solution]


def mean_shift(problem: Problem, rows: Tensor) -> Tensor:
    """Return what FP32's bias must gain so that the outputs of `rows` have the mean of FP32's."""
    moments = problem.fit
    return (moments.output - (rows @ moments.mean[:, :, None])[:, :, 0]).flatten()


def reconstruct(
    network: Network, context: StepContext, samples: int, solve: Solve, *, name: str, shifts: bool
) -> Network:
    """Return the network with every quantized layer as `solve` has it, layers in the order they run.

    Args:
        network: what FP32 computes there is the goal.
        context: of the step.
        samples: most calibration samples to use.
        solve: returns a layer's solution; a weight that several layers share is solved for the first of them.
        name: of the step, for progress.
        shifts: whether solutions move biases: layers without one get one.
    """
    if shifts:
        network = with_biases(network)
    simulation = Simulation(network)
    simulation.calibrate_on_fp32(context.calibration_inputs(network))
    inputs = list(context.inputs(samples))
    work = _Reconstruction(simulation, solve, [mask_of(network.graph, *one) for one in inputs])
    layers = weighted_layers(network.graph)
    done = context.progress.track(layers, f"{name}: layers", len(layers))

    def visit(layer: Layer, floats: Chunks, quantized: Chunks) -> None:
        next(done, None)
        with torch.no_grad():
            work.visit(layer, floats, quantized)

    walk(simulation, inputs, visit)
    next(done, None)
    return network.fitted(work.changed, work.encodings)


def with_biases(network: Network) -> Network:
    """Return a copy in which every weighted layer has a bias."""
    copied = network.copy()
    for layer in weighted_layers(copied.graph):
        if layer.bias is None:
            weight = tensor(copied.graph, layer.weight)
            give_bias(copied.graph, layer, weight.new_zeros(out_channels(copied.graph, layer)))
    finish(copied.graph)
    return copied


class _Reconstruction:
    """The state of one walk: solves every quantized layer once."""

    def __init__(self, simulation: Simulation, solve: Solve, masks: list[Tensor | None]) -> None:
        self.simulation = simulation
        self.solve = solve
        self.masks = masks
        self.network = simulation.network
        self.graph = simulation.network.graph
        self.points = {point.parameter: point for point in simulation.placement.points if point.parameter}
        self.shared = shared_parameters(self.graph)
        self.encodings: dict[str, Encoding] = {}
        self.changed: dict[str, Tensor] = {}

    def visit(self, layer: Layer, floats: Chunks, quantized: Chunks) -> None:
        """Collect the layer's moments, solve it, and let the simulation go on with the solution."""
        point = self.points.pop(layer.weight, None)
        if point is None:
            return
        quantizer = self.simulation.quantizer(point.tensor)
        assert isinstance(quantizer, WeightFakeQuantize)
        weight, start = self.network.fp32(layer.weight), tensor(self.graph, layer.weight).detach()
        fit, held = _moments(layer, weight, floats, quantized, self.masks)
        encoding = quantizer.encoding_of(start)
        moved = self._moved_bias(layer, fit.output)
        solution = self.solve(Problem(layer, weight, start, encoding, moved, fit, held))
        if solution.rows is not None:
            self._set(layer.weight, weight_from_rows(solution.rows, weight, layer).to(weight.dtype))
        if solution.rows is not None or solution.encoding is not None:
            self.encodings[layer.weight] = solution.encoding or encoding
            quantizer.adopt(tensor(self.simulation.model, layer.weight), self.encodings[layer.weight])
        if solution.shift is not None and layer.bias is not None and layer.bias not in self.shared:
            bias = self.network.fp32(layer.bias)
            self._set(layer.bias, (bias.double() + solution.shift).to(bias.dtype))

    def _moved_bias(self, layer: Layer, like: Tensor) -> Tensor:
        """Return what a layer's bias has beyond FP32's, in the shape of `like`."""
        if layer.bias is None or layer.bias not in self.network.goal:
            return torch.zeros_like(like)
        moved = tensor(self.graph, layer.bias).detach().double() - self.network.fp32(layer.bias).double()
        return moved.view(like.shape)

    def _set(self, name: str, value: Tensor) -> None:
        self.changed[name] = value
        set_tensor(self.simulation.model, name, value)


def _moments(
    layer: Layer, weight: Tensor, floats: Chunks, quantized: Chunks, masks: list[Tensor | None]
) -> tuple[Moments, Moments]:
    """Return moments over the samples to fit to, and over those held out; the same where there are too few.

    Padded positions of a batch, where its mask is false, do not count.
    """
    rows, how = weight_rows(weight, layer), patches(layer, weight)
    collectors = Collector(rows), Collector(rows)
    samples = sum(len(chunk) for chunk in floats)
    positions = -(-max(FEWEST_COLUMNS, COLUMNS_PER_UNKNOWN * rows.shape[2]) // samples)
    seen = 0
    for number, (x, y, mask) in enumerate(zip(floats, quantized, masks, strict=True)):
        held = torch.arange(seen, seen + len(x), device=x.device) % HELD_OUT == HELD_OUT - 1
        seen += len(x)
        real = real_positions(x, mask) if layer.kind == "linear" else None
        if real is not None:
            x, y, held = x[real], y[real], held[:, None].expand_as(real)[real]
        both = [columns(one, how, positions, seed=number) for one in (x, y)]
        for collector, chosen in zip(collectors, (~held, held), strict=True):
            collector.add(*(one[:, chosen] for one in both))
    fit = collectors[0].moments()
    return fit, collectors[1].moments() if seen >= HELD_OUT else fit
