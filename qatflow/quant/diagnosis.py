"""What every quantizer of a simulation costs the outputs, why, and what usually helps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from qatflow.graph.layers import tensor
from qatflow.graph.ops import kind
from qatflow.graph.padding import observe_real
from qatflow.graph.work import multiply_accumulates
from qatflow.quant.grid_use import GridUse, GridUseObserver, what_helps
from qatflow.quant.placement import Point
from qatflow.quant.relief import Reliefs
from qatflow.quant.sensitivity import Sensitivity
from qatflow.quant.simulation import Inputs, Simulation


@dataclass(frozen=True)
class Diagnosis:
    """One quantizer.

    Attributes:
        point: of the placement.
        use: of its grid.
        helps: what usually helps against its noise; empty where nothing stands out.
    """

    point: Point
    use: GridUse
    helps: str


def diagnose(simulation: Simulation, batches: Sequence[Inputs], done: Collection[str] = ()) -> dict[str, Diagnosis]:
    """Return what is found of every quantizer, by its tensor's name in the placement, in the order of the graph.

    An activation's values are those of the float network of the simulation: its own error, without what came before. A
    weight's are FP32's, and its error that of what a step has fitted to the grid, where one has.

    Args:
        simulation: calibrated or trained.
        batches: positional and keyword inputs.
        done: steps that were taken, and are no advice any more.
    """
    graph, encodings = simulation.network.graph, simulation.encodings()
    points = {point.tensor: point for point in simulation.placement.points}
    nodes = {node.name: node for node in graph.graph.nodes}
    observers = {
        name: GridUseObserver(encodings[name], 0 if point.parameter else _channels(nodes[name]))
        for name, point in points.items()
    }
    for name, point in points.items():
        if point.parameter is not None:
            observers[name].see(simulation.network.fp32(point.parameter), tensor(graph, point.parameter))

    def see(node: fx.Node, value: Tensor) -> None:
        observers[node.name].see(value)

    observe_real(graph, [nodes[name] for name, point in points.items() if not point.parameter], batches, see)
    reliefs = Reliefs(simulation, multiply_accumulates(graph, batches[0]))
    per_tensor = not simulation.design.precision.per_channel
    return {
        name: Diagnosis(
            point,
            observers[name].use,
            what_helps(
                observers[name].use,
                weight=point.parameter is not None,
                per_tensor=per_tensor,
                better=_better(point, reliefs),
                done=done,
            ),
        )
        for name, point in points.items()
    }


def estimated(simulation: Simulation, batches: Sequence[Inputs], seed: int = 0) -> dict[str, float]:
    """Return the noise that every quantizer makes at the outputs by itself, relative to the signal, by its tensor.

    One that shares another's grid has its part in that one's noise.

    Raises:
        RuntimeError: an op of the model has no derivative.
    """
    noise = Sensitivity(simulation).estimate(batches, seed=seed)
    return {point.tensor: noise[point.shares or point.tensor] for point in simulation.placement.points}


def _channels(node: fx.Node) -> int:
    """Return the axis of an activation's channels: the second of images and of what a convolution gives, else the last.

    Of inputs of three dimensions nobody can tell; they are taken for tokens.
    """
    value = node.meta.get("val")
    images = kind(node) == "conv" or (value is not None and value.dim() > 3)
    return 1 if images else -1


def _better(point: Point, reliefs: Reliefs) -> str:
    """Return the override that gives a tensor the next better precision; empty where there is none."""
    relief = reliefs.by_tensor.get(point.tensor)
    if relief is None:
        return ""
    if point.parameter is None:
        return f"precision.overrides={{{point.tensor}: {'float' if relief.bits is None else f'a{relief.bits}'}}}"
    if relief.bits is not None:
        return f"precision.overrides={{{point.parameter}: w{relief.bits}}}"
    layers = [layer.name for node, layer in reliefs.layers.items() if node in relief.layers]
    return f"precision.overrides={{{', '.join(f'{name}: float' for name in layers)}}}" if layers else ""
