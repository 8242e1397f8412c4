"""What QAT is expected to come to, before it is begun."""

from __future__ import annotations

from pydantic import Field

from qatflow.results.record import Record


class Probe(Record):
    """A few steps of training, and what they came to."""

    lr: float
    steps: int = Field(ge=1)
    value: float | None
    """The metric afterwards; null where it is not finite."""
    sqnr_db: float | None
    """Of the outputs against FP32's, in dB; null where it is not known."""


class Forecast(Record):
    """What QAT is expected to make of a candidate; all values are the metric on the part that trials are chosen by."""

    of: str
    """Id of the candidate that training would start from."""
    fp32: float
    start: float
    """Of that candidate."""
    sqnr_db: float | None
    """Of its outputs against FP32's, in dB; null where it is not known."""
    weights_only: float | None
    """With its activations in float; null where it is not finite."""
    activations_only: float | None
    """With weights in float; null where it is not finite."""
    probes: tuple[Probe, ...] = Field(min_length=1)
    """In the order in which they were trained, each from the start."""
    trial_steps: int
    """Of the longest trial that the search may try."""
    value: float
    """What a trial is expected to come to."""
    low: float
    high: float
    """The worst and the best that is expected; `low` may be the better number where lower is better."""
    limit: float | None
    """The worst value that meets the gate; null where any does."""
    worthwhile: bool
    """Whether the best that is expected meets the gate."""
    seconds: float
    resumed: bool = False
    """Taken from the run folder instead of being trained for again."""

    @property
    def sentence(self) -> str:
        """What to make of it, in words."""
        steps, gate = max(one.steps for one in self.probes), "the gate"
        halves = {"weights": self.weights_only, "activations": self.activations_only}
        alone = "".join(f", {value:.4g} with {name} alone" for name, value in halves.items() if value is not None)
        if self.limit is not None:
            gate += f" ({self.limit:.4g})"
        reach = "within reach, so QAT is begun" if self.worthwhile else "out of reach, so QAT is not begun"
        return (
            f"{steps} steps of training suggest that QAT takes {self.of} from {self.start:.4g} (FP32 {self.fp32:.4g}"
            f"{alone}) to about {self.value:.4g}, between {self.low:.4g} and {self.high:.4g}: {gate} is {reach}"
        )
