"""Biases as 32-bit integers, on the grid of the products that they are added to.

The grid is the input's scale times the weight's. A channel whose weights are next to nothing has one so fine that its
bias would not fit: its weight scale is raised until it does, as ONNX Runtime's own `quantize_static` has it. The
weights lose nothing that the bias does not drown. (There the limit is 2^31; with a bias that close to it the sum of
bias and products overflows, as a real EfficientNet-Lite0 shows.) Where one scale serves the whole tensor, raising it
costs every other channel: a bias so large that the output is at its limit whatever the products are is cut instead,
which changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from qatflow.graph.layers import set_tensor, shared_parameters, tensor, weighted_layers
from qatflow.graph.ops import argument
from qatflow.graph.ops import kind as kind_of
from qatflow.quant.grid import Encoding, Grid
from qatflow.quant.network import Network
from qatflow.quant.placement import Placement
from qatflow.quant.simulation import Simulation

BIAS_GRID = Grid(32, signed=True, symmetric=True)
FEWEST_BITS = 8
LARGEST = 2**30
"""Of a bias's integers: the sum of the products, which is added in 32 bits as well, needs room beside it."""


@dataclass(frozen=True)
class IntegerBiases:
    """A network whose biases are on their grids.

    Attributes:
        network: a copy of the simulation's float network, its biases rounded to the grid.
        encodings: of every quantized tensor, by its name in the placement.
        biases: encodings of biases, by parameter name.
        raised: names of layers whose weight scale had to be raised.
        coarse: names of layers whose bias has a coarser grid than their output: there the file may differ from the
            simulation, which keeps biases in float, by more than a step.
    """

    network: Network
    encodings: dict[str, Encoding]
    biases: dict[str, Encoding]
    raised: tuple[str, ...] = ()
    coarse: tuple[str, ...] = ()

    @property
    def notes(self) -> dict[str, str]:
        """What a user of the files should know."""
        told = {"weight_scales_raised_for_biases": self.raised, "biases_coarser_than_outputs": self.coarse}
        return {key: ", ".join(layers) for key, layers in told.items() if layers}


def integer_biases(simulation: Simulation) -> IntegerBiases:
    """Round the biases of layers whose input and weight are quantized; where the target has float biases, none."""
    network, placement = simulation.to_network(), simulation.placement
    found, biases, raised, coarse = simulation.encodings(), dict[str, Encoding](), [], []
    if simulation.design.target.bias == "float":
        return IntegerBiases(network, found, biases)
    shared = shared_parameters(network.graph)
    for layer in weighted_layers(network.graph):
        if layer.bias is None or layer.bias in shared or not _adds_its_bias(layer.node):
            continue
        operands = _operands(layer.node, placement, found)
        if operands is None:
            continue
        scale = operands[0].scale.double() * operands[1].scale.double()
        bias = tensor(network.graph, layer.bias).detach()
        output = found.get(placement.inside.get(layer.node.name, layer.node.name))
        most = _most(operands, tensor(network.graph, layer.weight), bias)
        growth = (bias.double().abs() / LARGEST / scale).clamp(min=1.0)
        growth = torch.where(_saturates(scale, most, bias, output), 1.0, growth)
        if bool((growth > 1).any()):
            raised.append(layer.name)
            weight = layer.node.args[1]
            assert isinstance(weight, fx.Node)
            growth = growth.max() if scale.dim() == 0 else growth
            # One step further than needed: the scale is rounded to single precision once more.
            growth = torch.where(growth > 1, growth * (1 + 1e-6), 1.0)
            found[weight.name] = replace(found[weight.name], scale=(found[weight.name].scale.double() * growth).float())
            scale = scale * growth
        if output is not None and bool((scale > output.scale.double()).any()):
            coarse.append(layer.name)
        scale = scale.float().expand(bias.shape)
        biases[layer.bias] = Encoding(BIAS_GRID, scale, torch.zeros_like(scale), 0)
        steps = (bias.double() / scale.double()).round().clamp(-LARGEST, LARGEST)
        set_tensor(network.graph, layer.bias, (steps * scale.double()).to(bias.dtype))
    return IntegerBiases(network, found, biases, tuple(raised), tuple(coarse))


def _most(operands: tuple[Encoding, Encoding], weight: Tensor, bias: Tensor) -> float:
    """Return what the products of one output value may add up to, as an integer: one for each weight of a channel."""
    bits = sum(one.grid.bits for one in operands) - 1
    return float(weight.numel() / bias.numel() * 2**bits)


def _saturates(scale: Tensor, most: float, bias: Tensor, output: Encoding | None) -> Tensor:
    """Tell which channels have a bias that, cut to the largest integer, still leaves the output at its limit.

    Args:
        scale: of the products, `[]` or `[out channels]`.
        most: what the products may add up to, as an integer.
        bias: `[out channels]`.
        output: the encoding of what the layer gives; None where that is in float.
    """
    if output is None:
        return torch.zeros_like(bias, dtype=torch.bool)
    reach = scale * (LARGEST - most)
    return (reach > torch.maximum(output.low.abs(), output.high.abs()).max()).expand(bias.shape)


def _adds_its_bias(node: fx.Node) -> bool:
    """Tell whether the bias is a part of the op in ONNX: a linear layer on more than rows is a product and a sum."""
    source = node.args[0]
    return kind_of(node) != "linear" or (isinstance(source, fx.Node) and source.meta["val"].dim() == 2)


def _operands(
    node: fx.Node, placement: Placement, encodings: Mapping[str, Encoding]
) -> tuple[Encoding, Encoding] | None:
    """Return the encodings of input and weight of a layer, whose scales, multiplied, are that of its products.

    None where the layer has no integer products, since its input or its weight stays in float, and where the input has
    so few bits that no runtime multiplies it as it is: the grid would be too coarse for a bias.
    """
    source, weight = node.args[:2]
    assert isinstance(source, fx.Node)
    assert isinstance(weight, fx.Node)
    read, own = _encoding_read(node, source, placement, encodings), encodings.get(weight.name)
    if read is None or own is None or read.grid.bits < FEWEST_BITS:
        return None
    if kind_of(node) == "conv_transpose" and own.axis is not None and argument(node, 6, "groups", 1) != 1:
        return None  # the scales repeat from group to group
    return read, own


def _encoding_read(
    reader: fx.Node, source: fx.Node, placement: Placement, encodings: Mapping[str, Encoding]
) -> Encoding | None:
    """Return the encoding of a tensor as one of its readers sees it; None where it sees floats."""
    for point in placement.points:
        if point.tensor == source.name and (point.readers is None or reader.name in point.readers):
            return encodings[point.tensor]
    return encodings.get(placement.tied.get(source.name, ""))
