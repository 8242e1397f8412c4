"""What a run leaves, as values: `RunResult` and its records.

The report, the CSVs and every tool read these and nothing else; `result.json` is one `RunResult`. A number that was
not measured is null, never a stand-in.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from qatflow.results.design import DesignRecord as DesignRecord
from qatflow.results.forecast import Forecast as Forecast
from qatflow.results.forecast import Probe as Probe
from qatflow.results.latency import LatencyRecord as LatencyRecord
from qatflow.results.record import Record as Record
from qatflow.results.speed import SpeedRecord as SpeedRecord
from qatflow.results.verification import FloatLayer as FloatLayer
from qatflow.results.verification import TensorDifference as TensorDifference
from qatflow.results.verification import Verification as Verification

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA_VERSION = 3

Note = bool | int | float | str
Part = Literal["validation", "test"]
"""Parts of the data that a value may be from: rungs are chosen on `validation` where there is one, and judged on
`test`."""


class Verdict(Enum):
    """The decision about one candidate. `sentence` says it to a person."""

    MET = "met"
    WITHIN_NOISE = "within_noise"
    MISSED = "missed"
    ANOMALOUS = "anomalous"
    BASELINE = "baseline"

    @property
    def sentence(self) -> str:
        """Return the verdict as a sentence for people."""
        return SENTENCES[self]


SENTENCES = {
    Verdict.MET: "The candidate is as good as the gate asks.",
    Verdict.WITHIN_NOISE: "The candidate is as good as the gate asks, but chance could have made it look so: more "
    "evaluation samples would tell.",
    Verdict.MISSED: "The candidate is worse than the gate allows.",
    Verdict.ANOMALOUS: "The candidate is implausibly better than FP32: check the evaluation before you trust it.",
    Verdict.BASELINE: "The FP32 model, which every candidate is compared with.",
}


class GateRecord(Record):
    """The gate as it was applied."""

    metric: str
    """As people know it: `accuracy`, `F1`, `RMSE`, or the recipe's own label."""
    higher_is_better: bool
    max_drop: float | None
    """Largest allowed drop on the test part, in the metric's unit (a relative one is already multiplied with FP32);
    null where only the value counts."""
    max_drop_text: str
    """As the recipe has it, `0.01` or `1%`; empty where there is none."""
    max_drop_share: float | None = None
    """The allowed drop as a share of FP32, where the recipe has one."""
    worst_value: float | None = None
    """The least value that passes, the largest where lower is better; null where only the drop counts."""
    strict: bool
    confidence: float
    """Of the first look at the test part; every further one is taken at less risk."""
    samples: int
    """Samples of the test part."""
    chosen_on: Part = "test"
    """The part that rungs and trials are ranked on."""
    chosen_samples: int | None = None
    """How many samples that part has; null in results of schema 1."""

    def limit(self, fp32: float) -> float | None:
        """Return the worst value that passes beside FP32's `fp32` on the same samples; null where any does."""
        sign = 1.0 if self.higher_is_better else -1.0
        drop = self.max_drop if self.max_drop_share is None else self.max_drop_share * abs(fp32)
        bounds = [None if drop is None else fp32 - sign * drop, self.worst_value]
        return max((one for one in bounds if one is not None), key=lambda bound: sign * bound, default=None)


class OutputRecord(Record):
    """One output of the model, or one operand of a concat that only leaves it."""

    name: str
    sqnr_db: float | None
    """Signal to quantization-noise ratio against FP32's, in dB; null where a value is not finite."""


