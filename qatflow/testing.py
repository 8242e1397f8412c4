"""For people who write a step or a target: what every one of them must hold to, as two functions for a test.

    from qatflow import testing

    def test_prune() -> None:
        testing.check_step(prune, Prune(amount=0.2))

    def test_npu() -> None:
        testing.check_target(TABLE)

Both raise an `AssertionError` that says in a sentence what does not hold. qatflow's own are tested with them as well.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, fx, nn

from qatflow.errors import PlacementError, RecipeError, StepError
from qatflow.export.onnx_export import export_onnx
from qatflow.export.pair import export_encodings, read_encodings
from qatflow.export.pte_export import export_pte
from qatflow.export.runtimes import RUNTIMES, runtime_of
from qatflow.graph.constants import shape_only_nodes
from qatflow.graph.fingerprint import tensor_fingerprint
from qatflow.graph.layers import tensor
from qatflow.graph.ops import is_float_tensor
from qatflow.graph.outputs import output_parts
from qatflow.graph.sqnr import OutputSqnr, part_powers
from qatflow.ladder.lookup import NamedStep
from qatflow.quant.design import Design
from qatflow.quant.network import Network
from qatflow.quant.placement import Placement
from qatflow.quant.prepare import captured_network
from qatflow.quant.saved import load, save
from qatflow.quant.simulation import Simulation
from qatflow.quant.target import Target
from qatflow.quant.targets import TARGETS
from qatflow.recipe import Calibration, Precision
from qatflow.recipe.steps import StepConfig
from qatflow.steps import Step
from qatflow.steps.context import Inputs, StepContext

Function = Callable[..., Any]
SEED = 3
CALIBRATION = Calibration(samples=16, activations="minmax", weights="minmax")
LEAST_SIMULATED, LEAST_WRITTEN, THE_SAME = 5.0, 30.0, 60.0
"""SQNR in dB: of a simulation beside FP32, of a written file beside the simulation, and of what was read back."""


class Convolutions(nn.Module):
    """A strided convolution, a depthwise one, a residual sum and a linear layer, for images."""

    SHAPE: tuple[int, ...] = (3, 8, 8)

    def __init__(self, batch_norms: bool = False) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) if batch_norms else nn.Identity() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norms[0](self.stem(x)))
        x = x + self.norms[2](self.project(nn.functional.relu6(self.norms[1](self.depthwise(x)))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Branches(nn.Module):
    """Two branches joined, pooled and moved about, for images."""

    SHAPE = Convolutions.SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.mix, self.head = nn.Conv2d(8, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.max_pool2d(torch.cat([self.left(x).relu(), self.right(x).relu()], 1), 2)
        return torch.sigmoid(self.head(self.mix(both).flatten(2).transpose(1, 2)))


class Tokens(nn.Module):
    """Norms, attention and GELU, for tokens."""

    SHAPE = (6, 8)

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.mix, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.mix(self.norm1(x)).chunk(3, -1)
        x = x + self.out((query @ key.transpose(1, 2) / 8**0.5).softmax(-1) @ value)
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


def images(count: int = 16, shape: Sequence[int] = Convolutions.SHAPE) -> Inputs:
    """Return one batch of normally distributed samples, the same ones at every call."""
    return (torch.randn(count, *shape, generator=torch.Generator().manual_seed(SEED)),), {}


def network_of(
    model: nn.Module,
    inputs: Inputs,
    target: Target = TARGETS["onnxruntime"],
    precision: Precision | None = None,
) -> Network:
    """Return what the ladder's first step is given: a model, captured for a target and some bits (None: 8)."""
    return captured_network(model.eval(), *inputs, Design(target, precision or Precision(), CALIBRATION))


