"""The search space, after AIMET's guide: its own recommendation, and probes of where to look.

The guide centres the search on the rate at which FP32 training ended. Where a recipe does not say it, short trials at
rates a factor of ten apart find the order of magnitude first, and the recommendation is made at the best one's rate.
"""

from __future__ import annotations

from typing import Any, Literal

import optuna

from qatflow.qat.schedule import Settings
from qatflow.recipe import Recipe

ASSUMED_RATE = 1e-6
"""Taken for FP32's final learning rate where a recipe has none."""
PROBED_RATES = (1e-6, 1e-5, 1e-4, 1e-3)
PROBE_EPOCHS = 2
FORECAST_RATES = 3


def probed_rates(recipe: Recipe) -> tuple[float, ...]:
    """Return the rates of the search's first, short trials: none where the recipe says around which rate to search.

    A trial is left for the recommendation, and a single probe would have none to be compared with.
    """
    if recipe.search.lr is not None or recipe.model.final_lr is not None:
        return ()
    count = min(len(PROBED_RATES), recipe.search.max_trials - 1)
    return PROBED_RATES[:count] if count > 1 else ()


def forecast_rates(recipe: Recipe) -> tuple[float, ...]:
    """Return the rates at which a few steps tell what a trial may come to: the highest that is searched, and lower.

    They are a factor of ten apart. A low rate moves nothing in a few steps; one that is right for a trial may need more
    than a few to get beyond a start that was solved for, so that lower ones count although the search has them not.
    """
    return tuple(rate_span(recipe)[1] / 10**place for place in range(FORECAST_RATES))


def rate_span(recipe: Recipe) -> tuple[float, float]:
    """Return the lowest and highest learning rate of the search."""
    if recipe.search.lr is not None:
        return recipe.search.lr
    final = recipe.model.final_lr
    return (PROBED_RATES[0] / 10, PROBED_RATES[-1]) if final is None else (final / 10, final * 10)


def recommended(recipe: Recipe, probed: float | None = None) -> dict[str, Any]:
    """Return the guide's own recommendation as Optuna parameters, moved into the recipe's space where it is not.

    Args:
        recipe: the run.
        probed: the best probe's rate; None where there was none.
    """
    low, high = rate_span(recipe)
    rate = probed or recipe.model.final_lr or ASSUMED_RATE
    return {
        "lr": min(max(rate, low), high),
        "epochs": recipe.search.epochs[1],
        "decay_period": recipe.search.decay_period[0],
        **({"range_learning": True} if recipe.qat.range_learning is None else {}),
        **({"distillation": recipe.search.distillation[0]} if recipe.qat.distillation is None else {}),
    }


def suggest(trial: optuna.Trial, recipe: Recipe) -> Settings:
    """Return the hyper-parameters that the sampler proposes for a trial."""
    qat, search = recipe.qat, recipe.search
    ranges, weight = qat.range_learning, qat.distillation
    return Settings(
        lr=_rate(trial, recipe),
        epochs=trial.suggest_int("epochs", *search.epochs),
        decay_period=trial.suggest_int("decay_period", *search.decay_period),
        range_learning=trial.suggest_categorical("range_learning", [True, False]) if ranges is None else ranges,
        distillation=trial.suggest_float("distillation", *search.distillation) if weight is None else weight,
        schedule=qat.schedule,
        warmup=qat.warmup,
    )


def probe(trial: optuna.Trial, recipe: Recipe) -> Settings:
    """Return a probe's hyper-parameters: the recommendation for two epochs, all of them at the rate proposed."""
    return _short(recipe, _rate(trial, recipe), min(PROBE_EPOCHS, recipe.search.epochs[1]), "constant")


def miniature(recipe: Recipe, rate: float) -> Settings:
    """Return the recommendation for one epoch, in which the rate falls to nothing."""
    return _short(recipe, rate, 1, "cosine")


def _short(recipe: Recipe, rate: float, epochs: int, schedule: Literal["cosine", "constant"]) -> Settings:
    chosen = {"range_learning": recipe.qat.range_learning, "distillation": recipe.qat.distillation}
    others: dict[str, Any] = {**chosen, **recommended(recipe)}
    return Settings(**{**others, "lr": rate, "epochs": epochs}, schedule=schedule)


def _rate(trial: optuna.Trial, recipe: Recipe) -> float:
    low, high = rate_span(recipe)
    return trial.suggest_float("lr", low, high, log=True)
