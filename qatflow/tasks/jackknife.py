"""A metric over all samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qatflow.gate import Scores


class Replicated:
    """A metric with `update` and `compute`.

    Args:
        make_whole: returns a fresh one.
    """

    def __init__(self, make_whole: Callable[[], Any]) -> None:
        self._whole = make_whole()

    def update(self, outputs: Any, target: Any, size: int) -> None:
        """Give it a batch of `size` samples."""
        self._whole.update(outputs, target)

    def result(self) -> tuple[float, Scores | None]:
        """Return its value, and its values without one group of samples after the other."""
        return float(self._whole.compute()), None
