"""What every runtime gives: a file as a function, and which of its layers run on integers."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qatflow.export.signature import Signature


class LoadedFile(Protocol):
    """A file in a runtime, called like the model that it was made of."""

    name: str
    """Of the runtime, with its version."""
    signature: Signature
    precision: str
    """What it computes in where it does not compute in integers."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns, on the device of its inputs."""

    def run(self, args: Any, kwargs: Any) -> dict[str, Tensor]:
        """Return the outputs by name, and the tensors inside that were asked for, on the CPU."""


@dataclass(frozen=True)
class LayerKernel:
    """How one convolution or product runs.

    Attributes:
        layer: its name.
        op: the op in the file.
        kernel: what the runtime runs in its place; empty where that is not known.
        integer: whether that is an integer kernel.
        reason: why not; empty where it is.
    """

    layer: str
    op: str
    kernel: str
    integer: bool
    reason: str


@dataclass(frozen=True)
class Inside:
    """What a runtime made of a file, as it says itself.

    Attributes:
        layers: its convolutions and products.
        kernels: how often each kernel is there, the most frequent first.
    """

    layers: list[LayerKernel] = field(default_factory=list)
    kernels: dict[str, int] = field(default_factory=dict)


def counted(kernels: Iterator[str]) -> dict[str, int]:
    """Return how often each kernel is there, the most frequent first."""
    counts: dict[str, int] = {}
    for one in kernels:
        counts[one] = counts.get(one, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def in_batches_of(
    size: int, feed: Mapping[str, Tensor], run: Callable[[dict[str, Tensor]], list[Tensor]]
) -> list[Tensor]:
    """Return the outputs of a batch from a file that takes so many samples at a time; the last ones are repeated to
    make a whole batch.
    """
    count = len(next(iter(feed.values())))
    found = []
    for start in range(0, count, size):
        part = {name: _whole(value[start : start + size], size) for name, value in feed.items()}
        found.append([one[: count - start] if one.dim() else one for one in run(part)])
    return [torch.cat(parts) if parts[0].dim() else parts[0] for parts in zip(*found, strict=True)]


def fixed_batch(shapes: Iterable[Sequence[object]]) -> int | None:
    """Return the batch that a file's inputs have in common; None where it is free, or they have no one batch."""
    firsts = {shape[0] if len(shape) else None for shape in shapes}
    (first,) = firsts if len(firsts) == 1 else (None,)
    return first if isinstance(first, int) else None


def _whole(value: Tensor, size: int) -> Tensor:
    missing = size - len(value)
    return torch.cat([value, value[-1:].expand(missing, *value.shape[1:])]).contiguous() if missing else value


class Called:
    """The part of `LoadedFile` that is the same for all: nest the outputs as the model does."""

    signature: Signature
    precision = "f32"

    def run(self, args: Any, kwargs: Any) -> dict[str, Tensor]:
        """Return the outputs by name, on the CPU."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model returns, on the device of its inputs."""
        device = next(iter(self.signature.feed(args, kwargs).values())).device
        outputs = self.run(args, kwargs)
        return self.signature.result([outputs[name].to(device) for name in self.signature.outputs])


@contextlib.contextmanager
def own_logging() -> Iterator[None]:
    """Undo what a library does to the root logger when it is imported: every line of ours would be shown twice."""
    before = list(logging.root.handlers)
    try:
        yield
    finally:
        for handler in [one for one in logging.root.handlers if one not in before]:
            logging.root.removeHandler(handler)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep what a runtime's C++ writes to stdout and stderr from the terminal."""
    sys.stdout.flush()
    saved = [os.dup(stream) for stream in (1, 2)]
    with Path(os.devnull).open("w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
        try:
            yield
        finally:
            for stream, own in zip((1, 2), saved, strict=True):
                os.dup2(own, stream)
                os.close(own)