def check_step(
    step: Step,
    config: StepConfig | None = None,
    network: Network | None = None,
    inputs: Sequence[Inputs] | None = None,
    *,
    target: Target = TARGETS["onnxruntime"],
    precision: Precision | None = None,
    least_sqnr: float | None = None,
) -> None:
    """Check that a step leaves its network alone, does the same every time, and that its result can be built on.

    Args:
        step: its function.
        config: its options; None takes the defaults.
        network: one that the step changes; None takes `Convolutions()` for `target` and `precision`.
        inputs: batches of calibration inputs of that network.
        target: what `Convolutions()` is quantized for.
        precision: its bits; None is 8.
        least_sqnr: how near the float outputs stay to what they were, in dB: 60 is the same function. None does not
            ask.

    Raises:
        AssertionError: it does not; the message says what.
    """
    name, batches = getattr(step, "__name__", str(step)), list(inputs or [images()])
    torch.manual_seed(SEED)
    network = network or network_of(Convolutions(), batches[0], target, precision)
    context = StepContext(lambda limit: batches, SEED)
    before, done = _state(network), []
    for _ in range(2):
        torch.manual_seed(SEED)
        try:
            named = NamedStep(name, step)
            done.append(named(network, config or named.config(), context))
        except (RecipeError, StepError) as error:
            raise AssertionError(str(error)) from error
    result, notes = done[0]
    _require(_state(network) == before, f"{name} changes the network that it is given: work on `network.copy()`")
    changed = result is not network and _state(result) != before
    _require(changed, f"{name} changes nothing of this network, so that nothing is checked: give check_step another")
    _require(result.design.target == network.design.target, f"{name} changes the target, which a run has one of")
    shared = _addresses(network.graph) & _addresses(result.graph) if result.graph is not network.graph else ()
    _require(not shared, f"the result of {name} shares tensors with what it was given: work on `network.copy()`")
    same = _state(done[1][0]) == _state(result) and done[1][1] == notes
    _require(same, f"{name} gives another result with the same seed: draw from a generator seeded with `context.seed`")
    ratio = _sqnr(network.graph, result.graph, batches, network.graph)
    _require(ratio == ratio, f"the result of {name} has outputs that are not finite")
    kept = least_sqnr is None or ratio >= least_sqnr
    _require(kept, f"{name} leaves {ratio:.1f} dB of the float outputs, and {least_sqnr} is the least")
    _check_stored(result, network, context, name)


def check_target(table: Target) -> None:
    """Check that a target's table accounts for every tensor, and that what it promises can be simulated and written.

    Raises:
        AssertionError: it does not; the message says what.
    """
    _require(isinstance(table, Target), f"a target is a qatflow.quant.target.Target, and not a {type(table).__name__}")
    unknown = sorted({*table.road.runtimes.values()} - {*RUNTIMES})
    _require(not unknown, f"road.runtimes of {table.name} names {unknown}, and there are {', '.join(RUNTIMES)}")
    bits = {kind: 8 if 8 in some else max(some) for kind, some in table.integer_bits.items()}
    found = []
    for model in (Convolutions, Branches, Tokens):
        torch.manual_seed(SEED)
        example = images(shape=model.SHAPE)
        simulation = _simulated(network_of(model(), example, table, Precision(**bits)))
        if simulation is None:
            continue  # no layer of this one is the target's business
        found.append((simulation, example))
        check_placement(simulation.network.graph, simulation.placement)
        _check_grids(simulation, table)
        simulation.calibrate([example])
        ratio = _sqnr(simulation.network.graph, simulation.model, [example], simulation.network.graph)
        said = f"{table.name} simulates {model.__name__} with {ratio:.1f} dB beside FP32, less than {LEAST_SIMULATED}"
        _require(ratio >= LEAST_SIMULATED, said)
    _require(bool(found), f"{table.name} quantizes no convolution and no linear layer: see its inputs and parameters")
    with TemporaryDirectory() as folder:
        _check_files(*found[0], table, Path(folder))


def _simulated(network: Network) -> Simulation | None:
    """Return the simulation of a network; None where its target quantizes no weighted layer of it."""
    try:
        return Simulation(network)
    except PlacementError:
        return None


def check_placement(graph: fx.GraphModule, placement: Placement) -> None:
    """Check that every float result is quantized, moved, fused or listed as float, once.

    Raises:
        AssertionError: one is not, or is twice.
    """
    told = [point.tensor for point in placement.points] + list(placement.tied)
    told += [left.tensor for left in placement.floats]
    twice = sorted({name for name in told if told.count(name) > 1})
    _require(not twice, f"placed twice: {', '.join(twice)}")
    constant = shape_only_nodes(graph)
    results = [one for one in graph.graph.nodes if one.op == "call_function" and is_float_tensor(one)]
    known = {*told, *placement.inside}
    missing = [one.name for one in results if one not in constant and one.name not in known]
    _require(not missing, f"neither quantized nor listed as float: {', '.join(missing)}")
    leaders = {*placement.tied.values(), *(point.shares for point in placement.points if point.shares)}
    loose = sorted(leaders - {point.tensor for point in placement.points})
    _require(not loose, f"others have the grid of what has none: {', '.join(loose)}")


