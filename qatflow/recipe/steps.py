"""The ladder's steps by name: their configs, and the order rules between them.

They stand apart from the functions because a recipe is checked before torch is imported. A step of ours is an entry of
the table below, which Hydra's options are made from as well, and the function of its name in `qatflow/steps/NAME.py`. A
user's is one function, and its config, a `StepConfig` as well, is the annotation of its second parameter.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field

from qatflow.recipe.calibration import Method, WeightMethod
from qatflow.recipe.config import Config
from qatflow.recipe.precision import ShortLayerPrecision

CHOOSING = ("calibrate", "mixed_precision")
"""Steps that choose for the tensors that there are: those that change the graph come before them."""
FITTING = ("reestimate_batch_norms", "search_scales", "correct_bias", "adaround")
"""Steps that fit weights, biases or statistics to their quantization. Those that keep the float function come before
them: they would take what was fitted for FP32's own."""


class StepConfig(Config):
    """Options of one step, and where it may stand."""

    not_after: ClassVar[tuple[str, ...]] = ()
    """Steps that, if the recipe has them, must come later than this one."""
    rounds_weights: ClassVar[bool] = False
    """True for a step that only rounds weights better: it cannot mend what activations cost."""
    always_kept: ClassVar[bool] = False
    """True for a step that only prepares the graph: it is kept even where the measurement falls."""


class UntypedStep(StepConfig):
    """Options of a step from outside as they are written, until its module is imported."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The options by name."""
        return dict(self.model_extra or {})


class FoldBatchNorms(StepConfig):
    """Fold batch norms into the convolution or linear layer before them."""

    not_after = ("equalize", "absorb_bias", "smooth", *CHOOSING, *FITTING)
    always_kept = True


class Equalize(StepConfig):
    """Cross-layer equalization (Nagel et al. 2019), with high-bias absorption, where it helps."""

    not_after = ("absorb_bias", *CHOOSING, *FITTING)

    choose: Literal["measured", "all"] = "measured"
    """Equalize the chains whose quantized output gains by it on calibration samples, or all chains."""
    iterations: Annotated[int, Field(ge=1)] = 20
    """Sweeps over all pairs; it stops early once the scales stand still."""
    relu6: Literal["scale_bound", "swap_if_idle", "skip"] = "scale_bound"
    """A ReLU6 between two layers: scale its bound per channel, swap it for ReLU where it hardly ever clips, or leave
    the pair alone."""
    idle_share: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    """`swap_if_idle` swaps a ReLU6 that clips at most this share of its calibration values."""
    absorb_bias: bool = True
    """Move large biases into the next layer where no calibration sample reaches the ReLU's kink."""


class AbsorbBias(StepConfig):
    """Move what is always there of large biases into the next layer (Nagel et al. 2019)."""

    not_after = (*CHOOSING, *FITTING)


class ReestimateBatchNorms(StepConfig):
    """Statistics of the batch norms that were not folded, from quantized calibration data."""

    samples: Annotated[int, Field(ge=1)] = 512
    """Most calibration samples."""


class Smooth(StepConfig):
    """Even out the channels between a norm and the linear layers behind it (SmoothQuant, Xiao et al. 2023)."""

    not_after = (*CHOOSING, *FITTING)

    strength: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the outliers that moves into the weights: 0 leaves all in the activations, 1 moves all."""


class Calibrate(StepConfig):
    """The way to find ranges whose outputs are nearest to FP32's, for single tensors as well where that pays."""

    activations: tuple[Method, ...] = get_args(Method)
    """Ways that are tried for activations."""
    weights: tuple[WeightMethod, ...] = get_args(WeightMethod)
    """Ways that are tried for weights."""
    tensors: Annotated[int, Field(ge=0)] = 8
    """Most activations that may get a way of their own, those that hurt most first; 0 is one way for all."""
    held_out: Annotated[int, Field(ge=1)] = 64
    """Most calibration samples that ways are compared on: every fourth, which ranges are not found from."""


