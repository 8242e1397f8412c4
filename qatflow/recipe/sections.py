"""The recipe: one run, declared, as plain typed values.

Every section is a pydantic model that forbids unknown keys. `recipe_from` checks a whole mapping section by section
and returns all mistakes at once. Nothing here imports torch, so that a mistake shows in about a second; the configs
of the steps are next door in `step_configs` for the same reason, and the gate's in `gate_config`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from qatflow.errors import allowed_values
from qatflow.recipe.calibration import Calibration as Calibration
from qatflow.recipe.config import Config
from qatflow.recipe.gate import Drop as Drop
from qatflow.recipe.gate import Gate as Gate
from qatflow.recipe.precision import Bits as Bits
from qatflow.recipe.precision import LayerPrecision as LayerPrecision
from qatflow.recipe.precision import Precision as Precision
from qatflow.recipe.precision import as_precision
from qatflow.recipe.steps import STEP_CONFIGS, StepConfig, UntypedStep
from qatflow.recipe.targets import TARGETS
from qatflow.recipe.trust import is_outside

ATTENTION_MASK = "attention_mask"
"""The input that transformers call so says which positions are padding."""


class Source(Config):
    """Where a model or data comes from: a `name` of ours, or a `factory` of the user's."""

    name: str | None = None
    """A name in qatflow's own table."""
    factory: str | None = None
    """`package.module:function`; the package is torchvision, timm, transformers or one named in `trust`."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the factory."""

    @field_validator("factory")
    @classmethod
    def _has_two_parts(cls, value: str | None) -> str | None:
        if value is not None and (value.count(":") != 1 or not all(value.split(":"))):
            raise ValueError("write it as package.module:function")
        return value

    @model_validator(mode="after")
    def _one_of_both(self) -> Source:
        if (self.name is None) == (self.factory is None):
            raise ValueError("give either `name` or `factory`, and not both")
        return self


class Model(Source):
    """The trained FP32 model."""

    weights: str | None = None
    """A safetensors file or a `torch.save`d state dict, loaded into the model that the factory returns."""
    final_lr: Annotated[float, Field(gt=0)] | None = None
    """The learning rate at which FP32 training ended: the QAT search is centred on it. Where it is null, and
    `search.lr` as well, the first trials of the search find the order of magnitude."""


def _counted(value: Any) -> Any:
    if isinstance(value, dict) and not all(re.fullmatch("[1-9][0-9]*", str(place)) for place in value):
        raise ValueError("write places and names, as in {2: height, 3: width}; 0 is the batch, always free")
    return value


def _named(value: str) -> str:
    if not (value.isascii() and value.isidentifier()) or value == "batch":
        raise ValueError("name it by a word of letters, digits and _, other than batch")
    return value


FreeOfInput = Annotated[dict[int, Annotated[str, AfterValidator(_named)]], BeforeValidator(_counted)]


class Data(Source):
    """The samples, in parts that share none: train, validation, calibration, test."""

    batch_size: Annotated[int, Field(ge=1)] = 64
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load data; 0 loads in the run's own process."""
    labels: bool = True
    """False where a sample is only the model's input; metrics are then fidelity to FP32."""
    ignore_index: int | None = None
    """A label that does not count, for metric and loss; null is -100, and 255 where there are at most 255 classes."""
    free: dict[str, FreeOfInput] = Field(default_factory=dict)
    """Dimensions that are free besides the batch, by input and place, with their names:
    `{input_ids: {1: tokens}, attention_mask: {1: tokens}}`. Those of one name have one size."""
    mask: str = ATTENTION_MASK
    """The input, shape `[samples, positions]`, that is nonzero where a position counts and is no padding; an attention
    mask is found by itself, and empty means none."""


class Ladder(Config):
    """How the steps are climbed."""

    stop: Literal["gate", "end"] = "gate"
    """`gate`: stop at the first rung that meets the gate once `fold_batch_norms`, which is climbed in any case because
    the target runs the folded graph, is behind; `end`: climb all rungs."""
    keep_worse: bool = False
    """Build on a rung even where it made things worse."""
    judge: bool = True
    """Before weights are rounded better, look whether activations alone meet the gate; where they miss it, the steps
    `calibrate` and `set_precision` are climbed as far as they help, unless the recipe has them itself."""


Share = Annotated[float, Field(ge=0, le=1)]


