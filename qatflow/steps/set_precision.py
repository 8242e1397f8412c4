"""Give some layers and tensors other bits, or leave them in float: the design changes, the float function stays.

What steps before fitted to the old grid of a weight is undone, bias included: FP32's values are what the new grid is
for.
"""

from __future__ import annotations

from dataclasses import replace

from qatflow.errors import RecipeError
from qatflow.graph.layers import weighted_layers
from qatflow.quant.network import Network, with_tensors
from qatflow.quant.placement import Placement, Point, place
from qatflow.recipe import Recipe
from qatflow.recipe.steps import SetPrecision
from qatflow.results.result import Note
from qatflow.steps.context import StepContext

PATH = "steps.set_precision.layers"
"""Where a recipe states what the design has as an override."""


def set_precision(network: Network, config: SetPrecision, context: StepContext) -> tuple[Network, dict[str, Note]]:
    """Return the network with the config's precisions on top of its design's.

    Notes say how many `weights` and `activations` have another grid, or none any more, and name the `layers`.

    Raises:
        RecipeError: a pattern matches no layer and no tensor, or changes nothing.
    """
    if not config.layers:
        return network, {"weights": 0, "activations": 0, "reason": "it names no layer"}
    designed = with_precision(network, config)
    changed = _changed(place(network), place(designed))
    weights = _weights(changed)
    notes: dict[str, Note] = {"weights": len(weights), "activations": sum(one.parameter is None for one in changed)}
    if not changed:
        return network, {**notes, "reason": "all that it names is so already"}
    return _unfitted(designed, weights), {**notes, "layers": ", ".join(config.layers)}


def with_precision(network: Network, config: SetPrecision) -> Network:
    """Return the network with the design that the step gives it.

    Raises:
        RecipeError: a pattern matches no layer and no tensor, or changes nothing.
    """
    designed = network.designed(network.design.with_overrides(config.layers))
    try:
        place(designed)
    except RecipeError as error:
        own = [replace(one, path=one.path.replace("precision.overrides", PATH)) for one in error.mistakes]
        raise RecipeError(own) from error
    return designed


def designs_of(recipe: Recipe, base: Network) -> list[Network]:
    """Return the captured network in every design that a recipe states: its own, and that of `set_precision`.

    Raises:
        PlacementError: the target quantizes no weighted layer.
        RecipeError: a pattern matches nothing, or changes nothing.
    """
    place(base)  # its own mistakes are told first
    steps = [step for step in recipe.steps.values() if isinstance(step, SetPrecision)]
    return [base, *(with_precision(base, step) for step in steps)]


def redesigned(network: Network, designed: Network) -> Network:
    """Return a network of another design, with FP32's values of the weights that have another grid in it."""
    return _unfitted(designed, _weights(_changed(place(network), place(designed))))


def _weights(points: list[Point]) -> set[str]:
    return {point.parameter for point in points if point.parameter is not None}


def _changed(before: Placement, after: Placement) -> list[Point]:
    """Return the quantizers that are other ones, or gone, or new."""
    old, new = ({point.tensor: point for point in one.points} for one in (before, after))
    kept = [one for name, one in old.items() if new.get(name) != one]
    return [*kept, *(one for name, one in new.items() if name not in old)]


def _unfitted(network: Network, weights: set[str]) -> Network:
    """Return the network with FP32's values of some weights and of their layers' biases."""
    biases = {layer.bias for layer in weighted_layers(network.graph) if layer.weight in weights and layer.bias}
    values = {name: value for name, value in network.goal.items() if name in weights | biases}
    return replace(
        network,
        graph=with_tensors(network.graph, values) if values else network.graph,
        encodings={name: one for name, one in network.encodings.items() if name not in weights},
        goal={name: one for name, one in network.goal.items() if name not in values},
    )
