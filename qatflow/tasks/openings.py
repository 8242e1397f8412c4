"""Whether what a recipe names without trust is of the kind that the table says, and calling it with nothing unpickled.

The table is `qatflow.recipe.trust.OPEN`. A name in a package may stand for anything that the package imports; so what
it stands for is looked at: a class of the package's own of the right kind, or a builder that the package itself lists.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qatflow.recipe.trust import Kind, Opening, package_of

ONLY_WEIGHTS = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": None}
"""Makes `torch.load` refuse to unpickle code, whatever its caller asks for."""
AUTO_CLASSES = "transformers.models.auto.modeling_auto"


def is_open(found: Any, opening: Opening, written: str) -> bool:
    """Tell whether something is of the kind that an opening says, and of that package's own.

    Args:
        found: what the name stands for.
        opening: of that name.
        written: `package.module:name`.
    """
    return KINDS[opening.kind](found, package_of(opening.module), written.rpartition(":")[2])


def opened(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function or class that is called with `torch.load` held to weights, and asks for no remote code."""
    if getattr(getattr(function, "__self__", None), "__module__", None) == AUTO_CLASSES:
        function = functools.wraps(function)(functools.partial(function, trust_remote_code=False))

    @functools.wraps(function, updated=())
    def called(*args: Any, **kwargs: Any) -> Any:
        with _only_weights():
            return function(*args, **kwargs)

    return called


@contextmanager
def _only_weights() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ONLY_WEIGHTS}
    _set(ONLY_WEIGHTS)
    try:
        yield
    finally:
        _set(before)


def _set(variables: dict[str, Any]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _is_class(of: type) -> Callable[[Any, str, str], bool]:
    """Return what tells a class of a package's own."""
    return lambda found, package, name: (
        inspect.isclass(found) and issubclass(found, of) and found.__module__.split(".")[0] == package
    )


def _is_model(found: Any, package: str, name: str) -> bool:
    if inspect.isclass(found):
        return _is_class(nn.Module)(found, package, name)
    if package == "timm":
        import timm

        return timm.is_model(name) and timm.model_entrypoint(name) is found
    import torchvision

    listed = torchvision.models
    names = [one for one in listed.list_models() if one.removeprefix("quantized_") == name]
    return found is listed.get_model or any(listed.get_model_builder(one) is found for one in names)


def _is_maker(found: Any, package: str, name: str) -> bool:
    return inspect.isfunction(found) and found.__module__.split(".")[0] == package and found.__name__ == name


def _is_pretrained(found: Any, package: str, name: str) -> bool:
    import transformers

    owner = getattr(found, "__self__", None)
    if not inspect.isclass(owner) or owner.__module__.split(".")[0] != package:
        return False
    return owner.__module__ == AUTO_CLASSES or issubclass(owner, transformers.PreTrainedModel)


def _is_metric(found: Any, package: str, name: str) -> bool:
    import torchmetrics

    return _is_class(torchmetrics.Metric)(found, package, name)


def _is_loss(found: Any, package: str, name: str) -> bool:
    homes = ("torch.nn.modules.loss", "timm.loss")
    return _is_class(nn.Module)(found, package, name) and found.__module__.startswith(homes)


KINDS: dict[Kind, Callable[[Any, str, str], bool]] = {
    "a model's class, or a builder that the package lists": _is_model,
    "the package's own maker of models": _is_maker,
    "a pretrained model's class": _is_pretrained,
    "a metric's class": _is_metric,
    "a loss's class": _is_loss,
    "an optimizer's class": _is_class(torch.optim.Optimizer),
}
"""From each kind to what tells it, given what a name stands for, its package and its name."""
