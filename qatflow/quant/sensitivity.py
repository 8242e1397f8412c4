"""What each quantizer costs at a model's outputs: by itself, and in the company of all others.

The fast way takes one pass. A small error `d` of a tensor moves the outputs by `J d`, with their Jacobian `J`, and for
random signs `v` the mean square of `v' J d` is the power of that: one backward pass with random signs gives the noise
of all quantizers at once (Hutchinson's trace estimator, 1990). The exact way runs the model once for each quantizer.
Both tell noise relative to the signal, added up over the parts of the outputs, so that it can be compared and summed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qatflow.graph.layers import set_tensor, tensor
from qatflow.graph.outputs import output_parts
from qatflow.graph.padding import padding_of
from qatflow.graph.sqnr import MOST_DB, lowest
from qatflow.graph.tree import tree_leaves, tree_map_only
from qatflow.quant.placement import Point
from qatflow.quant.quantizer import ActivationFakeQuantize, WeightFakeQuantize
from qatflow.quant.simulation import Inputs, Simulation

AT_A_TIME = 8
"""Samples in one backward pass, which keeps every activation."""
DRAWS = 4
"""Random signs for each batch."""


@dataclass(frozen=True)
class Cost:
    """What one quantizer costs.

    Attributes:
        ratios: name and SQNR of every part of the outputs, in dB.
    """

    ratios: tuple[tuple[str, float], ...]

    @property
    def lowest(self) -> float:
        """The lowest of them; NaN where one is."""
        return lowest(ratio for _, ratio in self.ratios)

    @property
    def noise(self) -> float:
        """Noise relative to the signal, added up over the parts; infinite where one is not finite."""
        return sum(
            math.inf if math.isnan(one) else 10 ** (-one / 10) if one < MOST_DB else 0.0 for _, one in self.ratios
        )


class Sensitivity:
    """Measures the quantizers of a calibrated simulation.

    Args:
        simulation: calibrated; it is left as it is.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.points = [point for point in simulation.placement.points if point.shares is None]
        self.fp32 = Simulation(simulation.network.unfitted())
        for point in self.points:
            self.fp32.quantizer(point.tensor).enabled = False
        self.parts = output_parts(simulation.network.graph)

    def estimate(self, batches: Iterable[Inputs], draws: int = DRAWS, seed: int = 0) -> dict[str, float]:
        """Return the noise of every quantizer by itself, by its tensor's name in the placement: the fast way.

        Args:
            batches: positional and keyword inputs.
            draws: random signs for each batch.
            seed: of these.
        """
        generator = torch.Generator().manual_seed(seed)
        noise: defaultdict[str, float] = defaultdict(float)
        count = 0
        errors = {point.tensor: self._error_of(point) for point in self.points}
        for args, kwargs in _small(batches):
            taps = {name: _Tap(error) for name, error in errors.items()}
            with _tapped(self.fp32, taps), torch.enable_grad():
                outputs = self.fp32.model(*args, **kwargs)
            size, padding = _batch_size(args, kwargs), padding_of(self.fp32.model, args, kwargs)
            for _ in range(draws):
                count += 1
                for name, products in self._drawn(outputs, padding, taps, generator):
                    noise[name] += _power(products, size)
        return {point.tensor: noise[point.tensor] / max(count, 1) for point in self.points}

    def alone(self, tensor_name: str, batches: Sequence[Inputs]) -> Cost:
        """Return what a model costs in which only one tensor is quantized."""
        with self.only_quantized(tensor_name) as simulation:
            return Cost(simulation.output_sqnr(batches).ratios())

    @contextmanager
    def only_quantized(self, tensor_name: str) -> Iterator[Simulation]:
        """Give FP32 with one tensor quantized."""
        point = self._point(tensor_name)
        quantizer = self.fp32.quantizer(tensor_name)
        if point.parameter is None:
            quantizer.encoding = self._encoding(point)
            quantizer.enabled = True
            try:
                yield self.fp32
            finally:
                quantizer.enabled = False
            return
        before = tensor(self.fp32.model, point.parameter).detach().clone()
        set_tensor(self.fp32.model, point.parameter, self._rounded_weight(point))
        try:
            yield self.fp32
        finally:
            set_tensor(self.fp32.model, point.parameter, before)

    def without(self, tensor_name: str, batches: Sequence[Inputs]) -> Cost:
        """Return what is left where only one tensor is in float, and all others are quantized."""
        with self.only_float(tensor_name) as simulation:
            return Cost(simulation.output_sqnr(batches).ratios())

    @contextmanager
    def only_float(self, tensor_name: str) -> Iterator[Simulation]:
        """Give the simulation with one tensor in float."""
        point = self._point(tensor_name)
        quantizer = self.simulation.quantizer(tensor_name)
        quantizer.enabled = False
        before = None
        if point.parameter is not None:
            before = tensor(self.simulation.model, point.parameter).detach().clone()
            set_tensor(self.simulation.model, point.parameter, self.simulation.network.fp32(point.parameter))
        try:
            yield self.simulation
        finally:
            quantizer.enabled = True
            if before is not None and point.parameter is not None:
                set_tensor(self.simulation.model, point.parameter, before)

    def together(self, batches: Sequence[Inputs]) -> Cost:
        """Return what all quantizers cost together."""
        return Cost(self.simulation.output_sqnr(batches).ratios())

    def _point(self, tensor_name: str) -> Point:
        return next(point for point in self.points if point.tensor == tensor_name)

    def _encoding(self, point: Point) -> Any:
        quantizer = self.simulation.quantizer(point.tensor)
        assert isinstance(quantizer, ActivationFakeQuantize)
        return quantizer.encoding

    def _rounded_weight(self, point: Point) -> Tensor:
        quantizer, name = self.simulation.quantizer(point.tensor), str(point.parameter)
        assert isinstance(quantizer, WeightFakeQuantize)
        weight = tensor(self.simulation.model, name).detach()
        encoding = quantizer.encoding_of(weight)
        return encoding.dequantize(encoding.quantize(weight))

    def _error_of(self, point: Point) -> Callable[[Tensor], Tensor]:
        """Return what quantizing adds to a tensor's value; to a weight always the same."""
        if point.parameter is not None:
            error = self._rounded_weight(point) - self.simulation.network.fp32(point.parameter)
            return lambda _: error
        encoding = self._encoding(point)
        return lambda value: encoding.dequantize(encoding.quantize(value)) - value

    def _drawn(
        self, outputs: Any, padding: Any, taps: dict[str, _Tap], generator: torch.Generator
    ) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield, for one draw of signs, the gradient of every tap times its error, by tensor."""
        leaves = tree_leaves(outputs)
        signed: list[Tensor] = []
        for part in self.parts:
            value = leaves[part.leaf]
            real = None if padding is None else padding.real(part.leaf, value)
            own = value[part.index]
            signs = torch.randint(0, 2, own.shape, generator=generator).to(own) * 2 - 1
            if real is not None:
                signs = signs * real.expand(value.shape)[part.index]
            power = (own.detach().double().square() * (signs != 0)).sum()
            if own.requires_grad and bool(power > 0) and bool(power.isfinite()):
                signed.append((own * signs).sum() / power.sqrt().to(own.dtype))
        every = [
            (name, delta, one) for name, tap in taps.items() for delta, one in zip(tap.errors, tap.added, strict=True)
        ]
        if not signed or not every:
            return
        gradients = torch.autograd.grad(
            torch.stack(signed).sum(), [one for *_, one in every], retain_graph=True, allow_unused=True
        )
        found: defaultdict[str, list[Tensor]] = defaultdict(list)
        for (name, delta, _), gradient in zip(every, gradients, strict=True):
            if gradient is not None:
                found[name].append(gradient * delta)
        yield from found.items()


@dataclass(eq=False)
class _Tap:
    """Adds nothing to what a quantizer passes on, so that a gradient can be had there, and keeps its error.

    Args:
        error: what quantizing adds to a value.
    """

    error: Callable[[Tensor], Tensor]
    errors: list[Tensor] = field(default_factory=list)
    added: list[Tensor] = field(default_factory=list)

    def __call__(self, _: Any, __: Any, value: Tensor) -> Tensor:
        plain = value.detach()
        nothing = torch.zeros_like(plain, requires_grad=True)
        self.errors.append(torch.nan_to_num(self.error(plain)))
        self.added.append(nothing)
        return value + nothing


@contextmanager
def _tapped(simulation: Simulation, taps: dict[str, _Tap]) -> Iterator[None]:
    handles = [simulation.quantizer(name).register_forward_hook(tap) for name, tap in taps.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _power(products: Sequence[Tensor], size: int) -> float:
    """Return the mean square of `v' J d`: per sample where all have a batch, since signs of samples are independent."""
    own = [one.double() for one in products]
    if all(one.dim() and len(one) == size for one in own):
        return float(torch.stack([one.reshape(size, -1).sum(1) for one in own]).sum(0).square().sum())
    return float(torch.stack([one.sum() for one in own]).sum().square())


def _small(batches: Iterable[Inputs]) -> Iterator[Inputs]:
    """Yield batches in pieces of a few samples."""
    for batch in batches:
        size = _batch_size(*batch)
        for start in range(0, size, AT_A_TIME):
            piece = slice(start, start + AT_A_TIME)
            yield tree_map_only(Tensor, partial(_cut, piece=piece), batch)


def _cut(value: Tensor, piece: slice) -> Tensor:
    return value[piece] if value.dim() else value


def _batch_size(args: Any, kwargs: Any) -> int:
    return next((len(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and one.dim()), 1)