class CandidateRecord(Record):
    """One row of the ladder: FP32 itself, a rung, a QAT winner, or the deployed file."""

    id: str
    """Also the folder name under `candidates/`."""
    stage: Literal["fp32", "ptq", "qat", "deployed"]
    steps: tuple[str, ...] = ()
    """The kept steps this candidate stands on, its own last."""
    design: DesignRecord | None = None
    """How it is quantized; null for FP32, and in results of schema 1 and 2."""
    part: Part = "test"
    """The part of the data that the figures of this row are from."""
    look: int | None = None
    """Where the candidate was judged on the test part: which look at it that was, from 1; null where it was only
    compared with other candidates."""
    samples: int | None = None
    """How many samples of that part were measured."""
    value: float | None
    """The metric; null where it is not a finite number."""
    fp32: float | None
    """FP32's, on the same samples."""
    drop: float | None
    """Loss against FP32 in the metric's unit; negative is a gain."""
    drop_low: float | None
    drop_high: float | None
    """Bounds of the confidence interval of the drop; null where there is none."""
    confidence: float | None = None
    """Of that interval."""
    lost: int | None = None
    """Samples that FP32 has right and the candidate has not; null where samples are not right or wrong."""
    gained: int | None = None
    """Samples that the candidate has right and FP32 has not."""
    needed: int | None = None
    """About how many samples would settle a verdict within noise."""
    verdict: Verdict
    passed: bool
    sentence: str = ""
    """What the verdict rests on, in words."""
    sqnr_db: float | None
    """Signal to quantization-noise ratio against FP32's, in dB, of the output that has the lowest."""
    outputs: tuple[OutputRecord, ...] = ()
    """That of every output, where there are several."""
    kept: bool
    """Whether later rungs build on it."""
    reason: str = ""
    """Why it was left out, or what a reader should know."""
    seconds: float
    resumed: bool = False
    """Taken from the run folder instead of being computed again."""
    notes: dict[str, Note] = Field(default_factory=dict)
    """What the step counted and measured."""


class EpochRecord(Record):
    """One epoch of one trial; epoch 0 is the PTQ candidate that the trial starts from."""

    epoch: int
    lr: float
    train_loss: float | None
    value: float | None
    """The metric on the validation part."""
    seconds: float
    oscillating: float = 0.0
    """Share of weights that jump to and fro between two steps of the grid."""
    frozen: float = 0.0
    """Share of weights that are held where they are, since they did."""


class TrialRecord(Record):
    """One QAT trial of the Optuna study."""

    number: int
    state: Literal["complete", "pruned", "failed", "running"]
    probe: bool = False
    """One of the short first trials that find the order of magnitude of the learning rate."""
    lr: float
    epochs: int
    decay_period: int
    range_learning: bool
    distillation: float = 0.0
    """Weight of FP32's outputs in the loss, beside the labels."""
    value: float | None
    """Best metric on the validation part."""
    best_epoch: int | None
    seconds: float
    reason: str = ""
    """Why it failed, why it was ended early, or what was rolled back."""
    history: tuple[EpochRecord, ...] = ()


class TensorRecord(Record):
    """One quantized tensor of the best candidate."""

    layer: str
    tensor: str
    kind: Literal["weight", "activation"]
    bits: int
    signed: bool
    symmetric: bool
    channels: int
    """Number of scales: 1 is per tensor."""
    scale_min: float
    scale_max: float
    range_min: float
    range_max: float
    zero_point: int | None
    """Null where channels have different ones."""
    sqnr_db: float | None
    """Of the tensor itself."""
    output_sqnr_db: float | None = None
    """Of the outputs if nothing else were quantized, estimated in one pass; null where that is no number."""
    clipped: float | None = None
    """Share of the values that lie outside the range by more than a step."""
    levels: int | None = None
    """How many levels of its grid the middle 99 % of the values take."""
    why: str = ""
    """The likely cause of its noise; empty where that is plain rounding."""
    helps: str = ""
    """What usually helps against that."""


class FloatTensor(Record):
    """One tensor that stays in float, and why."""

    layer: str
    tensor: str
    op: str
    reason: str


class Judgement(Record):
    """What quantized activations alone cost, with weights in float; what may help is climbed as rungs."""

    drop: float | None
    drop_low: float | None
    passed: bool
    hopeless: bool
    """Whether even the lower end of the drop's interval misses the gate."""
    sqnr_db: float | None
    advice: str = ""
    """What a run of schema 1 or 2 advised, which did not climb it."""

    @property
    def sentence(self) -> str:
        """What to make of it, in words."""
        if self.passed:
            return "activations alone (weights in float) meet the gate: rounding weights better can help"
        said = "activations alone (weights in float) miss the gate, which better rounding of weights seldom mends"
        return f"{said}; {self.advice or 'other ranges, or more bits for the activations that hurt most, may'}"


