"""Which positions of a batch are real, and which only fill a sequence up to the length of the longest.

An input says so: the attention mask, shape `[n, T]`, nonzero where a position counts. What a model computes at padded
positions is arbitrary and nobody reads it, so that it counts neither for ranges nor for what a candidate loses. The
graph knows the input (`graph.meta["mask"]`, the name of its placeholder) and which dimension of every output counts
positions (`graph.meta["positions"]`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from qatflow.errors import DataError
from qatflow.graph.observe import observe
from qatflow.graph.tree import flat_inputs, tree_leaves, tree_map
from qatflow.graph.twice import run_twice, same
from qatflow.recipe import ATTENTION_MASK

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Padding:
    """The padding of one batch.

    Attributes:
        mask: true where a position is real, shape `[n, T]`.
        positions: for every leaf that the model returns, which of its dimensions counts positions; None where none
            does.
    """

    mask: Tensor
    positions: tuple[int | None, ...]

    @property
    def of_inputs_only(self) -> bool:
        """Whether no output has positions: a sentence's class, say."""
        return all(dim is None for dim in self.positions)

    def real(self, leaf: int, value: Tensor) -> Tensor | None:
        """Return which elements of an output are real, broadcastable to its shape; None where all are."""
        dim = self.positions[leaf]
        return None if dim is None or value.dim() <= dim else along(self.mask, dim, value.dim())


def along(mask: Tensor, dim: int, rank: int) -> Tensor:
    """Return a mask `[n, T]` in `rank` dimensions, samples along the first and positions along `dim`."""
    return mask.reshape([len(mask), *([1] * (dim - 1)), mask.shape[1], *([1] * (rank - dim - 1))])


def mask_of(graph: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return which positions of a batch are real, shape `[n, T]`, bool; None where all are, or nothing says so.

    A mask of zeros and negative numbers, made to be added to attention scores, counts where it is zero. Samples
    without any real position count whole.
    """
    name = graph.meta.get("mask") if isinstance(graph, fx.GraphModule) else None
    if name is None:
        return None
    values = flat_inputs(graph, tuple(args), dict(kwargs))[_place(graph, name)]
    if not isinstance(values, Tensor) or values.dim() != 2:
        return None
    real = values >= 0 if values.dtype != torch.bool and bool((values < 0).any()) else values != 0
    real = real | ~real.any(1, keepdim=True)
    return None if bool(real.all()) else real


def padding_of(graph: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Padding | None:
    """Return the padding of a batch; None where it has none, or nothing says so."""
    mask = mask_of(graph, args, kwargs)
    return None if mask is None else Padding(mask, graph.meta["positions"])


def real_positions(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """Return which positions of a tensor `[n, T, ...]` inside a model are real, shape `[n, T]`, bool.

    None where all count, or where the tensor has no such dimensions.
    """
    return mask if mask is not None and x.dim() > 2 and x.shape[:2] == mask.shape else None


def observe_real(
    graph: fx.GraphModule, nodes: Collection[fx.Node], inputs: Iterable[Inputs], see: Callable[[fx.Node, Tensor], None]
) -> None:
    """As `observe`, with the real positions alone of values `[n, T, ...]`, which come as `[1, positions, ...]`."""
    for args, kwargs in inputs:
        mask = mask_of(graph, args, kwargs)

        def see_real(node: fx.Node, value: Tensor, mask: Tensor | None = mask) -> None:
            real = real_positions(value, mask)
            see(node, value if real is None else value[real][None])

        observe(graph, nodes, [(args, kwargs)], see_real)


def note_mask(
    graph: fx.GraphModule, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], name: str
) -> None:
    """Let a captured graph know which of its inputs tells what counts.

    Args:
        graph: a fresh capture of `model`.
        model: its forward's parameters name positional inputs.
        args: example positional inputs.
        kwargs: example keyword inputs.
        name: of the input; that of attention masks is taken where it fits, any other one must. Empty for none.

    Raises:
        DataError: there is no such input, or it has another form than `[n, T]`.
    """
    value = _arguments(model, args, kwargs).get(name)
    if not isinstance(value, Tensor) or value.dim() != 2:
        if name not in ("", ATTENTION_MASK):
            raise DataError(_no_mask(name, value, _arguments(model, args, kwargs)))
        return
    here = object()
    marked = tree_map(lambda leaf: here if leaf is value else leaf, (tuple(args), dict(kwargs)))
    flat = flat_inputs(graph, *marked)
    place = next(place for place, leaf in enumerate(flat) if leaf is here)
    graph.meta["mask"] = [node.name for node in graph.graph.nodes if node.op == "placeholder"][place]
    graph.meta["positions"] = _position_dims(graph, args, kwargs, value)


def _place(graph: fx.GraphModule, name: str) -> int:
    return [node.name for node in graph.graph.nodes if node.op == "placeholder"].index(name)


def _arguments(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a call by the names that `forward` gives them."""
    return {**inspect.signature(model.forward).bind_partial(*args).arguments, **kwargs}


def _no_mask(name: str, value: Any, arguments: Mapping[str, Any]) -> str:
    fits = [key for key, one in arguments.items() if isinstance(one, Tensor) and one.dim() == 2]
    found = "the model has no such input" if name not in arguments else "it is no tensor of two dimensions"
    if isinstance(value, Tensor):
        found = f"its shape is {list(value.shape)}"
    allowed = f"one of {', '.join(fits)}" if fits else "one that has that form"
    return (
        f"data.mask: {name!r} cannot say which positions count: {found}. Name an input of shape [samples, positions] "
        f"that is nonzero where a position counts ({allowed}), or write '' for none"
    )


def _position_dims(
    graph: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any], mask: Tensor
) -> tuple[int | None, ...]:
    """Find which dimension of every output counts positions, by what padding changes.

    A dimension may be as long as the sequence by chance. So the example is run with its second half as padding, and
    once more with other values at padded positions: the dimension is one along which only padded positions differ.
    Where no value differs, it is the only one that is as long, if the output has more than two.
    """
    length = mask.shape[1]
    halved = (torch.arange(length, device=mask.device) < (length + 1) // 2).to(mask.dtype).expand(mask.shape)
    args, kwargs = tree_map(lambda leaf: halved if leaf is mask else leaf, (tuple(args), dict(kwargs)))
    real = halved != 0
    with torch.no_grad():
        leaves = tree_leaves(run_twice(graph, args, kwargs, real))
    return tuple(_position_dim(leaf, real) if isinstance(leaf, Tensor) else None for leaf in leaves)


def _position_dim(twice: Tensor, real: Tensor) -> int | None:
    count, length = real.shape
    fits = [dim for dim in range(1, twice.dim()) if twice.shape[dim] == length]
    if not fits or twice.shape[0] != 2 * count:
        return None
    differ = ~same(*twice.chunk(2))
    for dim in fits:
        counts = along(real, dim, differ.dim())
        if bool(differ.any()) and not bool((differ & counts).any()):
            return dim
    return fits[0] if len(fits) == 1 and twice.dim() > 2 else None
