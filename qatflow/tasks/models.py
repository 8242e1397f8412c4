"""Models by name or by factory, with weights, ready to be measured.

Names are in one literal table and come with weights that ship with qatflow; a factory of the user's returns a module,
and `model.weights` names a file to load into it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from pathlib import Path

from torch import nn

from qatflow import recipe
from qatflow.errors import Mistake, RecipeError
from qatflow.recipe.variables import read
from qatflow.tasks.digits_mobilenet import digits_mobilenet, digits_mobilenet_skewed, digits_mobilenet_thin
from qatflow.tasks.factory import make
from qatflow.tasks.weights_file import check_values, put_weights, read_weights

MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_mobilenet": digits_mobilenet,
    "digits_mobilenet_skewed": digits_mobilenet_skewed,
    "digits_mobilenet_thin": digits_mobilenet_thin,
}

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the weights that ship with qatflow: one safetensors file per name."""


def load_model(config: recipe.Model, trust: Collection[str] = ()) -> nn.Module:
    """Return the model that a recipe names, with its weights, on the CPU unless its factory says otherwise.

    It is in evaluation mode.

    Args:
        config: a name of ours or a factory, with the factory's arguments, and weights to load; a name without weights
            has those that ship with qatflow.
        trust: packages that may be imported besides the well-known ones.

    Raises:
        RecipeError: the name or factory is unknown, not trusted, fails or returns no module; the weights cannot be read
            or do not fit; or a tensor is not finite.
    """
    model = make(config, "model", MODELS, trust)
    if not isinstance(model, nn.Module):
        problem = f"{config.factory!r} returned a {type(model).__name__}"
        raise RecipeError([Mistake("model.factory", problem, "return a torch.nn.Module, the trained FP32 model")])
    path = weights_file(config)
    if path is not None:
        put_weights(model, read_weights(path), path)
    check_values(model)
    return model.eval()


def taken_over(model: nn.Module) -> nn.Module:
    """Return a copy of a live module in evaluation mode: the user's own stays as it is.

    Raises:
        RecipeError: a tensor is not finite.
    """
    check_values(model)
    return copy.deepcopy(model).eval()


def weights_file(config: recipe.Model) -> Path | None:
    """Return the file whose weights a model gets; None where its factory brings them."""
    if config.weights is not None:
        return Path(read(config.weights, "model.weights")).expanduser()
    return None if config.name is None else shipped_weights(config.name)


def shipped_weights(name: str) -> Path:
    """Return the file of weights that ships for a name of ours."""
    return WEIGHTS / f"{name}.safetensors"
