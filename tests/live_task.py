"""A metric of the user's, in a module that any process can import."""

from typing import Any


def weighted(weight: float) -> Any:
    """Return a function that holds a number."""

    def score(outputs: Any, target: Any) -> Any:
        return outputs * weight

    return score


class Holder:
    """Holds anything."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
