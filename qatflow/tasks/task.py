"""The task of a run: the user's model, data and metric, loaded and on the run's device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any

import torch
from torch import fx, nn

from qatflow.errors import DataError, Mistake, RecipeError
from qatflow.graph.fingerprint import graph_fingerprint
from qatflow.recipe import Recipe
from qatflow.recipe.trust import Role
from qatflow.results.result import Part
from qatflow.results.store import code_version, key_of
from qatflow.tasks.batches import at_least_two
from qatflow.tasks.code import code_fingerprint
from qatflow.tasks.data import Batch, Batches, Samples, Splits, batches, load_data
from qatflow.tasks.evaluation_data import random_sentence
from qatflow.tasks.factory import load_factory
from qatflow.tasks.fingerprint import calibration_fingerprint, form_of, is_random
from qatflow.tasks.live import Live, Parts
from qatflow.tasks.metrics import Metric, load_metric
from qatflow.tasks.models import load_model, taken_over
from qatflow.tasks.splits import naming, with_validation

COMPUTING = ("graph", "quant", "steps", "tasks", "ladder")
"""What of qatflow's own code a candidate's figures depend on."""
READING = {"name", "factory", "kwargs", "workers"}
"""Keys of `data` that do not say what is made of the samples: these count by what they are."""
OTHER_LOOKS = (32,)
"""Numbers of calibration samples that steps take whatever the recipe says: `steps.chain_trial`."""


@dataclass(frozen=True)
class Task:
    """What a run is about.

    Attributes:
        model: FP32, in evaluation mode, on `device`.
        splits: the parts of the data.
        metric: what the gate looks at.
        device: where everything runs.
        trust: packages that factories may come from, besides the well-known ones.
        parts: the live objects that model, data, metric and loss are from; None where the recipe names them.
    """

    recipe: Recipe
    model: nn.Module
    splits: Splits
    metric: Metric
    device: torch.device
    trust: tuple[str, ...] = ()
    parts: Parts | None = None

    @property
    def loss(self) -> Live | None:
        """The live object that `qat.loss` stands for; None where that names what it is."""
        return None if self.parts is None else self.parts.loss

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the inputs of two calibration samples; one sample alone is taken twice."""
        few = batches(self.splits.calibration, self._data(batch_size=2), limit=2, part="calibration")
        batch = next(iter(few)).to(self.device)
        return at_least_two(batch.args, batch.kwargs)

    def calibration_inputs(self, limit: int | None) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Yield batches of calibration inputs, at most `limit` samples, in a fixed order."""
        for batch in batches(self.splits.calibration, self.recipe.data, limit=limit, part="calibration"):
            moved = batch.to(self.device)
            yield moved.args, moved.kwargs

    @property
    def choosing_part(self) -> Part:
        """The part that rungs and trials are ranked on: `validation` where the data has one."""
        return "test" if self.splits.validation is None else "validation"

    def part(self, name: Part) -> Iterable[Batch]:
        """Return a part that candidates are measured on, in a fixed order."""
        return batches(self.evaluation_parts[name], self.recipe.data, part=name)

    @property
    def evaluation_parts(self) -> dict[str, Samples]:
        """The parts that candidates are measured on."""
        chosen = {} if self.splits.validation is None else {"validation": self.splits.validation}
        return {**chosen, "test": self.splits.test}

    def test(self) -> Iterable[Batch]:
        """Return the evaluation part in a fixed order."""
        return self.part("test")

    def validation(self) -> Iterable[Batch]:
        """Return the part that epochs and trials are chosen by; see `with_validation`.

        Raises:
            DataError: the data has none, and none can be split off the training part.
        """
        return batches(self._training_parts()[1], self.recipe.data, part="validation")

    def train(self, seed: int, shard: tuple[int, int] = (0, 1)) -> Batches:
        """Return the training part in batches of `qat.batch_size`, shuffled anew on every pass.

        Args:
            seed: of the order.
            shard: which of how many equal parts of every batch to take: `(rank, processes)`.

        Raises:
            DataError: the data has none, or a batch cannot be cut into equal parts.
        """
        size = self.recipe.qat.batch_size or self.recipe.data.batch_size
        if size % shard[1]:
            message = f"qat.batch_size: {size} cannot be shared equally by {shard[1]} processes; write a multiple of it"
            raise DataError(message)
        config, part = self._data(batch_size=size), self._training_parts()[0]
        return batches(part, config, shuffle=True, seed=seed, drop_last=True, shard=shard, part="train")

    def require_training_parts(self) -> str:
        """Return what a user should know of the parts that QAT uses, empty where there is nothing to say.

        Raises:
            DataError: QAT would lack a part.
        """
        self._training_parts()
        if self.splits.validation is not None:
            return ""
        _, taken = with_validation(self.splits)
        return f"the data has no validation part: QAT takes every tenth training sample for it, {taken} in all"

    def hashes(self, graph: fx.GraphModule, tell: Callable[[str], None] = lambda text: None) -> dict[str, str]:
        """Return a hash of the captured graph with its weights, and one of every calibration sample that is used.

        Args:
            graph: the captured model.
            tell: called with what a user should know.
        """
        calibration, data = self.splits.calibration, self.recipe.data
        with naming("calibration"):
            if is_random(calibration, data, labels=False):
                tell(random_sentence("calibration"))
                samples = form_of(calibration, data)
            else:
                samples = calibration_fingerprint(calibration, self.calibration_limits(), data)
        return {"model": graph_fingerprint(graph), "calibration": samples}

    def key(self, hashes: Mapping[str, str]) -> str:
        """Return a hash of all that a candidate's figures depend on, but for its steps and the evaluation data.

        That is the captured graph with its weights, every calibration sample that is used, the metric's code, the
        settings, the versions of libraries that compute, and qatflow's own code.

        Args:
            hashes: what the method of that name returns.
        """
        data, recipe = self.recipe.data, self.recipe
        return key_of(
            code_version(*COMPUTING),
            _versions("torch", "numpy"),
            hashes["model"],
            hashes["calibration"],
            self._code_key(recipe.gate.metric, None if self.parts is None else self.parts.metric, "metric"),
            recipe.model_dump(mode="json", include={"precision", "target", "calibration", "seed"}),
            recipe.gate.model_dump(mode="json", include={"metric", "metric_kwargs", "direction"}),
            data.model_dump(mode="json", exclude=READING),
        )

    def calibration_limits(self) -> set[int]:
        """Return the numbers of calibration samples that the run's parts take at most."""
        steps = {step.samples for step in self.recipe.steps.values() if hasattr(step, "samples")}
        return {self.recipe.calibration.samples, *OTHER_LOOKS, *steps}

    @cached_property
    def training_key(self) -> str:
        """A hash of what training depends on besides its settings and where it starts; made once.

        That is the code of the loss and the optimizer, the libraries, and qatflow's own code. Of the training part only
        length and form count: augmentation may draw other numbers in every process.

        Raises:
            DataError: there is no training part.
        """
        train, qat = self._training_parts()[0], self.recipe.qat
        with naming("train"):
            form = form_of(train, self.recipe.data)
        return key_of(
            code_version("qat"),
            _versions("optuna", "lightning-fabric"),
            self._code_key(qat.loss, self.loss, "loss"),
            self._code_key(qat.optimizer, None, "optimizer"),
            form,
        )

    def _code_key(self, name: str, live: Live | None, role: Role) -> str:
        """Return a hash of the code behind what a recipe names, or behind the live object in its place."""
        return factory_fingerprint(name, self.trust, role) if live is None else live.key

    def _training_parts(self) -> tuple[Samples, Samples]:
        if self.splits.train is None:
            message = (
                "QAT needs a train part of the data and this data has none: add `train` to what the factory returns, "
                "or turn QAT off with qat.when=never"
            )
            raise DataError(message)
        splits, _ = with_validation(self.splits)
        assert splits.train is not None
        assert splits.validation is not None
        return splits.train, splits.validation

    def _data(self, **changes: Any) -> Any:
        return self.recipe.data.model_copy(update=changes)


