"""Is QAT worth it, before it is paid for: what a few steps of training suggest that a trial comes to.

The candidate is measured with only its weights, and with only its activations quantized. Then probes train it: trials
in miniature, whose rate falls to nothing within a few steps, together about a tenth of a trial, at rates that move
something in a few steps. What a trial comes to is told by a model without parameters to fit: what is left of the drop
falls like `1 / (1 + c t)` with the steps `t`, and the probe says what `c` is. The worst that is expected is what the
probe came to. The best is the same curve for the most that the probe may have gained by the interval of its gain, or
for the noise of the outputs where that fell faster: it is fine where a metric is coarse, or as low as chance. No
curve is drawn further than `FURTHEST` times the probe; a start that no probe moves stays where it is. The model knows
no floor: what weights of so few bits cannot express is not foreseen.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import fx

from qatflow.errors import DataError
from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate
from qatflow.qat import space
from qatflow.qat.schedule import Settings
from qatflow.qat.search import study_key
from qatflow.qat.train import Passes, Training, train
from qatflow.qat.trial import Start, Worker
from qatflow.quant import fused
from qatflow.quant.saved import finite
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Gate
from qatflow.results.comparison import drop_of
from qatflow.results.forecast import Forecast, Probe
from qatflow.results.gate import Measurement, meets, paired_interval
from qatflow.results.store import key_of, read_usable, write_json
from qatflow.tasks.data import Batch
from qatflow.tasks.evaluate import Evaluation

FILE = "forecast.json"
SHARE = 10
"""A trial is so many times as long as all probes together."""
FEWEST, MOST = 16, 48
"""Steps of a probe, whatever a trial takes."""
MOST_SECONDS = 120.0
"""For the steps of all probes together."""
FURTHEST = 20.0
Evaluate = Callable[[fx.GraphModule], Evaluation]


@dataclass(frozen=True)
class Probed:
    """What a probe came to, at a rate, after so many steps; without an evaluation where its loss was not finite."""

    rate: float
    steps: int
    evaluation: Evaluation | None

    def record(self) -> Probe:
        """Return it for the result."""
        found = self.evaluation
        value, ratio = (None, None) if found is None else (finite(found.measurement.value), finite(found.sqnr_db))
        return Probe(lr=self.rate, steps=self.steps, value=value, sqnr_db=ratio)


@dataclass(frozen=True)
class Expected:
    """What a trial is expected to come to, in the metric: about, at worst and at best."""

    value: float
    low: float
    high: float


def forecast(bench: Bench, start: Candidate) -> Forecast:
    """Return what QAT is expected to make of a candidate; what an earlier start of the run found is not probed again.

    Raises:
        QatflowError: training cannot work with this recipe and data, or the candidate's metric is not finite.
    """
    path, key = (
        bench.run_folder / FILE,
        key_of("forecast", study_key(bench, start), bench.recipe.gate.confidence, bench.recipe.gate.resamples),
    )
    found = _stored(path, key, bench.progress.note)
    if found is None:
        bench.progress.stage("forecast: a few steps of training, to see what QAT may recover")
        found = _probed(bench, start)
        write_json(path, {"key": key, "forecast": found.model_dump(mode="json")})
    return _decided(found, bench)


def _stored(path: Path, key: str, note: Callable[[str], None]) -> Forecast | None:
    stored = read_usable(path, note)
    if isinstance(stored, dict) and stored.get("key") == key:
        with suppress(ValueError):  # of another form: it is made anew
            return Forecast.taken(stored.get("forecast")).model_copy(update={"resumed": True})
    return None


def _decided(found: Forecast, bench: Bench) -> Forecast:
    """Return a forecast with what the gate makes of it, which may be another one than at an earlier start."""
    higher = bench.task.metric.higher_is_better
    fp32, best = (Measurement(one, None, higher) for one in (found.fp32, found.high))
    limit = bench.gate_record.limit(found.fp32)
    return found.model_copy(update={"worthwhile": meets(bench.recipe.gate, fp32, best), "limit": limit})


def _probed(bench: Bench, start: Candidate) -> Forecast:
    """Measure and train for a forecast; what the gate makes of it is still to be decided."""
    began, recipe = time.perf_counter(), bench.recipe
    worker = Worker(bench, Start(start.network, start.encodings), None)
    rates, trial_steps = space.forecast_rates(recipe), recipe.search.epochs[1] * len(worker.training.train)
    steps, seconds = steps_of_each(trial_steps, len(rates)), MOST_SECONDS / len(rates)

    evaluate: Evaluate = worker.evaluator.evaluate

    def probed(rate: float) -> Probed:
        simulation = bench.simulate(start.network, start.encodings)
        return probe(simulation, worker.fresh_training(), evaluate, space.miniature(recipe, rate), steps, seconds)

    probes, parts = [probed(rate) for rate in rates], [evaluate(one.model) for one in halves(worker.start)]
    weights, activations = (finite(one.measurement.value) for one in parts)
    return Forecast(
        of=start.record.id,
        fp32=worker.fp32.value,
        start=worker.untrained.measurement.value,
        sqnr_db=finite(worker.untrained.sqnr_db),
        weights_only=weights,
        activations_only=activations,
        probes=tuple(one.record() for one in probes),
        trial_steps=trial_steps,
        **asdict(expected(recipe.gate, worker.fp32, worker.untrained, probes, trial_steps)),
        limit=None,
        worthwhile=False,
        seconds=time.perf_counter() - began,
    )


def halves(start: Start) -> tuple[Simulation, Simulation]:
    """Return a candidate with only its weights quantized, and with only its activations.

    The latter without what was fitted to rounded weights, which is wrong beside float ones.
    """
    weights, activations = Simulation(start.network), Simulation(start.network.unfitted())
    for one in (weights, activations):
        one.load_encodings(start.encodings)
    weights.quantize_activations(False)
    activations.quantize_weights(False)
    return weights, activations


def steps_of_each(trial_steps: int, probes: int) -> int:
    """Return how many steps each of some probes takes."""
    return min(trial_steps, max(FEWEST, min(MOST, trial_steps // (SHARE * probes))))


def probe(
    simulation: Simulation, training: Training, evaluate: Evaluate, settings: Settings, steps: int, seconds: float
) -> Probed:
    """Train a simulation for a few steps, op by op: that is too little to do for a compiler to pay.

    Args:
        simulation: calibrated; it is trained in place.
        training: as for a trial, with what was measured of the start.
        evaluate: measures it then.
        settings: of one epoch, which ends after the steps.
        steps: how many.
        seconds: after which no step is begun.
    """
    few, found = _Few(training.train, steps, seconds), list[Evaluation]()

    def validate(model: fx.GraphModule) -> Measurement:
        found.append(evaluate(model))
        return found[-1].measurement

    with fused.choice(False):
        train(simulation, replace(training, train=few, validate=validate), settings)
    return Probed(settings.lr, few.done, found[-1] if found else None)


def expected(gate: Gate, fp32: Measurement, start: Evaluation, probes: Sequence[Probed], trial_steps: int) -> Expected:
    """Return what a trial is expected to come to: of each figure the best that a probe gives.

    Raises:
        DataError: the metric of the start is not finite.
    """
    if not math.isfinite(start.measurement.value):
        raise DataError("the metric is not finite where training would start: there is no drop to recover a share of")
    drop = drop_of(fp32, start.measurement)
    if drop <= 0:  # there is nothing to recover
        return Expected(*(start.measurement.value,) * 3)
    shares = zip(*(_left(gate, fp32, drop, start, one, trial_steps) for one in probes), strict=True)
    return Expected(*(fp32.value - fp32.sign * drop * min(share) for share in shares))


def _left(
    gate: Gate, fp32: Measurement, drop: float, start: Evaluation, probed: Probed, trial_steps: int
) -> tuple[float, float, float]:
    """Return which shares of a drop a probe says to be left: about, at worst and at best."""
    left = _drop_left(fp32, drop, probed)
    least, times = max(0.0, left - _more_gained(gate, start, probed) / drop), min(FURTHEST, trial_steps / probed.steps)
    return left_after(times, left), left, left_after(times, min(left, least, _noise_left(start, probed)))


def left_after(times: float, left: float) -> float:
    """Return what is left of 1 after so many times the steps after which `left` of it was left; below 0 it stays."""
    return left if left <= 0 else left / (left + times * (1 - left))


def _drop_left(fp32: Measurement, drop: float, probed: Probed) -> float:
    """Return which share of a drop a probe left, at most 1; 1 where it broke."""
    reached = math.nan if probed.evaluation is None else drop_of(fp32, probed.evaluation.measurement)
    return min(1.0, reached / drop) if math.isfinite(reached) else 1.0


def _more_gained(gate: Gate, start: Evaluation, probed: Probed) -> float:
    """Return how much more than it measured a probe may have gained, by the gate's interval; 0 where it has none."""
    if probed.evaluation is None:
        return 0.0
    reached, began = probed.evaluation.measurement, start.measurement
    low, _ = paired_interval(gate, began, reached)
    return max(0.0, drop_of(began, reached) - low) if math.isfinite(low) else 0.0


def _noise_left(start: Evaluation, probed: Probed) -> float:
    """Return which share of the power of the outputs' noise a probe left, at most 1; 1 where it is not known."""
    fewer_db = math.nan if probed.evaluation is None else probed.evaluation.sqnr_db - start.sqnr_db
    return 1.0 if math.isnan(fewer_db) else min(1.0, 10 ** (-fewer_db / 10))


class _Few:
    """The first steps of training, in as many passes as they take, until their time is up."""

    def __init__(self, made: Passes, steps: int, seconds: float) -> None:
        self._made = made
        self._steps = steps
        self._seconds = seconds
        self._seed = 0
        self.done = 0

    def reshuffle(self, seed: int) -> None:
        self._seed = seed
        self._made.reshuffle(seed)

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        end = time.perf_counter() + self._seconds
        while self.done < self._steps:
            for batch in itertools.islice(self._made, self._steps - self.done):
                yield batch
                self.done += 1
                if time.perf_counter() > end:
                    return
            self.reshuffle(self._seed + 1)
