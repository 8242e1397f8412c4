"""What torch remembers of graphs for good: the text of each that was compiled.

A process that carries out many runs would grow by it. Another version of torch may keep it elsewhere; then it stays.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import graph_module


@contextmanager
def graphs_forgotten() -> Iterator[None]:
    """Let torch forget the texts of graphs that are made in here; those that still live run on."""
    texts: dict[str, Any] = getattr(getattr(graph_module, "_loader", None), "eval_cache", {})
    before = set(texts)
    try:
        yield
    finally:
        for name in set(texts) - before:
            texts.pop(name, None)
            linecache.cache.pop(name, None)
