"""Whether a captured graph computes what its model does where free dimensions have other sizes than the example's.

Export alone does not tell: a linear layer over a flattened image takes one size only, and a Python number that a model
computes from a size is a constant in the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from qatflow.errors import CaptureError, UserCodeError
from qatflow.graph.capture_errors import FIXED_SIZE
from qatflow.graph.closeness import outputs_close
from qatflow.graph.free import FreeDimensions
from qatflow.users_code import blame_machine, said


def check_other_sizes(model: nn.Module, graph: fx.GraphModule, free: FreeDimensions) -> None:
    """Compare graph and model at another size of every free dimension: half of it, or double where the model refuses.

    Raises:
        CaptureError: the model takes no other, or the graph does not compute what it does.
    """
    for name, size in free.sizes.items():
        refused: list[UserCodeError] = []
        for other in [one for one in (size // 2, 2 * size) if one > 1]:
            try:
                _compare(model, graph, free, name, other)
                break
            except UserCodeError as error:
                refused.append(error)
        else:
            model_takes = f"data.free: {type(model).__name__} itself takes no other {name} than {size}"
            message = f"{model_takes} ({refused[0]}); leave it out of data.free"
            raise CaptureError(message) from refused[0]


def _compare(model: nn.Module, graph: fx.GraphModule, free: FreeDimensions, name: str, size: int) -> None:
    """Run both at one size.

    Raises:
        UserCodeError: the model fails.
        CaptureError: the graph does, or differs.
    """
    expected = _wanted(model, free, name, size)
    args, kwargs = free.resized(name, size)
    message = (
        f"data.free: the graph of {type(model).__name__}, captured with {name} {free.sizes[name]}, does not compute "
        f"what the model does with {size}: a number that depends on the size was taken for a constant; {FIXED_SIZE}"
    )
    try:
        with torch.no_grad():
            close = outputs_close(graph, expected, graph(*args, **kwargs), tolerance=1e-3)
    except Exception as error:
        blame_machine(error)
        raise CaptureError(message) from error
    if not close:
        raise CaptureError(message)


def _wanted(model: nn.Module, free: FreeDimensions, name: str, size: int) -> Any:
    args, kwargs = free.resized(name, size)
    try:
        with torch.no_grad():
            return model(*args, **kwargs)
    except Exception as error:
        blame_machine(error)
        message = f"with {size}: {said(error)}"
        raise UserCodeError(message) from error
