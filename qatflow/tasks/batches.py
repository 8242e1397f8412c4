"""Batches: what a model is called with, and what its outputs are compared with.

A sample is `(inputs, target)`, or the inputs alone where there are no labels. Inputs are a tensor, a tuple of tensors
(positional arguments of the model) or a dict of tensors (keyword arguments); everything behind this module sees one
shape of batch only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from qatflow import recipe
from qatflow.errors import DataError, UserCodeError
from qatflow.graph.tree import tree_map_only
from qatflow.results.signals import end_with_parent
from qatflow.tasks.splits import Samples, naming
from qatflow.users_code import blame_machine, users_code

SAMPLE = (
    "a sample is (inputs, target), or with `data.labels: false` the inputs alone; inputs are a tensor, a tuple of "
    "tensors (positional) or a dict of tensors (keywords)"
)
END = object()
"""What a loader gives after its last batch."""


@dataclass(frozen=True)
class Batch:
    """Some samples, ready for `model(*batch.args, **batch.kwargs)`.

    Attributes:
        args: positional inputs, `[size, ...]` each.
        kwargs: keyword inputs, `[size, ...]` each.
        target: what the data says is right: a tensor `[size, ...]`, or tuples, lists and dicts of them; None where
            there are no labels.
        size: how many samples.
        mask: true where a position is real and not padding, shape `[size, T]`; None where all are, where no output
            of the model has positions, or where the model has not been asked which input says so.
    """

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    target: Any
    size: int
    mask: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on `device`."""
        args = tuple(value.to(device) for value in self.args)
        kwargs = {name: value.to(device) for name, value in self.kwargs.items()}
        mask = None if self.mask is None else self.mask.to(device)
        return Batch(args, kwargs, _moved(self.target, device), self.size, mask)


