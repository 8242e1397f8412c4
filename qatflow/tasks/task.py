"""The task of a run: the user's model, data and metric, loaded and on the run's device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qatflow.errors import DataError, Mistake, RecipeError
from qatflow.recipe import Recipe
from qatflow.result import Part
from qatflow.store import key_of
from qatflow.tasks.data import Batch, Batches, Samples, Splits, batches, load_data
from qatflow.tasks.metrics import Metric, load_metric
from qatflow.tasks.models import load_model
from qatflow.tasks.splits import with_validation


@dataclass(frozen=True)
class Task:
    """What a run is about.

    Attributes:
        model: FP32, in evaluation mode, on `device`.
        splits: the parts of the data.
        metric: what the gate looks at.
        device: where everything runs.
        fingerprint: hash of the weights, of samples of every part, and of the metric.
        trust: packages that factories may come from, besides the well-known ones.
    """

    recipe: Recipe
    model: nn.Module
    splits: Splits
    metric: Metric
    device: torch.device
    fingerprint: str
    trust: tuple[str, ...] = ()

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the inputs of two calibration samples; one sample alone is taken twice."""
        batch = next(iter(batches(self.splits.calibration, self._data(batch_size=2), limit=2))).to(self.device)

        def two(value: Tensor) -> Tensor:
            return value if value.shape[0] > 1 else torch.cat([value, value])

        return pytree.tree_map(two, (batch.args, batch.kwargs))  # type: ignore[no-any-return]

    def calibration_inputs(self, limit: int | None) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Yield batches of calibration inputs, at most `limit` samples, in a fixed order."""
        for batch in batches(self.splits.calibration, self.recipe.data, limit=limit):
            moved = batch.to(self.device)
            yield moved.args, moved.kwargs

    @property
    def choosing_part(self) -> Part:
        """The part that rungs and trials are ranked on: `validation` where the data has one."""
        return "test" if self.splits.validation is None else "validation"

    def part(self, name: Part) -> Iterable[Batch]:
        """Return a part that candidates are measured on, in a fixed order."""
        samples = self.splits.test if name == "test" else self.splits.validation
        assert samples is not None
        return batches(samples, self.recipe.data)

    def test(self) -> Iterable[Batch]:
        """Return the evaluation part in a fixed order."""
        return self.part("test")

    def validation(self) -> Iterable[Batch]:
        """Return the part that epochs and trials are chosen by; see `with_validation`.

        Raises:
            DataError: the data has none, and none can be split off the training part.
        """
        return batches(self._training_parts()[1], self.recipe.data)

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
        config = self._data(batch_size=size)
        return batches(self._training_parts()[0], config, shuffle=True, seed=seed, drop_last=True, shard=shard)

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


def load_task(recipe: Recipe, trust: tuple[str, ...] = ()) -> Task:
    """Return the task of a recipe.

    Raises:
        RecipeError: a name, factory or weights file cannot be used, or `device` is not there.
        DataError: the data lacks a part, or a part is empty.
    """
    device = choose_device(recipe.device)
    splits = load_data(recipe.data, trust)
    model = load_model(recipe.model, trust).to(device)
    metric = load_metric(recipe.gate, trust, recipe.data.ignore_index)
    return Task(recipe, model, splits, metric, device, _fingerprint(recipe, model, splits), trust)


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


def _fingerprint(recipe: Recipe, model: nn.Module, splits: Splits) -> str:
    """Hash the weights whole, and of every part of the data its length and first, middle and last sample."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(_bytes(value))
    for part in ("train", "validation", "calibration", "test"):
        samples: Samples | None = getattr(splits, part)
        if samples is None:
            continue
        size = len(samples)
        digest.update(f"{part}:{size}".encode())
        for index in sorted({0, size // 2, size - 1}):
            for leaf in pytree.tree_leaves(samples[index]):
                digest.update(_bytes(leaf) if isinstance(leaf, Tensor) else repr(leaf).encode())
    sections = recipe.model_dump(mode="json", include={"model", "data"})
    return key_of(digest.hexdigest(), sections, recipe.gate.metric, recipe.gate.metric_kwargs)


def _bytes(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