def load_task(recipe: Recipe, trust: tuple[str, ...] = (), parts: Parts | None = None) -> Task:
    """Return the task of a recipe.

    Args:
        recipe: the run's.
        trust: packages that factories may come from, besides the well-known ones.
        parts: live objects in the place of those that the recipe calls `live:...`.

    Raises:
        RecipeError: a name, factory or weights file cannot be used, or `device` is not there.
        DataError: the data lacks a part, or a part is empty.
    """
    device = choose_device(recipe.device)
    splits = load_data(recipe.data, trust) if parts is None else parts.splits
    model = load_model(recipe.model, trust) if parts is None else taken_over(parts.model)
    metric = load_metric(recipe.gate, trust, recipe.data.ignore_index, None if parts is None else parts.metric)
    return Task(recipe, model.to(device), splits, metric, device, trust, parts)


def choose_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means on this machine.

    Raises:
        RecipeError: `cuda` is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError([Mistake("device", "'cuda' is not available on this machine", "write cpu or auto")])
    return torch.device(name)


def factory_fingerprint(name: str, trust: tuple[str, ...], role: Role) -> str:
    """Return a hash of the code behind `package.module:function`; empty for a name of ours.

    Raises:
        RecipeError: it is not trusted or not there.
    """
    return code_fingerprint(load_factory(name, trust, role, role)) if ":" in name else ""


def _versions(*packages: str) -> dict[str, str]:
    return {package: metadata.version(package) for package in packages}
