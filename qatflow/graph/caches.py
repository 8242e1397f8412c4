"""What torch remembers of graphs for good: the text of each that was compiled, and what each op made of each shape.

A process that carries out many runs would grow by it, about 1 MiB a run of a tiny model. Another version of torch may
keep it elsewhere; then it stays.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv


@contextmanager
def graphs_forgotten() -> Iterator[None]:
    """Let torch forget the graphs that are made in here; those that still live run on, without text for tracebacks."""
    texts: dict[str, Any] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
    before = set(texts)
    try:
        yield
    finally:
        for name in set(texts) - before:
            texts.pop(name, None)
            linecache.cache.pop(name, None)
        _forget_shapes()


def _forget_shapes() -> None:
    """Clear what is kept of every capture's sizes: by the op, and by functions that remember the capture with it."""
    for one in vars(ShapeEnv).values():
        if hasattr(one, "cache_clear"):
            one.cache_clear()
    try:
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError:
        return  # it has moved
    if hasattr(FakeTensorMode, "cache_clear"):
        FakeTensorMode.cache_clear()
