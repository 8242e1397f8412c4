"""Capture a model as one graph of ATen ops, with `torch.export`.

Export sees through modules, functions and methods alike, keeps the parameters' own names and a dynamic batch
dimension, and gives the gradients of the eager model. The graph is captured in evaluation mode and stays there:
batch norms use their running statistics and dropout is gone. In-place ops are rewritten to their functional twins,
so that a quantizer can stand behind any tensor.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from qatflow.errors import CaptureError, UserCodeError
from qatflow.graph.caches import forget_sizes
from qatflow.graph.capture_errors import explain, quiet, why_different
from qatflow.graph.closeness import outputs_close
from qatflow.graph.free import Free, FreeDimensions
from qatflow.graph.operators import Operator, changes_its_input, functional_twin, is_view
from qatflow.graph.other_sizes import check_other_sizes
from qatflow.graph.padding import note_mask
from qatflow.graph.tree import tree_map, tree_map_only
from qatflow.recipe import ATTENTION_MASK
from qatflow.users_code import blame_machine, said

aten = torch.ops.aten


def capture(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    mask: str = ATTENTION_MASK,
    free: Free | None = None,
) -> fx.GraphModule:
    """Return `model` as a graph that is called like it.

    Args:
        model: any module; it is left in the mode and on the device it is in.
        args: example positional inputs, batch first, at least 2 samples.
        kwargs: example keyword inputs, likewise.
        mask: the input that says which positions are padding; see `qatflow.graph.padding`.
        free: names of further dimensions that are free, by input and place: `{"x": {2: "length"}}`.

    The graph's parameters and buffers keep the model's names and are copies of them. Dimension 0 of every input
    tensor is dynamic, and so are those of `free`.

    Raises:
        UserCodeError: the model itself fails on the example.
        DataError: it has no input called `mask` that could say so, or none of the dimensions of `free`.
        CaptureError: the model cannot be exported, or the graph does not compute what the model does.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            message = f"{type(model).__name__}'s {name} is {_dtype(parameter)}: give the FP32 model (model.float())"
            raise CaptureError(message)
    with _without_fused_encoder():
        return _captured(copy.deepcopy(model).eval(), args, dict(kwargs or {}), mask, free or {})


def _captured(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], mask: str, free: Free) -> fx.GraphModule:
    _check_called(model, args, kwargs)
    dimensions = FreeDimensions(free, model.forward, args, kwargs)
    _check_runs(model, args, kwargs)
    try:
        with torch.no_grad(), quiet():
            exported = torch.export.export(model, tuple(args), kwargs, dynamic_shapes=dimensions.shapes())
    except Exception as error:
        blame_machine(error)
        raise CaptureError(explain(model, error, args, kwargs, dimensions)) from error
    graph = exported.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    if not _make_functional(graph):
        functional = exported.run_decompositions({}).module(check_guards=False)
        assert isinstance(functional, fx.GraphModule)
        graph = functional
    _remove_identities(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    _check_same_function(model, graph, args, kwargs)
    dimensions.note(graph)
    check_other_sizes(model, graph, dimensions)
    note_mask(graph, model, args, kwargs, mask)
    forget_sizes(graph)
    return graph


def _check_called(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check that the model's `forward` takes as many inputs as there are.

    Raises:
        CaptureError: it does not.
    """
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        message = f"{type(model).__name__}.forward cannot take the data's inputs: {error}"
        raise CaptureError(message) from error
    except ValueError as error:
        raise CaptureError(explain(model, error, args, kwargs)) from error


def _check_runs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Run a copy of the model on the example.

    Raises:
        UserCodeError: it fails; the error names the line and the inputs.
    """
    copied, copied_kwargs = tree_map_only(Tensor, torch.clone, (tuple(args), dict(kwargs)))
    try:
        with torch.no_grad():
            copy.deepcopy(model)(*copied, **copied_kwargs)
    except Exception as error:
        blame_machine(error)
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
        inputs = ", ".join(f"{name}: {_form(value)}" for name, value in bound.arguments.items())
        message = f"{said(error)}; check shape and type of the inputs against what the model was trained with"
        raise UserCodeError(message, f"{type(model).__name__}, given {inputs}") from error


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _form(value: Any) -> str:
    """Describe an input: `float32 [2, 3, 8, 8]`."""
    if isinstance(value, Tensor):
        return f"{_dtype(value)} {list(value.shape)}"
    return type(value).__name__


def _make_functional(graph: fx.GraphModule) -> bool:
    """Replace in-place ops by functional ones; return False where aliasing makes that unsafe."""
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        if not isinstance(node.target, Operator) or not changes_its_input(node.target):
            continue
        changed = node.args[0] if node.args else None
        twin = functional_twin(node.target)
        if twin is None or not isinstance(changed, fx.Node) or changed.op != "call_function":
            return False
        if is_view(changed) or any(is_view(user) for user in changed.users):
            return False
        node.target = twin
        later = [user for user in changed.users if order[user] > order[node]]
        for user in later:
            user.replace_input_with(changed, node)
    return True


def _remove_identities(graph: fx.GraphModule) -> None:
    """Remove dropout, which does nothing in evaluation mode, and shape checks."""
    for node in list(graph.graph.nodes):
        if node.target in (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _check_same_function(
    model: nn.Module, graph: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Compare graph and model on the example at two batch sizes.

    Raises:
        CaptureError: they differ by more than float rounding.
    """

    def first(leaf: Any) -> Any:
        return leaf[:1] if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf

    with torch.no_grad():
        for few_args, few_kwargs in ((args, kwargs), tree_map(first, (tuple(args), dict(kwargs)))):
            twice = [tree_map_only(Tensor, torch.clone, (tuple(few_args), dict(few_kwargs))) for _ in range(2)]
            expected, actual = (run(*a, **k) for run, (a, k) in zip((model, graph), twice, strict=True))
            if not outputs_close(graph, expected, actual, tolerance=1e-3):
                why = why_different(model, few_args, few_kwargs)
                message = f"the captured graph of {type(model).__name__} does not compute what it does: {why}"
                raise CaptureError(message)


@contextmanager
def _without_fused_encoder() -> Iterator[None]:
    """Let `nn.TransformerEncoder` compute as it does in training: its fast path drops padding, export does not."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
