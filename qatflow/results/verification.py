"""What the exported file does in a runtime."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qatflow.results.latency import LatencyRecord
from qatflow.results.record import Record

EXACT_PRECISION = "f32"


class TensorDifference(Record):
    """One tensor whose integers differ between the runtime and the simulation, given the same inputs."""

    tensor: str
    layer: str
    differing: float
    """Share of the elements that are not equal."""
    steps: int
    """The largest difference, in steps of the grid."""
    sqnr_db: float
    """Signal to the noise of that difference, in dB."""
    agrees: bool
    """Whether that is no more than rounding in another order."""


class FloatLayer(Record):
    """One convolution or product of the exported file that the runtime does not run on integers."""

    layer: str
    op: str
    reason: str


class ByDefault(Record):
    """What a runtime makes of the file where nobody sets anything, if that is not what the file says."""

    precision: str
    """What it computes in where it does not compute in integers."""
    agreement: float | None
    """As `Verification.agreement`."""
    sqnr_db: float | None


class Verification(Record):
    """What the exported file does in a runtime, beside what was promised."""

    file: str
    runtime: str
    processor: str
    is_target: bool
    """Whether that runtime is the recipe's target; else the file is checked, but not timed."""
    stands_in: str = ""
    """Why another runtime had to stand in for the target's own; empty where none had to."""
    settings: str = ""
    """What was set, so that the runtime computes what the file says; empty where nothing has to be."""
    by_default: ByDefault | None = None
    """What it does without; null where nothing has to be set."""
    exact_on: str
    """The processors on which the file computes what the simulation does."""
    weights: Literal["int8", "uint8"]
    """How signed weights are stored."""
    samples: int
    of_samples: int | None = None
    """How many evaluation samples there are, where a simulator is so slow that only the first were run."""
    agreement: float | None
    """Share of evaluation samples with the same best class as in the simulation; null where there are no classes."""
    sqnr_db: float | None
    """Of the outputs, against the simulation's, in dB."""
    compared: int
    """Tensors inside the model that were compared, each given the runtime's own inputs."""
    worst: tuple[TensorDifference, ...] = ()
    """Those that differ most, worst first."""
    layers: int = 0
    integer_layers: int = 0
    float_layers: tuple[FloatLayer, ...] = ()
    kernels: dict[str, int] = Field(default_factory=dict)
    """How often each op is in the graph that the runtime made of the file."""
    latency: LatencyRecord | None = None
    """As the runtime runs by default."""
    exact_latency: LatencyRecord | None = None
    """With `settings`; null where nothing has to be set."""
    bytes: int
    fp32_bytes: int | None = None

    @property
    def disagreeing(self) -> tuple[str, ...]:
        """Tensors that the runtime computes in another way than the simulation."""
        return tuple(one.tensor for one in self.worst if not one.agrees)

    @property
    def differs_by_default(self) -> bool:
        """Whether what the runtime does without `settings` is another thing."""
        return self.by_default is not None and self.by_default.precision != EXACT_PRECISION

    @property
    def slower(self) -> bool:
        """Whether the file was measured to be slower than FP32."""
        return self.latency is not None and self.latency.speed_up < 1 and not self.latency.too_small

    @property
    def speed(self) -> str:
        """How fast the file is, in words; empty where it was not timed."""
        if self.latency is None:
            return ""
        if self.latency.too_small:
            call = min(self.latency.int8, self.latency.fp32)
            return f"too small to time: {call:.2g} ms a call, most of it the overhead of {self.runtime} itself"
        times = f"{self.latency.int8:.3g} ms against {self.latency.fp32:.3g} ms"
        return f"{self.latency.speed_up:.2f} times as fast as FP32 ({times})"

    @property
    def verdict(self) -> Literal["verified", "disagrees", "slower"]:
        """The worst that was found."""
        return "disagrees" if self.disagreeing else "slower" if self.slower else "verified"

    @property
    def sentence(self) -> str:
        """Return the verdict as a sentence for people."""
        if self.disagreeing:
            named = ", ".join(self.disagreeing[:3]) + (", ..." if len(self.disagreeing) > 3 else "")
            return f"{self.runtime} computes {named} in another way than the simulation."
        if self.latency is not None and self.slower:
            ratio = f"{1 / self.latency.speed_up:.2f} times as long as FP32"
            return f"{self.runtime} computes what the simulation does, but takes {ratio}."
        return f"{self.runtime} computes what the simulation does."