class Batches:
    """A dataset in batches, to be gone through any number of times.

    A shuffled one has another order in every pass, and the same ones for the same seed. The global random state is
    left alone.
    """

    def __init__(self, loader: DataLoader[Any], labels: bool, part: str = "") -> None:
        self._loader = loader
        self._labels = labels
        self._part = part

    def reshuffle(self, seed: int) -> None:
        """Let `seed` alone decide the order of the next pass."""
        generator = self._loader.generator
        if generator is not None:
            generator.manual_seed(seed)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield every batch.

        Raises:
            DataError: samples are not what `SAMPLE` says, or differ in shape.
            UserCodeError: the dataset raised; the batch is named, and the part where it is known.
        """
        read: Iterator[Any] | None = None
        for number in itertools.count(1):
            with naming(self._part, number):
                try:
                    with users_code("reading the data"):
                        read = iter(self._loader) if read is None else read
                        raw = next(read, END)
                except UserCodeError as error:
                    if isinstance(error.__cause__, IndexError):
                        error.where.append(f"its length is given as {_length(self._loader.dataset)}")
                    raise
                if raw is END:
                    return
                batch = as_batch(raw, self._labels)
            yield batch


def batches(
    dataset: Samples,
    config: recipe.Data,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
    part: str = "",
) -> Batches:
    """Return `dataset` in batches of `config.batch_size`.

    Args:
        dataset: the samples.
        config: batch size, worker processes, and whether samples have labels.
        shuffle: go through the samples in random order.
        seed: of that order, and of the worker processes.
        drop_last: leave out the last batch where it is not full; an only batch stays.
        limit: take at most so many samples, spread evenly over the dataset (many datasets are sorted by class).
        shard: which of how many equal parts of every batch to take: `(rank, processes)`.
        part: what the samples are, for errors; empty where whoever reads them says it.
    """
    size = len(dataset)
    chosen = cast("Dataset[Any]", dataset)
    if limit is not None and limit < size:
        chosen = Subset(chosen, [index * size // limit for index in range(limit)])
        size = limit
    generator = torch.Generator().manual_seed(seed)
    order = RandomSampler(chosen, generator=generator) if shuffle else SequentialSampler(chosen)  # type: ignore[arg-type]
    loader = DataLoader(
        chosen,
        batch_sampler=_Shard(BatchSampler(order, config.batch_size, drop_last and size > config.batch_size), *shard),
        num_workers=config.workers,
        worker_init_fn=end_with_parent,  # PyTorch's own look at the parent comes after the sample that is being read
        collate_fn=_collate,
        generator=generator,
    )
    return Batches(loader, config.labels, part)


def _length(dataset: Any) -> int:
    """Return the length that a dataset gives of itself, whatever part of it is taken."""
    return _length(dataset.dataset) if isinstance(dataset, Subset) else len(dataset)


class _Shard(Sampler[list[int]]):
    """Every so-many-th index of every batch."""

    def __init__(self, whole: BatchSampler, rank: int, processes: int) -> None:
        self.whole = whole
        self.rank = rank
        self.processes = processes

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self.whole:
            yield indices[self.rank :: self.processes]

    def __len__(self) -> int:
        return len(self.whole)


def as_batch(raw: Any, labels: bool) -> Batch:
    """Return collated samples as a batch; a `Batch` is returned as it is.

    Args:
        raw: what a `DataLoader` yields: `(inputs, target)`, or the inputs alone.
        labels: whether there is a target.

    Raises:
        DataError: `raw` is not of that form.
    """
    if isinstance(raw, Batch):
        return raw
    if not labels:
        return _batch(raw, None)
    if not isinstance(raw, (tuple, list)) or len(raw) != 2:
        message = f"a batch of the data is {_form(raw)}, but {SAMPLE}"
        raise DataError(message)
    return _batch(raw[0], raw[1])


def _batch(inputs: Any, target: Any) -> Batch:
    args, kwargs = arguments(inputs)
    for name, value in [*enumerate(args), *kwargs.items()]:
        if not isinstance(value, Tensor):
            message = f"input {name!r} of the data is {_form(value)}, but {SAMPLE}"
            raise DataError(message)
        if value.dim() == 0:
            message = f"input {name!r} of a batch has no batch dimension; put one in front of the sample's own"
            raise DataError(message)
    sizes = {value.shape[0] for value in (*args, *kwargs.values())}
    if len(sizes) != 1:
        found = f"sizes {sorted(sizes)}" if sizes else "no inputs"
        message = f"a batch of the data has {found}; every input needs the same number of samples, and there is one"
        raise DataError(message)
    return Batch(args, kwargs, target, sizes.pop())


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return inputs, a tensor, a tuple or a dict of them, as positional and keyword arguments."""
    if isinstance(inputs, Mapping):
        return (), {str(name): value for name, value in inputs.items()}
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def at_least_two(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return inputs to capture a model with: one sample alone is taken twice, or its size would count as fixed."""

    def two(value: Tensor) -> Tensor:
        return value if value.shape[0] > 1 else torch.cat([value, value])

    return tree_map_only(Tensor, two, (args, kwargs))  # type: ignore[no-any-return]


def _collate(samples: list[Any]) -> Any:
    """Stack samples into a batch, telling in a sentence of those that cannot be."""
    try:
        return default_collate(samples)
    except (TypeError, RuntimeError, KeyError, ValueError) as error:
        blame_machine(error)
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = (
            f"the samples of a batch cannot be stacked ({said}); give all of them the same shape and type. One of them "
            f"is {_form(samples[0])}, and {SAMPLE}"
        )
        raise DataError(message) from error


def _form(value: Any) -> str:
    """Describe a value by its type, and what is in it: `tuple of (Tensor, int)`."""
    if isinstance(value, Tensor):
        return f"Tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with the keys {', '.join(map(str, value)) or '(none)'}"
    if isinstance(value, (tuple, list)):
        shown = [type(one).__name__ for one in value[:4]] + ["..."] * (len(value) > 4)
        return f"{type(value).__name__} of ({', '.join(shown)})"
    return type(value).__name__


def _moved(value: Any, device: torch.device | str) -> Any:
    """Return a target with its tensors on `device`, whatever they are nested in."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(one, device) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return (
            [_moved(one, device) for one in value]
            if isinstance(value, list)
            else tuple(_moved(o, device) for o in value)
        )
    return value
