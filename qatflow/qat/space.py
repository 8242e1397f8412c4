"""The search space, after AIMET's guide, and its own recommendation as the first trial."""

from __future__ import annotations

from typing import Any

import optuna

from qatflow.qat.schedule import Settings
from qatflow.recipe import Recipe


def rate_span(recipe: Recipe) -> tuple[float, float]:
    """Return the lowest and highest learning rate of the search."""
    return recipe.search.lr or (recipe.model.final_lr / 10, recipe.model.final_lr * 10)


def recommended(recipe: Recipe) -> dict[str, Any]:
    """Return the guide's own recommendation as Optuna parameters, moved into the recipe's space where it is not."""
    low, high = rate_span(recipe)
    return {
        "lr": min(max(recipe.model.final_lr, low), high),
        "epochs": recipe.search.epochs[1],
        "decay_period": recipe.search.decay_period[0],
        **({"range_learning": True} if recipe.qat.range_learning is None else {}),
        **({"distillation": recipe.search.distillation[0]} if recipe.qat.distillation is None else {}),
    }


def suggest(trial: optuna.Trial, recipe: Recipe) -> Settings:
    """Return the hyper-parameters that the sampler proposes for a trial."""
    low, high = rate_span(recipe)
    qat, search = recipe.qat, recipe.search
    ranges, weight = qat.range_learning, qat.distillation
    return Settings(
        lr=trial.suggest_float("lr", low, high, log=True),
        epochs=trial.suggest_int("epochs", *search.epochs),
        decay_period=trial.suggest_int("decay_period", *search.decay_period),
        range_learning=trial.suggest_categorical("range_learning", [True, False]) if ranges is None else ranges,
        distillation=trial.suggest_float("distillation", *search.distillation) if weight is None else weight,
        schedule=qat.schedule,
        warmup=qat.warmup,
    )
