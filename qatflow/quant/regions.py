"""Parts of a model that may run in float as a whole, named as a recipe's overrides name them.

A part is what one module does with all inside it, what all ops of one kind give, or all grouped convolutions.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

from qatflow.errors import PlacementError, RecipeError
from qatflow.graph.layers import weighted_layers
from qatflow.graph.ops import kind
from qatflow.quant.layer_precision import layer_paths
from qatflow.quant.network import Network
from qatflow.quant.placement import Placement, place
from qatflow.recipe import LayerPrecision

FLOAT = LayerPrecision(quantized=False)
MODULES = 24
"""Modules are opened, the largest first, until there are so many; those that were opened are parts as well."""
MOST = 0.5
"""Share of the layers that one module may have: more is next to all."""
Region = tuple[str, ...]
"""Patterns of overrides."""


def regions(network: Network) -> list[Region]:
    """Return the parts of a network, kinds of ops first; they overlap."""
    placement = place(network)
    layers = weighted_layers(network.graph)
    grouped = tuple(layer.name for layer in layers if layer.groups > 1)
    paths = layer_paths(network.graph)
    found = [*_kinds(network, placement, paths), *([grouped] if grouped else [])]
    return list(dict.fromkeys([*found, *((path,) for path in _modules([layer.name for layer in layers], paths))]))


def in_float(network: Network, patterns: Iterable[str]) -> Network | None:
    """Return the network with some parts in float; None where that changes nothing, or leaves no layer quantized.

    Overrides that change nothing any more, as those of a layer within a part, are dropped.
    """
    said = dict.fromkeys(patterns, FLOAT)
    overrides = dict(network.design.with_overrides(said).precision.overrides)
    while said:
        design = network.design
        precision = design.precision.model_copy(update={"overrides": overrides})
        designed = network.designed(replace(design, precision=precision))
        try:
            place(designed)
        except PlacementError:
            return None
        except RecipeError as error:
            idle = {name for name in overrides if any(repr(name) in one.path for one in error.mistakes)}
            overrides = {name: one for name, one in overrides.items() if name not in idle}
            if not idle or not {*said} & {*overrides}:
                return None
            continue
        return designed
    return network


def gone(before: Placement, after: Placement) -> set[str]:
    """Return the parameters and tensors that had a quantizer and have none any more; parameters by their own names."""
    left = {point.tensor for point in after.points}
    return {point.parameter or point.tensor for point in before.points if point.tensor not in left}


def _kinds(network: Network, placement: Placement, paths: Collection[str]) -> Iterator[Region]:
    """Yield what the ops of one kind give, by patterns that fit no more, or else by all their names."""
    kinds = {node.name: kind(node) for node in network.graph.graph.nodes}
    activations = [point.tensor for point in placement.points if point.parameter is None]
    named = [name for name in activations if name not in paths]
    by_kind: defaultdict[str, list[str]] = defaultdict(list)
    for name in named:
        by_kind[kinds[name]].append(name)
    for of_kind in by_kind.values():
        patterns = tuple(dict.fromkeys(f"{re.sub(r'_?[0-9]*$', '', name)}*" for name in of_kind))
        fits = {name for name in (*activations, *paths) if any(fnmatchcase(name, one) for one in patterns)}
        yield patterns if fits == {*of_kind} else tuple(of_kind)


def _modules(layers: Collection[str], paths: Collection[str]) -> list[str]:
    """Return module paths with weighted layers inside, the larger ones first."""
    inside = {path: sum(_within(layer, path) for layer in layers) for path in paths}
    found = [path for path in inside if "." not in path and inside[path]]
    opened: list[str] = []
    while len(found) < MODULES:
        able = [(inside[path], path) for path in found if _children(path, inside)]
        if not able:
            break
        _, largest = max(able)
        opened.append(largest)
        found[found.index(largest) : found.index(largest) + 1] = _children(largest, inside)
    return [path for path in (*opened, *found) if inside[path] <= MOST * len(layers)]


def _children(path: str, inside: dict[str, int]) -> list[str]:
    return [one for one in inside if one.rpartition(".")[0] == path and inside[one]]


def _within(layer: str, path: str) -> bool:
    return layer == path or layer.startswith(f"{path}.")
