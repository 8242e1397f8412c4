"""Live objects in the place of what a recipe names: a module, data, a metric and a loss of a Python session.

A recipe names them `live:ResNet`, which only the session that has them can run. What a later session may use again of
what was measured is decided as ever, by content: the model by its graph and weights, data by its samples, and a metric
or a loss by its code and its settings. Where those cannot be told, nothing is used again, and the run says so.
"""

from __future__ import annotations

import copy
import functools
import inspect
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from qatflow.errors import DataError, Mistake, RecipeError
from qatflow.graph.tree import tree_flatten, tree_unflatten
from qatflow.recipe.trust import LIVE
from qatflow.tasks.identity import identity
from qatflow.tasks.splits import Samples, Splits, naming, splits_from


@dataclass(frozen=True)
class Live:
    """A metric or a loss.

    Attributes:
        value: the object.
        name: what reports call it.
        identity: hash of its code and settings; None where they cannot be told.
    """

    value: Any
    name: str
    identity: str | None
    session: str = field(default_factory=lambda: uuid.uuid4().hex)

    @staticmethod
    def of(value: Any, what: str) -> Live:
        """Return a live object with its name and identity.

        Args:
            value: the object.
            what: where a recipe has it, for messages.

        Raises:
            RecipeError: it is a class, or nothing that could be called.
        """
        if inspect.isclass(value):
            problem = f"{value.__name__} is a class"
            raise RecipeError([Mistake(what, problem, f"give an object, as in {value.__name__}(...)")])
        if not callable(value):
            problem = f"{type(value).__name__} is neither a name nor a function"
            raise RecipeError([Mistake(what, problem, "give a name, a function or an object that can be called")])
        return Live(value, _name(value), identity(value))

    @property
    def key(self) -> str:
        """The identity, or what no other session has."""
        return self.identity or self.session


@dataclass(frozen=True)
class Parts:
    """What a run is about, as live objects.

    Attributes:
        model: the trained FP32 model.
        splits: the data in its parts.
        metric: None where the recipe names one of ours.
        loss: likewise.
    """

    model: nn.Module
    splits: Splits
    metric: Live | None = None
    loss: Live | None = None

    @property
    def unidentified(self) -> tuple[str, ...]:
        """What cannot be told from another object in a later session."""
        named = {"the metric": self.metric, "the loss": self.loss}
        return tuple(f"{what} {one.name}" for what, one in named.items() if one is not None and one.identity is None)


def live_name(value: Any) -> str:
    """Return what a recipe calls a live object: `live:ResNet`."""
    return f"{LIVE}:{_name(value)}"


def _name(value: Any) -> str:
    while isinstance(value, functools.partial):
        value = value.func
    found = getattr(value, "__name__", type(value).__name__)
    return found if found.isidentifier() else type(value).__name__


def live_splits(data: Mapping[str, Any]) -> Splits:
    """Return data that is given as loaders, datasets or lists, in its parts.

    Of a loader that goes through all of a dataset and stacks samples in PyTorch's own way the dataset is taken,
    whatever its last batch; any other is gone through once, and its batches are taken apart again, in memory.

    Raises:
        DataError: a part is unknown, missing or empty, or a loader's batches cannot be taken apart.
    """
    if not isinstance(data, Mapping):
        message = f"data is a {type(data).__name__}; give its parts, as in {{'calibration': ..., 'test': ...}}"
        raise DataError(message)
    found = {}
    for name, part in data.items():
        with naming(str(name)):
            found[name] = None if part is None else _samples(part)
    return splits_from(found)


def batch_size_of(data: Mapping[str, Any]) -> int | None:
    """Return the batch size of the first loader among some parts; None where there is none."""
    sizes = (part.batch_size for part in data.values() if isinstance(part, DataLoader))
    return next((size for size in sizes if size is not None), None)


def _samples(part: Any) -> Samples:
    if isinstance(part, IterableDataset):
        return list(part)
    if not isinstance(part, DataLoader):
        return part  # type: ignore[no-any-return]  # whether it is a dataset is checked with all parts
    if part.batch_size is None and part.batch_sampler is None:
        return list(part)  # it gives samples, not batches
    if not isinstance(part.dataset, IterableDataset) and _takes_all(part):
        return part.dataset  # type: ignore[return-value]
    return [sample for batch in part for sample in _apart(batch)]


def _takes_all(loader: DataLoader[Any]) -> bool:
    """Tell whether a loader gives every sample of its dataset once, stacked in PyTorch's own way."""
    sampler, batches = loader.sampler, loader.batch_sampler
    ordinary = type(sampler) in (SequentialSampler, RandomSampler) and type(batches) is BatchSampler
    if loader.collate_fn is not default_collate or not ordinary or sampler.data_source is not loader.dataset:  # type: ignore[attr-defined]
        return False
    return len(sampler) == len(loader.dataset) and not getattr(sampler, "replacement", False)  # type: ignore[arg-type]


def _apart(batch: Any) -> Iterator[Any]:
    """Yield the samples of a batch."""
    leaves, form = tree_flatten(batch)
    sizes = {len(one) if isinstance(one, Tensor) and one.dim() else None for one in leaves}
    if len(sizes) != 1 or None in sizes:
        message = (
            "the loader's batches are not tensors of the same number of samples, so that they cannot be taken apart; "
            "give its dataset, or a list of samples"
        )
        raise DataError(message)
    for number in range(sizes.pop() or 0):
        yield tree_unflatten([one[number] for one in leaves], form)


def fresh(metric: Any) -> Callable[[], Any]:
    """Return what gives a copy of a metric object that has seen nothing."""

    def make() -> Any:
        made = copy.deepcopy(metric)
        if callable(getattr(made, "reset", None)):
            made.reset()
        return made

    return make