class Qat(Config):
    """Quantization-aware training."""

    when: Literal["missed", "worthwhile", "never", "always"] = "missed"
    """`missed`: where no rung meets the gate; `worthwhile`: where a forecast by a few steps of training says as well
    that QAT may meet it."""
    range_learning: bool | None = None
    """Train activation ranges (true), freeze them (false), or let the search choose (null)."""
    optimizer: str = "adam"
    """`adam`, `adamw`, `sgd` (with momentum 0.9), or `package.module:function`, called with groups of parameters."""
    optimizer_kwargs: dict[str, Any] = Field(default_factory=dict)
    loss: str = "auto"
    """`cross_entropy`, `mean_squared_error`, `distillation`, `soft_targets`, `torch.nn:BCEWithLogitsLoss` and the like,
    or `package.module:function`, which returns a loss `(outputs, target) -> scalar`. `auto`: cross entropy with class
    labels, mean squared error with real-valued ones, else distillation."""
    loss_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the factory; a list of numbers for `weight` or `pos_weight` of a `torch.nn` loss is a tensor."""
    distillation: Share | None = 0.0
    """Weight of distillation from FP32 beside the loss on labels; null lets the search choose."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Of the soft targets that class scores are distilled with."""
    features: tuple[str, ...] = ()
    """Module paths whose outputs are to match FP32's as well."""
    feature_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of that match beside the rest of the loss."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Training batch size over all processes of a trial; null takes `data.batch_size`."""
    range_lr_scale: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of ranges, as a multiple of that of weights."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """`step` divides the rate by 10 every `decay_period` epochs."""
    warmup: Annotated[float, Field(ge=0)] = 0.0
    """Epochs in which the rate rises to its first value."""
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradients are scaled down to this norm."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` trains under autocast."""
    batch_norms: Literal["frozen", "reestimate"] = "frozen"
    """Statistics of batch norms that are not folded: as they are, or taken anew from calibration data afterwards."""
    oscillations: Literal["measure", "freeze"] = "measure"
    """Weights that jump to and fro between two steps of the grid: count them, or hold them where they are most."""


Span = tuple[int, int]
DURATION = re.compile(
    r"(?:(\d+(?:\.\d+)?)\s*d)?\s*(?:(\d+(?:\.\d+)?)\s*h)?\s*(?:(\d+(?:\.\d+)?)\s*m)?\s*(?:(\d+(?:\.\d+)?)\s*s)?"
)


def _as_seconds(value: Any) -> Any:
    """Turn `2h`, `1d 12h` or `90m` into seconds; leave a number alone."""
    if not isinstance(value, str):
        return value
    found = DURATION.fullmatch(value.strip())
    if found is None or not any(found.groups()):
        raise ValueError("write a time such as 90m, 2h or '1d 12h', or a number of seconds")
    return sum(float(number or 0) * unit for number, unit in zip(found.groups(), (86400, 3600, 60, 1), strict=True))


class Search(Config):
    """The Optuna study over QAT's hyper-parameters."""

    max_trials: Annotated[int, Field(ge=1)] = 8
    max_time: Annotated[float, Field(gt=0), BeforeValidator(_as_seconds)] | None = None
    """A time such as `90m` or `2h`, after which no epoch is begun; null is no limit."""
    stop_at_gate: bool = True
    """End the study with the first trial that meets the gate on the validation part, and on the test part as well."""
    lr: tuple[float, float] | None = None
    """Lowest and highest learning rate, searched on a log scale; null is a tenth of `model.final_lr` to ten times,
    or 1e-7 to 1e-3 where that is null."""
    epochs: Span = (15, 20)
    decay_period: Span = (5, 10)
    """The learning rate is divided by 10 every so many epochs."""
    distillation: tuple[Share, Share] = (0.0, 1.0)
    """Where `qat.distillation` is null: its lowest and highest weight."""
    storage: str | None = None
    """Optuna storage URL, such as `postgresql://user@host/database`; null is a file in the run folder."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that train trials at the same time; each takes its share of the processor's cores."""
    engine: Literal["local", "ray"] = "local"
    """What starts the workers: this machine, or a Ray cluster (`pip install qatflow[ray]`)."""
    devices_per_trial: Annotated[int, Field(ge=1)] = 1
    """GPUs (without any: processes) that one trial trains on, by distributed data parallelism."""
    lost_after: Annotated[float, Field(ge=1, le=86_400), BeforeValidator(_as_seconds)] = 180.0
    """A time such as `3m` without a sign of life of another machine, after which its trial is taken over."""

    @field_validator("lr", "epochs", "decay_period")
    @classmethod
    def _in_order(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] <= value[1]:
            raise ValueError("write [low, high] with 0 < low <= high")
        return value

    @field_validator("distillation")
    @classmethod
    def _weights_in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("write [low, high] with low <= high")
        return value


