"""A hash of a live object, its code and what it holds, that tells it from others in a later session as well."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qatflow.graph.fingerprint import tensor_fingerprint
from qatflow.results.store import key_of
from qatflow.tasks.code import code_fingerprint

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


class _Unknown(Exception):
    """Something that has no text of its own."""


def identity(value: Any) -> str | None:
    """Return a hash of an object's code and settings; None where there is something in it that cannot be told."""
    try:
        return key_of(_Text().of(value))
    except _Unknown:
        return None


class _Text:
    """Writes out objects; one that holds itself is not gone into again."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}

    def of(self, value: Any) -> str:
        """Return a text of a value that is the same in every process.

        Raises:
            _Unknown: there is none.
        """
        if isinstance(value, PLAIN):
            return repr(value)
        if isinstance(value, (Tensor, np.ndarray)):
            return tensor_fingerprint(torch.as_tensor(value))
        if id(value) in self._seen:
            return "again"
        self._seen[id(value)] = value
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{self.of(key)}: {self.of(one)}' for key, one in value.items())}}}"
        if isinstance(value, (set, frozenset)):
            return f"{{{', '.join(sorted(map(self.of, value)))}}}"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self.of, value))}]"
        return f"{code_fingerprint(value)}({', '.join(self._held(value))})"

    def _held(self, value: Any) -> Iterator[str]:
        """Yield what an object holds besides its code."""
        if isinstance(value, functools.partial):
            yield from map(self.of, (value.func, *value.args, *value.keywords.items()))
        elif inspect.isfunction(value):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            yield from map(self.of, (*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()))
        elif inspect.ismethod(value):
            yield self.of(value.__self__)
        elif not inspect.isroutine(value) and not inspect.isclass(value) and not inspect.ismodule(value):
            yield from (f"{name}={self.of(one)}" for name, one in sorted(_attributes(value).items()))


def _attributes(value: Any) -> dict[str, Any]:
    """Return an object's own attributes; of a module its tensors and its other public ones.

    Raises:
        _Unknown: it has none that Python could list.
    """
    if isinstance(value, nn.Module):
        public = {name: one for name, one in vars(value).items() if not name.startswith("_") and name != "training"}
        return {**public, **value.state_dict()}
    written = (one for kind in type(value).__mro__ for one in vars(kind).values())
    if not any(map(inspect.isfunction, written)):
        raise _Unknown  # made in C: what it holds cannot be seen
    return dict(getattr(value, "__dict__", {}))
