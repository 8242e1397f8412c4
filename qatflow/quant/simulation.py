"""The simulation: a captured graph with its quantizers in place, called like the original model.

AIMET calls it QuantSim. `Simulation.model` runs what the target would compute, as far as rounding goes, in floats; it
can be evaluated and trained in any PyTorch pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from qatflow.errors import DataError
from qatflow.graph.called import called
from qatflow.graph.layers import set_tensor, tensor
from qatflow.graph.outputs import output_parts
from qatflow.graph.padding import mask_of, padding_of
from qatflow.graph.sqnr import OutputSqnr, part_powers
from qatflow.graph.twice import run_twice
from qatflow.quant.absorbed_clip import absorb_clip
from qatflow.quant.design import Design
from qatflow.quant.grid import Encoding
from qatflow.quant.histogram import Histogram
from qatflow.quant.network import Network, copy_graph
from qatflow.quant.observing import Observer
from qatflow.quant.placement import Placement, Point, place
from qatflow.quant.quantizer import ActivationFakeQuantize, WeightFakeQuantize

QUANTIZERS = "qatflow_quantizers"
"""Name of the submodule of `Simulation.model` that holds the quantizers, one per quantized tensor."""


Inputs = tuple[tuple[Any, ...], dict[str, Any]]
FINE_BITS = 8


class Simulation:
    """A network as its design's target would run it.

    Args:
        network: the float graph, which is copied, and its design.

    Raises:
        PlacementError: the target quantizes no weighted layer.
        RecipeError: a pattern of the design's overrides matches nothing.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.placement: Placement = place(network)
        self.model: fx.GraphModule = copy_graph(network.graph)
        self._insert()

    @property
    def design(self) -> Design:
        """The network's."""
        return self.network.design

    def _insert(self) -> None:
        holder = nn.Module()
        self.model.add_module(QUANTIZERS, holder)
        nodes = {node.name: node for node in self.model.graph.nodes}
        for point in self.placement.points:
            if point.shares is None:
                holder.add_module(_leaf(point.tensor), self._make(point))
            node = nodes[point.tensor]
            readers = [reader for reader in node.users if point.readers is None or reader.name in point.readers]
            with self.model.graph.inserting_after(_last_of_its_kind(node)):
                quantizer = self.model.graph.call_module(f"{QUANTIZERS}.{_leaf(point.shares or point.tensor)}", (node,))
            quantizer.meta["val"] = node.meta.get("val")
            for reader in readers:
                reader.replace_input_with(node, quantizer)
            if point.parameter is None:
                absorb_clip(self.model, quantizer)
        self.model.graph.lint()
        self.model.recompile()

    def _make(self, point: Point) -> ActivationFakeQuantize | WeightFakeQuantize:
        if point.parameter is None:
            device = next(iter(self.model.parameters())).device
            return ActivationFakeQuantize(point.grid, point.fixed_range, softmax=point.softmax).to(device)
        weight = tensor(self.model, point.parameter)
        channels = 1 if point.axis is None else weight.shape[point.axis]
        return WeightFakeQuantize(point.grid, point.axis, channels).to(weight.device)

    def quantizer(self, tensor_name: str) -> ActivationFakeQuantize | WeightFakeQuantize:
        """Return the quantizer of a tensor of the placement; tensors that share an encoding have the same one."""
        shared = next((point.shares for point in self.placement.points if point.tensor == tensor_name), None)
        module = self.model.get_submodule(f"{QUANTIZERS}.{_leaf(shared or tensor_name)}")
        assert isinstance(module, (ActivationFakeQuantize, WeightFakeQuantize))
        return module

    def calibrate(self, batches: Iterable[Inputs]) -> None:
        """Find every encoding as the design says: weights from their values, activations from representative samples.

        Weights are quantized while activations are observed.

        Args:
            batches: positional and keyword inputs of the model, a batch each.

        Raises:
            DataError: there is no sample, or one makes a value that is not finite.
        """
        self.settle_weights()
        self.settle_activations(self.observe(batches))

    def calibrate_on_fp32(self, batches: Iterable[Inputs]) -> None:
        """Find every encoding, those of activations from FP32's own values, whatever rounded weights make of them.

        That is for steps that bring a network nearer to FP32: what it gives before it was solved is no guide to the
        ranges that it will need, least of all where it is broken.

        Raises:
            DataError: there is no sample, or one makes a value that is not finite.
        """
        fp32 = Simulation(self.network.unfitted())
        fp32.quantize_weights(False)
        fp32.settle_activations(fp32.observe(batches))
        self.settle_weights()
        for point in self.placement.points:
            quantizer = self.quantizer(point.tensor)
            if isinstance(quantizer, ActivationFakeQuantize):
                found = fp32.quantizer(point.tensor)
                assert isinstance(found, ActivationFakeQuantize)
                quantizer.encoding = found.encoding

    def observe(self, batches: Iterable[Inputs]) -> dict[str, Histogram]:
        """Return histograms of all activations with an encoding of their own, by tensor.

        Padded positions do not count.

        Raises:
            DataError: there is no sample, or one makes a value that is not finite.
        """
        nodes = {node.name: node for node in self.network.graph.graph.nodes}
        quantizers = {
            point.tensor: quantizer
            for point in self.placement.points
            if point.shares is None and isinstance(quantizer := self.quantizer(point.tensor), ActivationFakeQuantize)
        }
        observers = {name: Observer(nodes[name]) for name in quantizers}
        for name, quantizer in quantizers.items():
            quantizer.observing = observers[name]
        seen = False
        for args, kwargs in batches:
            seen = True
            self._show(observers.values(), args, kwargs)
        if not seen:
            raise DataError("the calibration part of the data has no sample: give it some")
        for quantizer in quantizers.values():
            quantizer.observing = None
        return {name: observer.histogram for name, observer in observers.items()}

    @torch.no_grad()
    def _show(self, observers: Iterable[Observer], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run a batch before the observers: once, or twice where it has padding."""
        real = mask_of(self.model, args, kwargs)
        for observer in observers:
            observer.share = None if real is None else float(real.float().mean())
        try:
            if real is None:
                called(self.model, args, kwargs)
            else:
                run_twice(self.model, args, kwargs, real)
        except ValueError as error:
            message = f"{error}; look for NaN, infinite and far too large values in the calibration part"
            raise DataError(message) from error

    def settle_activations(self, histograms: Mapping[str, Histogram], design: Design | None = None) -> None:
        """Take the ranges of activations that a design finds in histograms; None is the network's own.

        Raises:
            DataError: a tensor never had a value.
        """
        design = design or self.design
        for point in self.placement.points:
            if point.tensor not in histograms:
                continue
            quantizer = self.quantizer(point.tensor)
            assert isinstance(quantizer, ActivationFakeQuantize)
            try:
                quantizer.settle(histograms[point.tensor], design.calibration_of(point.tensor))
            except ValueError as error:
                message = f"{point.layer}: {error}"
                raise DataError(message) from error

    @torch.no_grad()
    def output_sqnr(self, inputs: Iterable[Inputs]) -> OutputSqnr:
        """Return the SQNR against FP32 of every part of the outputs; padded positions do not count."""
        graph = self.network.fp32_graph
        sqnr = OutputSqnr(output_parts(graph))
        for args, kwargs in inputs:
            wanted, got = graph(*args, **kwargs), self.model(*args, **kwargs)
            sqnr.add(part_powers(sqnr.parts, wanted, got, padding_of(graph, args, kwargs)))
        return sqnr

    def closeness(self, inputs: Iterable[Inputs]) -> float:
        """Return the SQNR against FP32 of the part of the outputs that has the lowest, in dB.

        It is within `MOST_DB`; NaN where a value is not finite.
        """
        return self.output_sqnr(inputs).lowest

    def quantize_weights(self, quantize: bool) -> None:
        """Quantize weights, or leave them in float, so that only activations are quantized."""
        for point in self.placement.points:
            if point.parameter is not None:
                self.quantizer(point.tensor).enabled = quantize

    def quantize_activations(self, quantize: bool) -> None:
        """Quantize activations, or leave them in float, so that only weights are quantized."""
        for point in self.placement.points:
            if point.parameter is None:
                self.quantizer(point.tensor).enabled = quantize

    def settle_weights(self, design: Design | None = None, known: Mapping[str, Encoding] | None = None) -> None:
        """Find the encodings of weights: those that the network brings along, or as a design does (None: its own).

        Args:
            design: how they are found.
            known: what that comes to, by parameter, of some; one of another grid does not count.
        """
        method = (design or self.design).calibration.weights
        brought = {**(known or {}), **self.network.encodings}
        for point in self.placement.points:
            quantizer = self.quantizer(point.tensor)
            if isinstance(quantizer, WeightFakeQuantize):
                assert point.parameter is not None
                weight, fixed = tensor(self.model, point.parameter), brought.get(point.parameter)
                if fixed is not None and fixed.grid == point.grid and fixed.axis == point.axis:
                    quantizer.adopt(weight, fixed)
                else:
                    quantizer.settle(weight, method)

    def encodings(self) -> dict[str, Encoding]:
        """Return the encoding of every quantized tensor, by the tensor's name in the placement."""
        found = {}
        for point in self.placement.points:
            quantizer = self.quantizer(point.tensor)
            if isinstance(quantizer, WeightFakeQuantize):
                assert point.parameter is not None
                found[point.tensor] = quantizer.encoding_of(tensor(self.model, point.parameter))
            else:
                found[point.tensor] = quantizer.encoding
        return found

    def load_encodings(self, encodings: Mapping[str, Encoding]) -> None:
        """Use these encodings instead of calibrating.

        Raises:
            KeyError: one is missing.
        """
        for point in self.placement.points:
            quantizer, encoding = self.quantizer(point.tensor), encodings[point.tensor]
            if isinstance(quantizer, WeightFakeQuantize):
                assert point.parameter is not None
                quantizer.adopt(tensor(self.model, point.parameter), encoding)
            else:
                quantizer.encoding = encoding

    def learn_ranges(self, learn: bool) -> None:
        """Let training change the ranges, or freeze those of activations; weight scales follow in both cases.

        Ranges of the model's inputs stay as they are from 8 bits on: data does not change, and the gradient that they
        alone would want of the first layer costs 6 % of a training step on resnet18.
        """
        inputs = {node.name for node in self.model.graph.nodes if node.op == "placeholder"}
        for point in self.placement.points:
            given = point.tensor in inputs and point.grid.bits >= FINE_BITS
            self.quantizer(point.tensor).learn_range(learn and not given)

    def trainable(self, learn_ranges: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Let the weights be trained, and the ranges or not; returns the parameters of `model` to train.

        Returns:
            Weights (biases and the like with them), and what corrects ranges, which may want another learning rate.
        """
        self.model.requires_grad_(True)
        self.learn_ranges(learn_ranges)
        weights: list[nn.Parameter] = []
        ranges: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                (ranges if name.startswith(f"{QUANTIZERS}.") else weights).append(parameter)
        return weights, ranges

    def to_network(self) -> Network:
        """Return the float network with the weights as they are now, and their encodings."""
        graph = copy_graph(self.network.graph)
        for name, value in self.model.state_dict().items():
            if not name.startswith(f"{QUANTIZERS}."):
                set_tensor(graph, name, value)
        encodings = self.encodings()
        fixed = {point.parameter: encodings[point.tensor] for point in self.placement.points if point.parameter}
        return Network(graph, self.design, fixed)


def _leaf(tensor_name: str) -> str:
    """Return the name of a tensor's quantizer within its holder; a node may be called `to` or `half`."""
    return f"{tensor_name}_" if hasattr(nn.Module, tensor_name) else tensor_name


def _last_of_its_kind(node: fx.Node) -> fx.Node:
    """Return where a quantizer may be inserted: behind all inputs for an input, else behind the node itself."""
    if node.op != "placeholder":
        return node
    while node.next.op == "placeholder":
        node = node.next
    return node
