"""Optimizers by name or by factory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qatflow.errors import Mistake, RecipeError
from qatflow.recipe import Qat
from qatflow.tasks.factory import call, load_factory

OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {"fused": True}),
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
}
"""Each with arguments that the recipe's own may replace. Ranges are many tiny parameters: one by one, they take longer
than all the weights."""

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def choose_optimizer(qat: Qat, trust: tuple[str, ...] = ()) -> MakeOptimizer:
    """Return what makes the optimizer that `qat.optimizer` names, from groups of parameters; tried once.

    Raises:
        RecipeError: it is not trusted, not there, does not take the arguments, or is no optimizer.
    """
    if qat.optimizer in OPTIMIZERS:
        function, kwargs = OPTIMIZERS[qat.optimizer]
    else:
        path, kwargs_path = "qat.optimizer", "qat.optimizer_kwargs"
        function, kwargs = load_factory(qat.optimizer, trust, path, "optimizer", qat.optimizer_kwargs, kwargs_path), {}
    kwargs = {**kwargs, **qat.optimizer_kwargs}

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made = call(functools.partial(function, groups), kwargs, "qat.optimizer_kwargs", "qat.optimizer", qat.optimizer)
        if not isinstance(made, torch.optim.Optimizer):
            fix = "return a torch.optim.Optimizer over the groups it is called with"
            raise RecipeError([Mistake("qat.optimizer", f"{qat.optimizer} returned a {type(made).__name__}", fix)])
        return made

    make([{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.0}])
    return make
