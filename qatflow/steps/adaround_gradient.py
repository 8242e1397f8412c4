"""AdaRound by gradient: learn for every weight whether it is rounded up or down.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization". Per layer, the squared difference
between the float layer's output and that of the rounded layer on quantized inputs is minimised, both behind the
activation that follows; the rounding is relaxed to a rectified sigmoid, and a regularizer whose exponent falls from
20 to 2 pushes it to 0 or 1. Layers are solved in the order they run, each on the outputs of its rounded
predecessors, all in one walk over the calibration samples. A layer stops early once no rounding changes any more or
its share of the time is over, and keeps nearest rounding where the learned one is not better on held-out samples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.graph.layers import Layer, set_tensor, tensor, weighted_layers
from qatflow.graph.ops import kind
from qatflow.graph.surgery import sole_user
from qatflow.quant.grid import Encoding, along
from qatflow.quant.network import Network
from qatflow.quant.quantizer import WeightFakeQuantize
from qatflow.quant.simulation import Simulation
from qatflow.quant.streams import Chunks, joined, walk
from qatflow.recipe.steps import AdaRound
from qatflow.results.result import Note
from qatflow.steps.context import StepContext
from qatflow.steps.reconstruct import HELD_OUT

ZETA, GAMMA = 1.1, -0.1
"""Stretch of the sigmoid, so that it reaches 0 and 1 (the paper's equation 23)."""


@dataclass
class _Solver:
    """Rounds one layer after another; remembers what it did."""

    simulation: Simulation
    config: AdaRound
    context: StepContext
    seconds: float
    """Time for one layer."""
    encodings: dict[str, Encoding] = field(default_factory=dict)
    kept_nearest: int = 0
    errors: list[float] = field(default_factory=list)
    """Error of the learned rounding as a share of nearest rounding's, layer by layer."""

    def solve(self, layer: Layer, float_inputs: Chunks, quantized_inputs: Chunks) -> None:
        """Round `layer` in the simulation, if the placement quantizes its weight and it was not rounded before."""
        point = next((p for p in self.simulation.placement.points if p.parameter == layer.weight), None)
        if point is None or layer.weight in self.encodings:
            return
        quantizer = self.simulation.quantizer(point.tensor)
        assert isinstance(quantizer, WeightFakeQuantize)
        weight = self.simulation.network.fp32(layer.weight)
        problem = _Problem.of(self.simulation, layer, joined(float_inputs), joined(quantized_inputs), self.config)
        encoding = quantizer.encoding_of(tensor(self.simulation.network.graph, layer.weight))
        rounded, share = _round(problem, weight, encoding, self.config, self.context.seed, self.seconds)
        self.kept_nearest += int(share >= 1)
        self.errors.append(min(share, 1.0))
        self.encodings[layer.weight] = encoding
        set_tensor(self.simulation.model, layer.weight, rounded)
        quantizer.adopt(rounded, encoding)


@dataclass(frozen=True)
class _Problem:
    """One layer's reconstruction problem.

    Attributes:
        inputs: quantized inputs, samples first.
        wanted: FP32's outputs behind the layer's activation, samples first.
        call: the layer and its activation, as a function of inputs and weight, with its bias as it is.
        channels: how many output channels the layer has.
    """

    inputs: Tensor
    wanted: Tensor
    call: Callable[[Tensor, Tensor], Tensor]
    channels: int

    @staticmethod
    def of(simulation: Simulation, layer: Layer, float_inputs: Tensor, inputs: Tensor, config: AdaRound) -> _Problem:
        network = simulation.network
        fp32, weight = _layer_call(layer, network.fp32), network.fp32(layer.weight)
        with torch.no_grad():
            wanted = [fp32(part, weight) for part in _parts(float_inputs, config.batch_size)]
        outputs = torch.cat(wanted)
        call = _layer_call(layer, lambda name: tensor(network.graph, name).detach())
        return _Problem(inputs, outputs, call, outputs.shape[-1 if layer.kind == "linear" else 1])

    @property
    def fit(self) -> Tensor:
        """Numbers of the samples to learn from: all but every fourth, where there are enough."""
        every = torch.arange(len(self.inputs), device=self.inputs.device)
        return every[every % HELD_OUT != HELD_OUT - 1]

    def error(self, weight: Tensor, batch_size: int) -> float:
        """Return the squared error over the samples held out; over all where there are too few."""
        held = slice(HELD_OUT - 1, None, HELD_OUT) if len(self.inputs) >= HELD_OUT else slice(None)
        parts = zip(_parts(self.inputs[held], batch_size), _parts(self.wanted[held], batch_size), strict=True)
        with torch.no_grad():
            return sum(float((self.call(x, weight) - wanted).square().sum()) for x, wanted in parts)


def _parts(samples: Tensor, size: int) -> list[Tensor]:
    """Cut samples into batches."""
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def adaround_by_gradient(network: Network, config: AdaRound, context: StepContext) -> tuple[Network, dict[str, Note]]:
    """Return the network with every quantized weight rounded to its grid, and the grids fixed.

    Notes give the number of `layers`, how many `kept_nearest` rounding, and `error_share`, the geometric mean of the
    reconstruction error as a share of nearest rounding's.
    """
    simulation = Simulation(network)
    simulation.calibrate_on_fp32(context.calibration_inputs(network))
    layers = weighted_layers(network.graph)
    seconds = math.inf if config.max_seconds is None else config.max_seconds / max(1, len(layers))
    solver = _Solver(simulation, config, context, seconds)
    done = context.progress.track(layers, "adaround: layers", len(layers))

    def solve(layer: Layer, float_inputs: Chunks, quantized_inputs: Chunks) -> None:
        next(done, None)
        solver.solve(layer, float_inputs, quantized_inputs)

    walk(simulation, context.inputs(config.samples), solve)
    next(done, None)
    rounded = {name: tensor(simulation.model, name).detach().clone() for name in solver.encodings}
    floor = [max(share, 1e-12) for share in solver.errors]
    notes: dict[str, Note] = {
        "layers": len(solver.errors),
        "kept_nearest": solver.kept_nearest,
        "error_share": math.exp(sum(map(math.log, floor)) / max(1, len(floor))),
    }
    return network.fitted(rounded, solver.encodings), notes


def _layer_call(layer: Layer, value: Callable[[str], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the layer and a ReLU or clip that directly follows it, as a function of inputs and weight.

    `value` gives the other parameters by their names.
    """
    after = sole_user(layer.node)
    activation = after if after is not None and kind(after) in ("relu", "clip") else None

    def value_of(argument: Any) -> Any:
        return fx.map_arg(argument, lambda node: value(str(node.target)))

    rest = value_of(tuple(layer.node.args[2:]))
    kwargs = value_of({name: value for name, value in layer.node.kwargs.items() if name not in ("input", "weight")})
    activation_rest = () if activation is None else tuple(activation.args[1:])

    def call(x: Tensor, weight: Tensor) -> Tensor:
        y = layer.node.target(x, weight, *rest, **kwargs)  # type: ignore[operator]
        return y if activation is None else activation.target(y, *activation_rest, **activation.kwargs)  # type: ignore[operator, no-any-return]

    return call


def _round(
    problem: _Problem, weight: Tensor, encoding: Encoding, config: AdaRound, seed: int, seconds: float
) -> tuple[Tensor, float]:
    """Return the rounded weight, and its error as a share of nearest rounding's (1 where nearest is kept)."""
    scale = along(encoding.scale, weight, encoding.axis)
    floor = (weight / scale).floor()
    learned = _learn(
        problem, weight / scale - floor, floor, scale, encoding, config, seed, time.perf_counter() + seconds
    )
    up = (learned > 0.5).to(weight.dtype)
    rounded = (floor + up).clamp(encoding.grid.qmin, encoding.grid.qmax) * scale
    nearest = encoding.dequantize(encoding.quantize(weight))
    error, nearest_error = (problem.error(w, config.batch_size) for w in (rounded, nearest))
    if not error < nearest_error:
        return nearest, 1.0
    return rounded, error / nearest_error


def _learn(
    problem: _Problem,
    fraction: Tensor,
    floor: Tensor,
    scale: Tensor,
    encoding: Encoding,
    config: AdaRound,
    seed: int,
    deadline: float,
) -> Tensor:
    """Return the relaxed rounding, between 0 and 1, in the shape of the weight."""
    start = (fraction - GAMMA) / (ZETA - GAMMA)
    logit = torch.logit(start.clamp(1e-6, 1 - 1e-6)).requires_grad_()
    optimizer = torch.optim.Adam([logit], lr=config.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    fit = problem.fit
    size = min(config.batch_size, len(fit))
    decided, since = (fraction >= 0.5), 0
    for iteration in range(config.iterations):
        if time.perf_counter() > deadline:
            break
        chosen = fit[torch.randint(len(fit), (size,), generator=generator).to(fit.device)]
        relaxed = _rectified_sigmoid(logit)
        soft = (floor + relaxed).clamp(encoding.grid.qmin, encoding.grid.qmax) * scale
        difference = problem.call(problem.inputs[chosen], soft) - problem.wanted[chosen]
        loss = difference.square().sum() / max(1, difference.numel() // problem.channels)
        beta = _beta(iteration / config.iterations, config)
        if beta is not None:
            loss = loss + config.regularization * (1 - (2 * relaxed - 1).abs().pow(beta)).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if config.patience and beta is not None:
            now = _rectified_sigmoid(logit.detach()) > 0.5
            since = since + 1 if torch.equal(now, decided) else 0
            decided = now
            if since >= config.patience:
                break
    return _rectified_sigmoid(logit.detach())


def _rectified_sigmoid(logit: Tensor) -> Tensor:
    return (torch.sigmoid(logit) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def _beta(done: float, config: AdaRound) -> float | None:
    """Return the regularizer's exponent, cosine-annealed after the warm start; None during it."""
    if done < config.warm_start:
        return None
    share = (done - config.warm_start) / (1 - config.warm_start)
    first, last = config.beta
    return last + 0.5 * (first - last) * (1 + math.cos(share * math.pi))
