"""The hyper-parameters of one trial and the learning rate they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """The hyper-parameters of one trial.

    Attributes:
        lr: highest learning rate.
        epochs: how many.
        decay_period: for the step schedule: the rate is divided by 10 every so many epochs.
        range_learning: whether activation ranges are trained.
        distillation: weight of FP32's outputs in the loss, beside the labels.
        schedule: how the rate falls.
        warmup: epochs in which it rises first.
    """

    lr: float
    epochs: int
    decay_period: int
    range_learning: bool
    distillation: float = 0.0
    schedule: Literal["step", "cosine", "constant"] = "step"
    warmup: float = 0.0

    def rate(self, done: float) -> float:
        """Return the learning rate when `done` epochs, a fraction as well, are over."""
        rise = min(1.0, done / self.warmup) if self.warmup > 0 else 1.0
        if self.schedule == "step":
            return rise * self.lr / float(10 ** (int(done) // self.decay_period))
        if self.schedule == "cosine":
            return rise * self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done / self.epochs)))
        return rise * self.lr

    def begins_like(self, other: Settings) -> bool:
        """Tell whether training by these is training by `other`, up to the end of these."""
        if self.epochs > other.epochs or self.schedule != other.schedule or self.warmup != other.warmup:
            return False
        if (self.lr, self.range_learning, self.distillation) != (other.lr, other.range_learning, other.distillation):
            return False
        if self.schedule == "cosine":
            return self.epochs == other.epochs
        return all(self.rate(epoch) == other.rate(epoch) for epoch in range(self.epochs))
