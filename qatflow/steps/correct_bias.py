"""Correct biases for the shift of means that quantization brings.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.3. Rounding a
weight by `e` shifts the mean of the layer's output by `e E[x]`, the same for every sample, so that the bias can make
up for it:

- `empirical` takes the means from calibration samples, layers in order, each on inputs that the layers before it have
  quantized and corrected: what the inputs' own quantization shifts is corrected as well;
- `analytic` needs no samples: behind a folded batch norm and a ReLU or ReLU6, a value is a normal distribution with
  the norm's shift and scale, clipped (the paper's equations 17 to 19 and appendix C).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from qatflow.graph.chains import in_channels
from qatflow.graph.columns import weight_rows
from qatflow.graph.layers import Layer, shared_parameters, tensor, weighted_layers
from qatflow.graph.ops import argument, clip_bounds, kind
from qatflow.quant.network import Network
from qatflow.quant.quantizer import WeightFakeQuantize
from qatflow.quant.simulation import Simulation
from qatflow.recipe.steps import CorrectBias
from qatflow.results.result import Note
from qatflow.steps.context import StepContext
from qatflow.steps.reconstruct import Problem, Solution, mean_shift, reconstruct, with_biases


def correct_bias(network: Network, config: CorrectBias, context: StepContext) -> tuple[Network, dict[str, Note]]:
    """Return the network with biases that keep the means of the layers' outputs.

    Notes count the layers `corrected`, and those `left` because nothing is known of their inputs.
    """
    if config.method == "analytic":
        return _analytic(network, context)
    corrected = 0

    def solve(problem: Problem) -> Solution:
        nonlocal corrected
        corrected += 1
        return Solution(shift=mean_shift(problem, problem.quantized_rows(problem.encoding)))

    result = reconstruct(network, context, config.samples, solve, name="correct_bias", shifts=True)
    return result, {"corrected": corrected, "left": len(weighted_layers(network.graph)) - corrected}


def _analytic(network: Network, context: StepContext) -> tuple[Network, dict[str, Note]]:
    """Correct every layer that a folded batch norm, alone or with a ReLU, ReLU6 or clip, comes before."""
    unchanged, network = network, with_biases(network)
    simulation = Simulation(network)
    simulation.settle_weights()
    points = {point.parameter: point for point in simulation.placement.points if point.parameter}
    shared = shared_parameters(network.graph)
    biases: dict[str, Tensor] = {}
    left = 0
    for layer in weighted_layers(network.graph):
        mean = _input_mean(network, layer)
        if layer.weight not in points or mean is None or shared & {layer.weight, layer.bias}:
            left += 1
            continue
        quantizer = simulation.quantizer(points[layer.weight].tensor)
        assert isinstance(quantizer, WeightFakeQuantize)
        assert layer.bias is not None
        weight, start = network.fp32(layer.weight), tensor(network.graph, layer.weight).detach()
        encoding = quantizer.encoding_of(start)
        change = weight_rows(encoding.dequantize(encoding.quantize(start)) - weight, layer).double()
        per_column = mean.view(layer.groups, -1).repeat_interleave(weight.shape[2:].numel(), 1)
        shift = -(change @ per_column[:, :, None])[:, :, 0].flatten()
        bias = network.fp32(layer.bias)
        biases[layer.bias] = (bias.double() + shift).to(bias.dtype)
    if not biases:
        reason = "no layer's input comes from a folded batch norm; use method: empirical"
        return unchanged, {"corrected": 0, "left": left, "reason": reason}
    return network.fitted(biases), {"corrected": len(biases), "left": left}


def _input_mean(network: Network, layer: Layer) -> Tensor | None:
    """Return the mean of every input channel of a layer, float64, shape `[channels]`; None where it is unknown."""
    node, bounds = layer.input, (-math.inf, math.inf)
    if kind(node) == "minimum" and isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr":
        high: float | Tensor = tensor(network.graph, str(node.args[1].target)).detach().double().flatten()
        node = _before(node)
    else:
        high = math.inf
    if kind(node) == "relu":
        bounds, node = (0.0, math.inf), _before(node)
    elif kind(node) == "clip":
        bounds, node = clip_bounds(node), _before(node)
    normal = network.normals.get(node.name)
    if normal is None or len(normal[0]) != in_channels(network.graph, layer):
        return None
    if isinstance(high, Tensor) and len(high) != len(normal[0]):
        return None
    top = high if isinstance(high, Tensor) else torch.full_like(normal[0], min(high, bounds[1]))
    return clipped_normal_mean(*normal, torch.full_like(normal[0], bounds[0]), top)


def _before(node: fx.Node) -> fx.Node:
    source = argument(node, 0, "self")
    assert isinstance(source, fx.Node)
    return source


def clipped_normal_mean(mean: Tensor, deviation: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return `E[clamp(x, low, high)]` of normal `x`; float64, all of shape `[channels]`, bounds may be infinite."""
    deviation = deviation.clamp(min=1e-30)
    a, b = (low - mean) / deviation, (high - mean) / deviation
    below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
    density = (torch.exp(-a.square() / 2) - torch.exp(-b.square() / 2)) / math.sqrt(2 * math.pi)
    inside = mean * (1 - below - above) + deviation * density
    clipped = torch.where(below > 0, low * below, 0.0) + torch.where(above > 0, high * above, 0.0)
    result: Tensor = inside + clipped
    return result
