"""One opening to a model: capture it, apply steps, train what they leave in any PyTorch loop, and write files.

    q = Quantizer(model, images[:2], calibration=loader, precision="w3a4")
    q.apply("fold_batch_norms")
    q.apply("adaround", samples=256)
    weights, ranges = q.trainable(learn_ranges=True)
    ...                                   # train q.model
    q.export("trained.onnx")

It is a thin face: the network, its design and the simulation behind it are attributes, to go on with by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from qatflow.errors import DataError, ExportError, allowed_values
from qatflow.export.onnx_export import export_onnx
from qatflow.export.pair import export_encodings
from qatflow.export.pt2_export import export_pt2
from qatflow.export.pte_export import export_pte
from qatflow.graph.free import Free
from qatflow.graph.layers import tensor
from qatflow.ladder.lookup import complete, step_of, target_of
from qatflow.quant.design import Design
from qatflow.quant.network import Network
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Inputs, Simulation
from qatflow.recipe.check import session_recipe
from qatflow.results.result import Note
from qatflow.steps.context import StepContext
from qatflow.tasks.batches import arguments, at_least_two

WRITERS = (".onnx", ".pt2", ".pte")
BATCH_SIZE = 32
"""Of a dataset that comes without a loader."""


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Let a model be in evaluation mode, every part of it, and then as it was."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _batches(calibration: Any) -> Iterable[Any]:
    """Return what calibration is given as, in batches."""
    if isinstance(calibration, Tensor):
        return [calibration]
    if isinstance(calibration, Dataset) and not isinstance(calibration, IterableDataset):
        return DataLoader(calibration, batch_size=BATCH_SIZE)
    return calibration  # type: ignore[no-any-return]


class Quantizer:
    """A model being quantized.

    Attributes:
        network: the float network as the steps so far left it, with its design.
        notes: what each step counted and measured, by its name.

    Args:
        model: the trained FP32 model; it is left as it is.
        example: its inputs, a batch of them: a tensor, a tuple (positional) or a dict (keyword inputs).
        calibration: batches to find ranges and to fit weights on: a loader, a dataset, one tensor, or any iterable that
            can be gone through more than once, of inputs in the form of `example`, or of `(inputs, target)`.
        target: name of a target.
        precision: such as `w8a8` or `w4a8_per_tensor`, or what a recipe's section holds.
        ranges: what a recipe's section `calibration` holds.
        seed: of everything random in steps.
        trust: packages that a target and steps may be named from, as `package.module:name`.
        free: dimensions that are free besides the batch, with names, by input and place: `{"x": {2: "length"}}`.

    Raises:
        RecipeError: target, precision or ranges have a mistake; all of them are in the error.
        CaptureError: the model cannot be captured as one graph.
        PlacementError: the target quantizes no weighted layer of it.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        *,
        calibration: Iterable[Any],
        target: str = "onnxruntime",
        precision: Any = "w8a8",
        ranges: Any = None,
        seed: int = 0,
        trust: str | Sequence[str] = (),
        free: Free | None = None,
    ) -> None:
        trust = (trust,) if isinstance(trust, str) else tuple(trust)
        stated = session_recipe({"target": target, "precision": precision, "calibration": ranges or {}}, trust)
        args, kwargs = at_least_two(*arguments(example))
        design = Design(target_of(stated.target, trust), stated.precision, stated.calibration)
        self.example: Inputs = (args, kwargs)
        self.notes: dict[str, dict[str, Note]] = {}
        self._batches = _batches(calibration)
        self._seed = seed
        self._trust = trust
        self._simulation: Simulation | None = None
        with _evaluating(model):
            self.network: Network = captured_network(model, args, kwargs, design, free=free)

    @property
    def design(self) -> Design:
        """Target, bits and the way to find ranges."""
        return self.network.design

    @property
    def simulation(self) -> Simulation:
        """The network as the target would run it, calibrated; made anew after every step.

        Raises:
            DataError: there is no calibration sample, or one makes a value that is not finite.
        """
        if self._simulation is None:
            simulation = Simulation(self.network)
            simulation.calibrate(self._inputs(self.design.calibration.samples))
            self._simulation = simulation
        return self._simulation

    @property
    def model(self) -> fx.GraphModule:
        """The quantized model, called like the original: what is evaluated, and trained."""
        return self.simulation.model

    def apply(self, step: str, **options: Any) -> dict[str, Note]:
        """Apply one step to the model as it is now, training included; returns what it counted and measured.

        Raises:
            RecipeError: there is no such step, or an option has a mistake; all of them are in the error.
            StepError: the step has to come before others.
        """
        chosen = step_of(step, self._trust)
        config = complete(session_recipe({"steps": {step: options}}, self._trust), self._trust).steps[step]
        if self._simulation is not None and self._is_trained():
            self.network = self._simulation.to_network()
        torch.manual_seed(self._seed)
        self.network, notes = chosen(self.network, config, StepContext(self._inputs, self._seed))
        self._simulation = None
        self.notes[step] = notes
        return notes

    def _is_trained(self) -> bool:
        """Tell whether the weights of the model have changed since it was made."""
        names = [str(node.target) for node in self.network.graph.graph.nodes if node.op == "get_attr"]
        return any(not torch.equal(tensor(self.network.graph, name), tensor(self.model, name)) for name in names)

    def trainable(self, learn_ranges: bool = True) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters of `model` to train: weights, and what corrects ranges.

        Args:
            learn_ranges: train the ranges of activations too; weight scales follow the weights in any case.
        """
        return self.simulation.trainable(learn_ranges)

    def sqnr_db(self, inputs: Any) -> float:
        """Return how near the outputs on some inputs are to FP32's, in dB; of several outputs the one that is least."""
        with torch.no_grad():
            return self.simulation.closeness([arguments(inputs)])

    def export(self, path: Path | str) -> Path:
        """Write the model: `.onnx` with Q/DQ, `.pt2`, `.pte`, or a folder with AIMET's encodings and a float ONNX file.

        Raises:
            ExportError: the model cannot be written as that, or there is no such kind of file.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".onnx":
            export_onnx(self.simulation, self.example, path)
        elif path.suffix == ".pt2":
            export_pt2(self.simulation, self.example, path)
        elif path.suffix == ".pte":
            export_pte(self.simulation, self.example, path)
        elif path.suffix:
            message = f"{path.name}: {allowed_values(path.suffix, WRITERS)}, or a folder for AIMET's encodings"
            raise ExportError(message)
        else:
            export_encodings(self.simulation, self.example, path)
        return path

    def _inputs(self, limit: int | None) -> Iterator[Inputs]:
        """Yield batches of calibration inputs, at most `limit` samples."""
        left = limit
        for batch in self._batches:
            if left is not None and left <= 0:
                return
            args, kwargs = self._inputs_of(batch)
            every = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
            size = len(every[0])
            if left is not None and size > left:
                args, kwargs = tuple(one[:left] for one in args), {name: one[:left] for name, one in kwargs.items()}
            left = None if left is None else left - size
            yield args, kwargs

    def _inputs_of(self, batch: Any) -> Inputs:
        """Return a batch's inputs, in the form of the example, without a target.

        Raises:
            DataError: it has another form.
        """
        if isinstance(batch, (tuple, list)) and len(batch) == 2 and self._fits(arguments(batch[0])):
            return arguments(batch[0])
        if self._fits(arguments(batch)):
            return arguments(batch)
        message = "a calibration batch has not the form of the example: give such inputs, or (inputs, target)"
        raise DataError(message)

    def _fits(self, inputs: Inputs) -> bool:
        args, kwargs = inputs
        own_args, own_kwargs = self.example
        every = all(isinstance(one, Tensor) for one in (*args, *kwargs.values()))
        return every and len(args) == len(own_args) and kwargs.keys() == own_kwargs.keys()
