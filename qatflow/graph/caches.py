"""What torch remembers of graphs for good: the text of each that was compiled, and the sizes of each captured one.

A process that carries out many runs would grow by it. Another version of torch may keep it elsewhere; then it stays.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx
from torch.fx import graph_module


def forget_sizes(graph: fx.GraphModule) -> None:
    """Let go of what a captured graph's sizes lead to, once nothing is asked of them any more.

    Tensors without values know sizes in C++, sizes know the environment that they are from, and that knows the tensors:
    a circle that Python's collector does not see.
    """
    fakes = [node.meta.get("val") for node in graph.graph.nodes]
    modes = {id(fake.fake_mode): fake.fake_mode for fake in fakes if hasattr(fake, "fake_mode")}
    for sizes in [mode.shape_env for mode in modes.values() if mode.shape_env is not None]:
        if getattr(sizes, "tracked_fakes", None):
            sizes.tracked_fakes = []
        getattr(sizes, "fake_tensor_cache", {}).clear()
        for method in vars(type(sizes)).values():
            getattr(method, "cache_clear", lambda: None)()


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