class Suggestion(Record):
    """What to try next."""

    command: str
    """To paste."""
    why: str
    """What it does, in words."""
    measured: str = ""
    """What it comes to, where the run has measured that; empty where nobody has tried it on this model."""

    @property
    def standing(self) -> str:
        """`measured: ...` or `untried`."""
        return f"measured: {self.measured}" if self.measured else "untried"


class RunResult(Record):
    """One run, complete."""

    schema_version: int = SCHEMA_VERSION
    name: str
    description: str = ""
    status: Literal["running", "finished", "interrupted", "failed"]
    error: str = ""
    verdict: Verdict | None
    """Of what is shipped; null until the run has finished."""
    passed: bool
    """Whether what is shipped meets the gate: the metric, and the speed where one is asked for."""
    metric_passed: bool | None = None
    """The metric's part of that; null until the run has finished."""
    gate: GateRecord | None
    fp32: float | None
    """FP32's metric on the test part."""
    best: str | None
    """Id of the best candidate, or of the best so far."""
    remaining: tuple[str, ...] = ()
    """What had still to be done, in order and in words; what was under way comes first."""
    command: str = ""
    """The command line that goes on with the run, or does it again."""
    looks: int = 0
    """How often a candidate was judged on the test part."""
    deployed: float | None = None
    """The metric of the exported file in its runtime; null until that is measured."""
    verification: Verification | None = None
    """Null where no file was run."""
    speed: SpeedRecord | None = None
    """Null where `gate.min_speedup` asks for nothing, or the exported file was not timed yet."""
    candidates: tuple[CandidateRecord, ...] = ()
    activations_only: Judgement | None = None
    """Null where the gate was met before weights were rounded, or no step rounds any."""
    forecast: Forecast | None = None
    """What QAT was expected to come to; null where that was not asked."""
    trials: tuple[TrialRecord, ...] = ()
    training_error: str = ""
    """Why QAT ended early, where it did by a failure; what the ladder found is shipped all the same."""
    tensors: tuple[TensorRecord, ...] = ()
    float_tensors: tuple[FloatTensor, ...] = ()
    timings: dict[str, float] = Field(default_factory=dict)
    """Seconds per stage of the run."""
    artefacts: dict[str, str] = Field(default_factory=dict)
    """What was written, by name, as paths relative to the run folder."""
    suggestions: tuple[Suggestion, ...] = ()
    """What to try next, the most promising first; at most four."""
    notes: tuple[str, ...] = ()
    """What a user should know of the run, as it was told."""
    export_notes: dict[str, Note] = Field(default_factory=dict)
    """What a user of the exported files should know."""
    started: str
    """ISO 8601, UTC."""
    seconds: float

    @property
    def folder(self) -> Path | None:
        """The run folder; None where the result was not read from one or left in one."""
        found: Path | None = self.__dict__.get("folder")
        return found

    def in_folder(self, folder: Path) -> RunResult:
        """Return the same result, which knows its folder; that is not stored."""
        found = self.model_copy()
        found.__dict__["folder"] = folder  # beside the fields: neither stored nor compared
        return found

    @property
    def accurate(self) -> bool:
        """Whether the metric passes, however fast the file is."""
        return self.passed if self.metric_passed is None else self.metric_passed

    @property
    def too_slow(self) -> bool:
        """Whether the exported file is slower than `gate.min_speedup` asks."""
        return self.speed is not None and not self.speed.passed

    @property
    def frames(self) -> dict[str, DataFrame]:
        """The result as pandas frames: `results`, `layers`, `trials`, `epochs` and `float_tensors`."""
        from qatflow.results import tables  # pandas takes a while to import

        every = (tables.results, tables.layers, tables.trials, tables.epochs, tables.float_tensors)
        return {one.__name__: one(self) for one in every}

    def __repr__(self) -> str:
        from qatflow.results.notebook import summary

        return f"<RunResult {summary(self)}>"

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        """The ladder as a table, for notebooks."""
        from qatflow.results.notebook import ladder_table

        return ladder_table(self)

    @property
    def winner(self) -> CandidateRecord | None:
        """The best candidate's record: as it was judged on the test part, where that was done."""
        found = [candidate for candidate in self.candidates if candidate.id == self.best]
        judged = [one for one in found if one.look is not None and one.notes == found[-1].notes]
        return next(reversed(judged or found), None)
