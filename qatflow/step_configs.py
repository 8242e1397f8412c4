"""The configs of the ladder's steps, and the order rules between them.

They stand apart from the functions (`qatflow.steps`) because a recipe is checked before torch is imported. A test
holds the two tables, and the YAML files in `conf/steps`, together.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from qatflow.config_model import Config


class StepConfig(Config):
    """Options of one step, and where it may stand."""

    not_after: ClassVar[tuple[str, ...]] = ()
    """Steps that, if the recipe has them, must come later than this one."""
    always_kept: ClassVar[bool] = False
    """True for a step that only prepares the graph: it is kept even where the measurement falls."""


class FoldBatchNorms(StepConfig):
    """Fold batch norms into the convolution or linear layer before them."""

    not_after = ("equalize", "smooth", "adaround")
    always_kept = True


class Equalize(StepConfig):
    """Cross-layer equalization (Nagel et al. 2019), with high-bias absorption."""

    not_after = ("adaround",)

    iterations: Annotated[int, Field(ge=1)] = 20
    """Sweeps over all pairs; it stops early once the scales stand still."""
    relu6: Literal["scale_bound", "swap_if_idle", "skip"] = "scale_bound"
    """A ReLU6 between two layers: scale its bound per channel, swap it for ReLU where it hardly ever clips, or leave
    the pair alone."""
    idle_share: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    """`swap_if_idle` swaps a ReLU6 that clips at most this share of its calibration values."""
    absorb_bias: bool = True
    """Move large biases into the next layer where no calibration sample reaches the ReLU's kink."""


class Smooth(StepConfig):
    """Even out the channels between a norm and the linear layers behind it (SmoothQuant, Xiao et al. 2023)."""

    not_after = ("adaround",)

    strength: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the outliers that moves into the weights: 0 leaves all in the activations, 1 moves all."""


class AdaRound(StepConfig):
    """Learned rounding (Nagel et al. 2020), layer after layer on cached inputs."""

    iterations: Annotated[int, Field(ge=1)] = 10_000
    """Gradient steps per layer."""
    samples: Annotated[int, Field(ge=1)] = 512
    """Calibration samples that are cached."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    regularization: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the term that pushes every rounding to 0 or 1."""
    warm_start: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the iterations without that term."""
    beta: tuple[float, float] = (20.0, 2.0)
    """First and last exponent of that term."""


STEP_CONFIGS: dict[str, type[StepConfig]] = {
    "fold_batch_norms": FoldBatchNorms,
    "equalize": Equalize,
    "smooth": Smooth,
    "adaround": AdaRound,
}
