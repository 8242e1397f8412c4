"""Hashes of graphs and tensors that are the same in every process: no addresses, no symbols' numbers, no devices."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from qatflow.graph.operators import Operator
from qatflow.graph.tree import calling

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
SYMBOL = re.compile(r"\b[su]\d+\b")


def graph_fingerprint(graph: fx.GraphModule) -> str:
    """Return a hash of what a graph computes: its nodes, their arguments, how it is called, and all tensors it reads.

    Node names count, since what is stored of a candidate names them.
    """
    digest = hashlib.sha256()
    symbols: dict[str, str] = {}
    for node in graph.graph.nodes:
        arguments = map_aggregate((node.args, node.kwargs), lambda leaf: _plain(leaf, symbols))
        digest.update(plain_text((node.op, node.name, _target(node), arguments)).encode())
        if node.op == "get_attr":
            digest.update(_attribute(graph, str(node.target)).encode())
        if node.op == "call_module":
            for name, value in graph.get_submodule(str(node.target)).state_dict().items():
                digest.update(f"{name} {tensor_fingerprint(value)}".encode())
    padding = graph.meta.get("mask"), graph.meta.get("positions")
    digest.update(plain_text((calling(graph), padding)).encode())
    if "free" in graph.meta:
        digest.update(plain_text(graph.meta["free"]).encode())
    return digest.hexdigest()


def tensor_fingerprint(value: Tensor) -> str:
    """Return a hash of a tensor's type, shape and values, however they lie in memory."""
    digest = hashlib.sha256(f"{value.dtype} {list(value.shape)}".encode())
    digest.update(memoryview(raw(value)).cast("B"))
    return digest.hexdigest()


def raw(value: Tensor) -> Any:
    """Return a tensor's bytes as a NumPy array, uint8 `[bytes]`."""
    value = value.detach().cpu().resolve_conj().resolve_neg()
    value = torch.view_as_real(value) if value.is_complex() else value
    return value.contiguous().flatten().view(torch.uint8).numpy()


def plain_text(value: Any) -> str:
    """Return `repr(value)` without addresses."""
    return ADDRESS.sub("", repr(value))


def _plain(leaf: Any, symbols: dict[str, str]) -> Any:
    """Return what stands for an argument: dimensions that are not fixed are numbered as they come."""
    if isinstance(leaf, fx.Node):
        return ("node", leaf.name)
    if isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return ("symbol", SYMBOL.sub(lambda found: symbols.setdefault(found[0], f"#{len(symbols)}"), str(leaf)))
    return ("device",) if isinstance(leaf, torch.device) else leaf


def _target(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, (str, Operator)):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', None) or plain_text(target)}"


def _attribute(graph: fx.GraphModule, name: str) -> str:
    """Return the hash of what a graph reads by a name: a tensor, or the graph of a branch."""
    owner, _, leaf = name.rpartition(".")
    value = getattr(graph.get_submodule(owner), leaf)
    if isinstance(value, Tensor):
        return tensor_fingerprint(value)
    return graph_fingerprint(value) if isinstance(value, fx.GraphModule) else plain_text(value)
