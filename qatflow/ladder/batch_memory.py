"""Whether a batch fits into memory, measured before anything takes long. On Linux, and on the CPU: elsewhere nothing is
known and nothing is said.

Batches of 1, 2, 4, ... samples are run as a calibration batch and, where QAT may run, as a training step, while the
peak of what the process takes is watched. It grows with the samples, so that the next batch is only run where it will
fit. Where the graph's own sizes say that the recipe's batch takes next to nothing, none is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.errors import MachineError
from qatflow.graph.called import called
from qatflow.graph.tree import tree_leaves, tree_map_only
from qatflow.quant.network import Network
from qatflow.quant.quantizer import ActivationFakeQuantize
from qatflow.quant.simulation import Simulation
from qatflow.results import memory
from qatflow.tasks.task import Task
from qatflow.users_code import amount, out_of_memory

NEXT_TO_NOTHING = 0.1
"""Share of the memory below which a batch is not measured, and what was measured is not gone on with."""
USED = 0.8
"""Share of the memory that a batch may take."""
TELLING = 0.25
"""Share from which on what a batch takes tells what a larger one would: below, what the heap holds ready disturbs."""
TIMES_KEPT = 3
"""How often every tensor of a graph is kept at most: the value, its quantized form, its gradient."""


def check_memory(task: Task, base: Network) -> None:
    """Check that batches of the recipe's sizes fit into memory.

    Args:
        task: the run's.
        base: its captured model.

    Raises:
        MachineError: one does not; a size that would is named.
    """
    recipe = task.recipe
    if task.device.type != "cpu":
        return
    parts = [*task.evaluation_parts.values(), task.splits.calibration]
    size = min(recipe.data.batch_size, max(map(len, parts)))
    _check(base, "data.batch_size", size, _calibration(task, base), 1)
    if recipe.qat.when != "never" and task.splits.train is not None:
        search = recipe.search
        size = min(recipe.qat.batch_size or recipe.data.batch_size, len(task.splits.train))
        processes = search.workers * search.devices_per_trial if search.engine == "local" else 1
        _check(base, "qat.batch_size", -(-size // search.devices_per_trial), _training(task, base), processes)


def _check(base: Network, key: str, size: int, run: Callable[[int], None], processes: int) -> None:
    """Run ever larger batches, up to `size` samples, as long as they fit; `processes` share the memory."""
    known = memory.forget_peak()
    room, start = memory.room(), memory.taken()
    if not known or room is None or start is None:
        return
    room //= processes
    if size * TIMES_KEPT * _bytes_a_sample(base.graph) < NEXT_TO_NOTHING * room:
        return
    done, grown, each = 0, 0.0, 0.0
    while done < size:
        following = min(2 * done or 1, size)
        whole = grown + each * (size - done)
        if done and (grown * following / done > USED * room or (grown > TELLING * room and whole > USED * room)):
            raise _too_large(key, size, done, grown, each, room)
        if done > 1 and grown * size / done < NEXT_TO_NOTHING * room:
            return
        memory.forget_peak()
        try:
            run(following)
        except Exception as error:
            if out_of_memory(error):
                raise _too_large(key, size, done, grown, each, room) from error
            raise
        before, grown = grown, float(max(0, (memory.peak() or start) - start))
        each = max(0.0, grown - before) / (following - done)
        done = following


def _too_large(key: str, size: int, done: int, grown: float, each: float, room: int) -> MachineError:
    """Return a sentence on a batch that does not fit."""
    fits = min(done + max(0.0, USED * room - grown) / each if each else done, size - 1)
    least = "use smaller inputs, or a machine with more memory" if fits < 1 else f"write {key}={_power(fits)}"
    took = f"one of {done} took {amount(grown)} and {size} would take about {amount(grown + each * (size - done))}, "
    return MachineError(
        f"the memory does not suffice for a batch of {size} samples: {took if done else ''}{amount(room)} is "
        f"available; {least}"
    )


def _power(most: float) -> int:
    return 1 << int(math.log2(most))


def _bytes_a_sample(graph: fx.GraphModule) -> float:
    """Return the bytes of all tensors that a graph makes of a sample."""
    found = 0.0
    for node in graph.graph.nodes:
        for leaf in tree_leaves(node.meta.get("val")):
            if isinstance(leaf, Tensor) and any(not isinstance(size, int) for size in leaf.shape):
                sizes = [size if isinstance(size, int) else size.node.hint or math.inf for size in leaf.shape]
                found += math.prod(sizes) * leaf.element_size() / EXAMPLE
    return found


EXAMPLE = 2
"""Samples that a graph was captured with."""


def _batch(task: Task) -> Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return what makes inputs of so many samples, all of them the first one."""
    example = task.example()

    def of(size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tree_map_only(Tensor, lambda value: value[:1].repeat(size, *[1] * (value.dim() - 1)), example)  # type: ignore[no-any-return]

    return of


def _calibration(task: Task, base: Network) -> Callable[[int], None]:
    """Return what runs FP32, and then the simulation while ranges are observed, on so many samples."""

    def run(size: int) -> None:
        simulation, (args, kwargs) = Simulation(base), _batch(task)(size)
        simulation.quantize_weights(False)
        with torch.no_grad():
            reference = called(base.graph, args, kwargs)
        simulation.observe([(args, kwargs)])
        del reference

    return run


def _training(task: Task, base: Network) -> Callable[[int], None]:
    """Return what makes a step of training on so many samples: forward, backward, and an optimizer's two moments."""

    def run(size: int) -> None:
        simulation, (args, kwargs) = Simulation(base), _batch(task)(size)
        for module in simulation.model.modules():
            if isinstance(module, ActivationFakeQuantize):
                module.register_forward_hook(_kept)
        simulation.quantize_weights(False)
        weights, _ = simulation.trainable(learn_ranges=False)
        leaves = tree_leaves(simulation.model(*args, **kwargs))
        real = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        if real:
            torch.stack([leaf.float().mean() for leaf in real]).sum().backward()  # type: ignore[no-untyped-call]
        moments = [torch.ones_like(weight) for weight in weights for _ in range(2)]
        del moments

    return run


def _kept(module: ActivationFakeQuantize, given: tuple[Tensor, ...], outputs: Tensor) -> Any:
    """Keep what a quantizer keeps for its gradient."""
    return _Kept.apply(given[0])


class _Kept(torch.autograd.Function):
    """What a quantizer does to memory: its input is kept, its output another tensor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Return a copy."""
        ctx.save_for_backward(value)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Return the gradient as it comes."""
        return gradients[0]