def _check_stored(network: Network, base: Network, context: StepContext, name: str) -> None:
    """Check that a step's result can be simulated, and comes back from its files as it was."""
    batches = list(context.inputs(None))
    simulation = Simulation(network)
    simulation.calibrate(batches)
    with TemporaryDirectory() as folder:
        save(Path(folder), base.graph, network, simulation.encodings())
        stored, encodings = load(Path(folder), base)
    _require(_state(stored) == _state(network), f"the result of {name} is another one when it is read from its files")
    again = Simulation(stored)
    again.load_encodings(encodings)
    same = _sqnr(simulation.model, again.model, batches, base.graph) >= THE_SAME
    _require(same, f"the result of {name} computes something else when it is read from its files")


def _check_grids(simulation: Simulation, table: Target) -> None:
    for point in simulation.placement.points:
        kind, grid = "activations" if point.parameter is None else "weights", point.grid
        fits = grid.bits in table.integer_bits[kind] and grid.qmax - grid.qmin < 2**grid.bits
        _require(fits, f"{point.tensor} has {grid.bits} bits, and {table.name} has none for {kind}")
        symmetric = kind == "weights" or grid.symmetric or not table.activations_symmetric
        _require(symmetric, f"{point.tensor} has a zero point, and activations of {table.name} are symmetric")


def _check_files(simulation: Simulation, example: Inputs, table: Target, folder: Path) -> None:
    """Check that encodings come back, and that every file of the target's road computes what the simulation does."""
    export_encodings(simulation, example, folder)
    again = Simulation(simulation.network)
    again.load_encodings(read_encodings(folder / "model.encodings", simulation, example))
    graph = simulation.network.graph
    ratio = _sqnr(simulation.model, again.model, [example], graph)
    _require(ratio >= THE_SAME, f"encodings of {table.name} come back as others: {ratio:.1f} dB")
    for kind in table.road.files:
        there = kind != "pte" or importlib.util.find_spec("executorch") is not None
        _require(there, f"a file of {table.name} cannot be checked: pip install 'qatflow[executorch]'")
        write = export_onnx if kind == "onnx" else export_pte
        exported = write(simulation, example, folder / f"model.{kind}")
        runtime = runtime_of(table.road, kind, table.name)
        loaded = runtime.load(exported.path, exported.signature, ())
        ratio = _sqnr(simulation.model, loaded, [example], graph)
        said = f"model.{kind} of {table.name} computes something else than the simulation: {ratio:.1f} dB"
        _require(ratio >= LEAST_WRITTEN, said)


def _sqnr(wanted: Function, got: Function, batches: Sequence[Inputs], graph: fx.GraphModule) -> float:
    """Return the lowest SQNR of the outputs of two functions, in dB; `graph` has the same outputs."""
    parts = output_parts(graph)
    total = OutputSqnr(parts)
    with torch.no_grad():
        for args, kwargs in batches:
            total.add(part_powers(parts, wanted(*args, **kwargs), got(*args, **kwargs)))
    return total.lowest


def _state(network: Network) -> str:
    """Return a hash of all that a network is."""
    graph, digest = network.graph, hashlib.sha256(str(network.graph.graph).encode())
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    tensors = {name: tensor(graph, name) for name in read} | {f"goal {name}": one for name, one in network.goal.items()}
    for name, encoding in network.encodings.items():
        digest.update(f"{name} {encoding.grid} {encoding.axis}".encode())
        tensors |= {f"scale {name}": encoding.scale, f"zero {name}": encoding.zero_point}
    for name, (mean, deviation) in network.normals.items():
        tensors |= {f"mean {name}": mean, f"deviation {name}": deviation}
    for name, value in sorted(tensors.items()):
        digest.update(name.encode() + tensor_fingerprint(value).encode())
    digest.update(network.design.to_record().model_dump_json().encode())
    return digest.hexdigest()


def _addresses(graph: fx.GraphModule) -> set[int]:
    return {value.data_ptr() for value in graph.state_dict().values() if value.numel()}


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)
