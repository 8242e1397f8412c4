"""Find what would stop training before a ladder is climbed for it."""

from __future__ import annotations

from qatflow.bench import Bench
from qatflow.qat.features import feature_nodes
from qatflow.qat.losses import choose_objective
from qatflow.qat.optimizers import choose_optimizer


def check_training(bench: Bench) -> None:
    """Make the loss, the optimizer and the features of a recipe once.

    Raises:
        RecipeError: one of them cannot be used.
        DataError: the data lacks a part, or a batch cannot be shared by the processes of a trial.
    """
    task, recipe = bench.task, bench.recipe
    batches = task.train(recipe.seed, (0, recipe.search.devices_per_trial))
    choose_objective(recipe, next(iter(batches)).target, task.trust)
    choose_optimizer(recipe.qat, task.trust)
    feature_nodes(bench.base.graph, recipe.qat.features)
