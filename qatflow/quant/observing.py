"""What is counted of a tensor while calibration observes it: all of its values, but for those of padded positions."""

from __future__ import annotations

from torch import Tensor, fx

from qatflow.graph.free import batch_axis
from qatflow.graph.twice import same
from qatflow.quant.histogram import Histogram

FEWEST = 0.5
"""Fewest elements that are taken for all real ones, relative to the share of pairs of positions that are both real."""


class Observer:
    """Fills a histogram with the values of one tensor.

    Attributes:
        histogram: of the values seen.
        share: while batches run twice (`qatflow.graph.twice`), the share of positions that are real; None while they
            run once.

    Args:
        node: what export recorded of the tensor; its first dimension whose size depends on the batch's counts samples,
            or samples first.
    """

    def __init__(self, node: fx.Node) -> None:
        self.histogram = Histogram()
        self.share: float | None = None
        self.axis = batch_axis(node)

    def update(self, values: Tensor) -> None:
        """Count a batch of values.

        Of a batch that runs twice, those elements count that padding does not change. Where hardly any are left,
        padding has an influence on all of the tensor, and all count.

        Raises:
            ValueError: one that counts is not finite.
        """
        if self.share is None or self.axis is None or values.shape[self.axis] % 2:
            self.histogram.update(values)
            return
        once, again = values.chunk(2, self.axis)
        real = same(once, again)
        few = int(real.sum()) < FEWEST * self.share**2 * real.numel()
        self.histogram.update(once, None if few or bool(real.all()) else real)
