"""Call a captured model, and tell in a sentence why it cannot take a batch.

A captured graph keeps every size that is not free, and has no frames of the user's: where one of its nodes fails, the
line that it was captured from is looked up. A model that drops the dimension of a batch of one sample, as a bare
`squeeze()` does, is told of as well: everything behind it would take one sample for many.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qatflow.errors import DataError, QatflowError, UserCodeError
from qatflow.graph.tree import flat_inputs, tree_leaves
from qatflow.users_code import Frame, blame_machine, frames_in, said


def called(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what a model gives for a batch; one that is no captured graph is only called.

    Raises:
        DataError: the batch has other sizes than the model was captured with.
        UserCodeError: a line of the model fails on the batch, or drops the dimension of a batch of one sample.
    """
    if not isinstance(model, fx.GraphModule):
        return model(*args, **kwargs)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):  # torch.fx prints generated code where a node fails
            outputs = model(*args, **kwargs)
    except Exception as error:
        blame_machine(error)
        raise _explained(model, flat_inputs(model, args, dict(kwargs)), error) from error
    sys.stderr.write(printed.getvalue())
    if any(_differs(node, leaf) for node, leaf in zip(_results(model), tree_leaves(outputs), strict=False)):
        raise _dropped(model, flat_inputs(model, args, dict(kwargs)))
    return outputs


def _explained(model: fx.GraphModule, inputs: Sequence[Any], error: Exception) -> Exception:
    """Return a sentence on why a graph failed on a batch; the error itself where no line of the user's did."""
    inputs_of = [node for node in model.graph.nodes if node.op == "placeholder"]
    for node, given in zip(inputs_of, inputs, strict=False):
        captured = node.meta.get("val")
        if isinstance(given, Tensor) and isinstance(captured, Tensor) and not _fits(given, captured):
            return DataError(
                f"{node.name} has the size {_text(given)} a sample, and the model was captured with {_text(captured)}, "
                "that of the calibration samples: a captured graph keeps every size but the batch's, and those that "
                "data.free names; give all parts samples of one size (crop, resize or pad them), or name it there"
            )
    walk = _Walk(model)
    with torch.no_grad(), contextlib.suppress(Exception):
        walk.run(*inputs, enable_io_processing=False)
    place = _users_line(walk.stopped_at)
    shapes = ", ".join(str(list(one.shape)) for one in inputs if isinstance(one, Tensor))
    return error if place is None else UserCodeError(f"{place}: {said(error)}", f"the model, given {shapes}")


def _dropped(model: fx.GraphModule, inputs: Sequence[Any]) -> QatflowError:
    """Return a sentence on a model whose outputs have other dimensions for this batch than when it was captured."""
    walk = _Walk(model)
    with torch.no_grad():
        walk.run(*inputs, enable_io_processing=False)
    node, place = walk.stopped_at, _users_line(walk.stopped_at)
    name = "the model" if node is None else str(node.target).removeprefix("aten.").partition(".")[0]
    message = (
        f"{name} drops the dimension of a batch of one sample; write which dimensions it is to drop, as in flatten(1) "
        "or squeeze(-1), or choose data.batch_size so that no batch has one sample"
    )
    return DataError(message) if place is None else UserCodeError(f"{place}: {message}")


class _Walk(fx.Interpreter):
    """Runs a graph node by node, and keeps the first that fails, or has other dimensions than when it was captured."""

    stopped_at: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except Exception:
            self.stopped_at = self.stopped_at or n
            raise
        if _differs(n, result):
            self.stopped_at = self.stopped_at or n
        return result


def _results(model: fx.GraphModule) -> list[Any]:
    output = next(node for node in reversed(model.graph.nodes) if node.op == "output")
    return tree_leaves(output.args[0])


def _differs(node: Any, value: Any) -> bool:
    """Tell whether a value has another number of dimensions than its node had when the model was captured."""
    captured = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and isinstance(captured, Tensor) and value.dim() != captured.dim()


def _users_line(node: fx.Node | None) -> Frame | None:
    """Return the line that a node was captured from: the user's, else a library's."""
    frames = [] if node is None else frames_in(node.stack_trace or "")
    for owner in ("user", "library"):
        if own := [frame for frame in frames if frame.owner == owner]:
            return own[-1]
    return None


def _fits(given: Tensor, captured: Tensor) -> bool:
    """Tell whether a sample has the sizes that it had when the model was captured, where these are not free."""
    pairs = zip(given.shape[1:], captured.shape[1:], strict=False)
    same = all(not isinstance(size, int) or size == own for own, size in pairs)
    return same and given.dim() == captured.dim()


def _text(value: Tensor) -> str:
    sizes = (str(size) if isinstance(size, int) else "free" for size in value.shape[1:])
    return " x ".join(sizes) or "of one number"