class Export(Config):
    """What is written to `export/`, besides the weights and the encodings file."""

    encodings_version: Literal["0.6.1", "1.0.0", "2.0.0"] = "1.0.0"
    """Of AIMET's file."""
    onnx: bool | None = None
    """An ONNX file with Q/DQ; null is the target's own way: all have one but xnnpack."""
    pt2: bool = False
    """A `torch.export` file with PyTorch's quantize and dequantize ops."""
    pte: bool | None = None
    """An ExecuTorch program for XNNPACK; for target xnnpack, with `pip install
    qatflow[executorch]`. Null is the target's own way: xnnpack has one, where ExecuTorch is installed."""
    batch: Annotated[int, Field(ge=1)] | None = None
    """Fix the batch of the file, which some backends ask for; null leaves that of an ONNX file free, and an ExecuTorch
    program then takes one sample at a time."""
    verify: bool = True
    """Run the file in its target's runtime: its metric is the last gate."""
    weights: Literal["auto", "int8", "uint8"] = "auto"
    """How a target that takes both, as onnxruntime does, gets signed weights. `uint8` (around 128) is exact on every
    processor, `int8` faster on x86 with VNNI; `auto` takes `int8` where this machine's processor is exact with it."""
    packed_int4: bool | None = None
    """Store weights of up to 4 bits as INT4, two to a byte; null is the target's own way: all do but onnxruntime
    and openvino, which then compute in float."""
    opset: Annotated[int, Field(ge=13, le=21)] | None = None
    """Null takes 18, and 21 where 16 or 4 bits need it."""


class Report(Config):
    """The accuracy report."""

    html: bool = True


class Run(Config):
    """Where the run leaves its files."""

    dir: str | None = None
    """The run folder; null makes a new one under `reports/<recipe>/`. An old one is resumed."""


def _typed_steps(value: Any) -> Any:
    """Let `Recipe(steps={"adaround": {...}})` name the step's config by its key."""
    if not isinstance(value, dict):
        return value
    unknown = [name for name in value if name not in STEP_CONFIGS and not is_outside(name)]
    if unknown:
        message = f"no step is called {', '.join(map(repr, unknown))}; allowed: {', '.join(STEP_CONFIGS)}"
        raise ValueError(message)
    return {
        name: body if isinstance(body, StepConfig) else STEP_CONFIGS.get(name, UntypedStep).model_validate(body or {})
        for name, body in value.items()
    }


def _known_target(value: str) -> str:
    if value not in TARGETS and not is_outside(value):
        message = f"no target is called {value!r}; {allowed_values(value, TARGETS)}"
        raise ValueError(message)
    return value


class Recipe(Config):
    """One run, complete: running it again repeats the run."""

    SECTIONS: ClassVar[tuple[str, ...]] = (
        "model",
        "data",
        "precision",
        "calibration",
        "gate",
        "ladder",
        "qat",
        "search",
        "export",
        "report",
        "run",
    )

    name: Annotated[str, Field(pattern=r"^\w[\w. -]*(/\w[\w. -]*)*$")] = "recipe"
    """Also the folder under `reports/`."""
    description: str = ""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    model: Model
    data: Data
    target: Annotated[str, AfterValidator(_known_target)] = "onnxruntime"
    """A name of ours, or `package.module:TABLE`; the package is one named in `trust`."""
    precision: Annotated[Precision, BeforeValidator(as_precision)] = Precision()
    calibration: Calibration = Calibration()
    steps: Annotated[dict[str, SerializeAsAny[StepConfig]], BeforeValidator(_typed_steps)] = Field(default_factory=dict)
    gate: Gate = Gate()
    ladder: Ladder = Ladder()
    qat: Qat = Qat()
    search: Search = Search()
    export: Export = Export()
    report: Report = Report()
    run: Run = Run()
