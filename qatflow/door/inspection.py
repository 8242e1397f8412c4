"""What a recipe would quantize, found without calibrating or measuring anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qatflow.errors import CaptureError, RunFolderError
from qatflow.graph.chains import pairs
from qatflow.graph.layers import tensor, weighted_layers
from qatflow.ladder.lookup import complete, target_of
from qatflow.quant.design import Design
from qatflow.quant.grid import Encoding
from qatflow.quant.kernel_bits import bits_without_kernels
from qatflow.quant.network import Network
from qatflow.quant.placement import place
from qatflow.quant.placement_rows import Row, placement_rows
from qatflow.quant.prepare import captured_network
from qatflow.quant.saved import load
from qatflow.quant.target import Target
from qatflow.recipe import Recipe
from qatflow.report.read import read_result
from qatflow.steps import STEPS
from qatflow.steps.context import StepContext
from qatflow.tasks.task import Task, load_task


@dataclass(frozen=True)
class LayerRow:
    """One weighted layer."""

    name: str
    kind: str
    shape: tuple[int, ...]
    """Of its weight."""
    how: str
    """`quantized`, or why not."""


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        model: name of its class.
        parameters: how many numbers it has.
        target: the table that was applied.
        folded: whether batch norms were folded first, because the recipe's steps do.
        design: bits, and the way to find ranges, in words.
        layers: the weighted layers, in the order they run.
        chains: pairs of layers that `equalize` would take, with the ops between them.
        tensors: every tensor that is quantized, moved, fused or left in float, in the order of the graph.
        notes: what the recipe's author should know before a run.
    """

    model: str
    parameters: int
    target: Target
    folded: bool
    design: str
    layers: tuple[LayerRow, ...]
    chains: tuple[tuple[str, ...], ...]
    tensors: tuple[Row, ...]
    notes: tuple[str, ...]


WITHOUT_DATA = ("fold_batch_norms", "set_precision")
"""Steps that change what is quantized and need no sample for it."""


@dataclass(frozen=True)
class Prepared:
    """A recipe's model as it would be quantized, or as a run's best candidate is.

    Attributes:
        recipe: with the defaults of steps from outside.
        base: the captured model.
        network: that, prepared as the recipe's steps do, or the candidate's.
        encodings: of the candidate; None where nothing is calibrated yet.
        steps: that were taken.
    """

    recipe: Recipe
    task: Task
    base: Network
    network: Network
    encodings: Mapping[str, Encoding] | None
    steps: tuple[str, ...] = ()


def prepared(recipe: Recipe, trust: tuple[str, ...] = ()) -> Prepared:
    """Load the model and capture it; nothing runs but the two samples of the capture.

    Raises:
        QatflowError: the recipe, model or data cannot be used.
    """
    recipe = complete(recipe, trust)
    task = load_task(recipe, trust)
    design = Design(target_of(recipe.target, trust), recipe.precision, recipe.calibration)
    base = captured_network(task.model, *task.example(), design, recipe.data.mask, recipe.data.free)
    best = _winner(recipe, base)
    if best is not None:
        return Prepared(recipe, task, base, *best)
    network = base
    for name in [name for name in recipe.steps if name in WITHOUT_DATA]:
        network, _ = STEPS[name](network, recipe.steps[name], StepContext(task.calibration_inputs))
    return Prepared(recipe, task, base, network, None, tuple(name for name in recipe.steps if name in WITHOUT_DATA))


def _winner(recipe: Recipe, base: Network) -> tuple[Network, dict[str, Encoding], tuple[str, ...]] | None:
    """Return the best candidate of the run in `run.dir`; None where there is none yet.

    Raises:
        RunFolderError: what is there is damaged, or of another model or target.
    """
    folder = Path(recipe.run.dir) if recipe.run.dir is not None else None
    if folder is None or not (folder / "result.json").exists():
        return None
    best = read_result(folder).winner
    if best is None:
        return None
    target = best.design.target if best.design is not None else base.design.target.name
    if target != base.design.target.name:
        message = f"the run in {folder} is for target {target}: write target={target}, or another run.dir"
        raise RunFolderError(message)
    try:
        return *load(folder / "candidates" / best.id, base), best.steps
    except CaptureError as error:
        fix = f"give the recipe that it was started with, recipe={folder / 'recipe.yaml'}, or another run.dir"
        message = f"the run in {folder} is of another model ({error}); {fix}"
        raise RunFolderError(message) from error


def inspect_recipe(recipe: Recipe, trust: tuple[str, ...] = ()) -> Inspection:
    """Load the model, capture it and place quantizers; nothing runs but the two samples of the capture.

    Raises:
        QatflowError: the recipe, model or data cannot be used.
    """
    found = prepared(recipe, trust)
    network, target = found.network, found.base.design.target
    best = found.encodings is not None
    placement = place(network)
    left = {one.tensor: one.reason for one in placement.float_layers}
    layers = tuple(
        LayerRow(
            layer.name,
            layer.kind if layer.groups == 1 else f"{layer.kind} in {layer.groups} groups",
            tuple(tensor(network.graph, layer.weight).shape),
            left.get(layer.node.name, "quantized"),
        )
        for layer in weighted_layers(network.graph)
    )
    chains = tuple(
        (pair.first.name, *(node.name for node in pair.between), pair.second.name) for pair in pairs(network.graph)
    )
    return Inspection(
        model=type(found.task.model).__name__,
        parameters=sum(parameter.numel() for parameter in found.task.model.parameters()),
        target=target,
        folded="fold_batch_norms" in recipe.steps,
        design=network.design.to_record().sentence + (", as the best candidate of the run has it" if best else ""),
        layers=layers,
        chains=chains,
        tensors=tuple(placement_rows(network.graph, placement)),
        notes=tuple(bits_without_kernels(placement, target)),
    )
