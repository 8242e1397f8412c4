"""Data by name or by factory.

Names are in one literal table; a factory of the user's returns `Splits`, or a dict with the same keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from qatflow import recipe
from qatflow.errors import DataError
from qatflow.tasks.batches import Batch, Batches, as_batch, batches
from qatflow.tasks.digits import digits
from qatflow.tasks.factory import make
from qatflow.tasks.splits import PARTS, Samples, Splits, splits_from

__all__ = ["DATASETS", "Batch", "Batches", "Samples", "Splits", "as_batch", "batches", "load_data"]

DATASETS: dict[str, Callable[..., Splits]] = {
    "digits": digits,
}


def load_data(config: recipe.Data, trust: Collection[str] = ()) -> Splits:
    """Return the data that a recipe names, in its parts.

    Args:
        config: a name of ours or a factory, with the factory's arguments.
        trust: packages that may be imported besides the well-known ones.

    Raises:
        RecipeError: the name or factory is unknown, not trusted, or fails.
        DataError: a part is missing or empty, or the factory returns something else.
    """
    made = make(config, "data", DATASETS, trust)
    if isinstance(made, Splits):
        return made
    if isinstance(made, Mapping):
        return splits_from(made)
    message = (
        f"data.factory {config.factory!r} returned a {type(made).__name__}; return "
        f"qatflow.tasks.data.Splits(...) or a dict with the keys {', '.join(PARTS)}"
    )
    raise DataError(message)