class SetPrecision(StepConfig):
    """Other bits, or float, for some layers and tensors."""

    not_after = FITTING

    layers: dict[str, ShortLayerPrecision] = Field(default_factory=dict)
    """As `precision.overrides`: module paths, patterns or names of tensors, with `float`, or bits such as `w8a16`."""


class MixedPrecision(StepConfig):
    """More bits, or float, where they save most noise for what they cost, until the gate is met."""

    cost: Literal["multiply_accumulates", "bit_operations", "average_bits", "size", "layers"] = "multiply_accumulates"
    """What the budget counts of layers and products above the recipe's bits: their share of all multiply-accumulates,
    or of bit-operations as they were; bits added to the average weight; megabytes; or how many layers."""
    budget: Annotated[float, Field(ge=0)] | None = 0.1
    """Most of that; null is the cheapest that meets the gate, whatever it costs."""
    samples: Annotated[int, Field(ge=1)] = 32
    """Most calibration samples on which tensors are ranked."""
    floats: bool = True
    """False gives more bits only, and no float, where the target has no integers of more bits either."""


class SearchScales(StepConfig):
    """Weight scales with the least reconstruction error, not the least weight error (SeqMSE's goal)."""

    not_after = ("adaround",)
    rounds_weights = True

    samples: Annotated[int, Field(ge=1)] = 512
    """Most calibration samples."""
    candidates: Annotated[int, Field(ge=2)] = 40
    """Scales tried, evenly from `lowest` to 1."""
    lowest: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Smallest scale tried, as a share of the one that covers all weights."""


class CorrectBias(StepConfig):
    """Biases that make up for the difference of means that quantization brings (Nagel et al. 2019)."""

    not_after = ("adaround",)

    method: Literal["empirical", "analytic"] = "empirical"
    """From calibration samples, or from what folded batch norms tell of the means."""
    samples: Annotated[int, Field(ge=1)] = 512
    """Most calibration samples; `empirical` only."""


class AdaRound(StepConfig):
    """Rounding that is best for the layer's output, not for the weight (Nagel et al. 2020)."""

    rounds_weights = True

    solver: Literal["exact", "gradient"] = "exact"
    """`exact` solves for integers from input statistics; `gradient` is the published relaxation."""
    samples: Annotated[int, Field(ge=1)] = 512
    """Most calibration samples."""
    rounding: Literal["free", "adjacent"] = "free"
    """`exact`: any integer of the grid, or only the two neighbours."""
    damping: Annotated[float, Field(gt=0)] | None = None
    """`exact`: noise added to the inputs, as a share of their power; null finds the best on held-out samples."""
    refit_scales: bool = True
    """`exact`: fit the scales to the integers found, and the integers to those."""
    move_biases: bool = True
    """`exact`: let biases take up differences of means."""
    iterations: Annotated[int, Field(ge=1)] = 10_000
    """`gradient`: most steps per layer."""
    patience: Annotated[int, Field(ge=0)] = 0
    """`gradient`: stop a layer whose rounding has not changed for so many steps; 0 never stops early."""
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """`gradient`: time for all layers, shared out evenly; null has no limit."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    regularization: Annotated[float, Field(ge=0)] = 0.01
    """`gradient`: weight of the term that pushes every rounding to 0 or 1."""
    warm_start: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """`gradient`: share of the steps without that term."""
    beta: tuple[float, float] = (20.0, 2.0)
    """`gradient`: first and last exponent of that term."""


STEP_CONFIGS: dict[str, type[StepConfig]] = {
    "fold_batch_norms": FoldBatchNorms,
    "equalize": Equalize,
    "absorb_bias": AbsorbBias,
    "smooth": Smooth,
    "calibrate": Calibrate,
    "set_precision": SetPrecision,
    "search_scales": SearchScales,
    "correct_bias": CorrectBias,
    "adaround": AdaRound,
    "reestimate_batch_norms": ReestimateBatchNorms,
    "mixed_precision": MixedPrecision,
}
