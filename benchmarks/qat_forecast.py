"""What a forecast says of QAT, beside what QAT then really recovers, on the rows of `qat_recovery`.

Both look at the 512 images that epochs are chosen by. The probes train at the three highest rates that a recipe without
one searches, on other orders of the batches than the trials, which are those of `qat_recovery`; what is recovered
is that of the best rate. `begun` and `worth it` are for a gate: whether the forecast begins QAT, and whether a trial
meets it; neither is told where the start meets it already.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.data import TensorDataset

from benchmarks import mnist_networks
from benchmarks.qat_recovery import Start, accuracy, our_terms, start_of
from qatflow import Network, Simulation
from qatflow.qat import forecast
from qatflow.qat.schedule import Settings
from qatflow.qat.space import PROBED_RATES
from qatflow.qat.train import train
from qatflow.qat.trial import Start as Begun
from qatflow.recipe import Data, Gate
from qatflow.results.gate import Measurement, meets
from qatflow.tasks.data import batches
from qatflow.tasks.evaluate import Evaluator
from qatflow.tasks.metrics import METRICS

RATES = PROBED_RATES[-3:]
DECAY_PERIOD, PROBE_SEED = 5, 1
Row = dict[str, object]


@dataclass(frozen=True)
class Told:
    """What a forecast says: the parts and probes that it rests on, and its value with the range."""

    fp32: Measurement
    start: Measurement
    weights_only: float
    activations_only: float
    probes: list[forecast.Probed]
    sqnr_db: float
    expected: forecast.Expected
    seconds: float


def told_of(start: Start, epochs: int) -> Told:
    """Forecast what a trial of so many epochs makes of a start, with the parts of the engine's own forecast."""
    began = time.perf_counter()
    network, encodings = start.trainable
    validation = _evaluator(network)
    fp32 = validation.evaluate(network.fp32_graph).measurement
    begun = validation.evaluate(_simulation(start).model)
    terms = replace(our_terms(network, PROBE_SEED), start=begun.measurement)
    trial_steps = epochs * len(terms.train)
    steps = forecast.steps_of_each(trial_steps, len(RATES))

    def probed(rate: float) -> forecast.Probed:
        settings = Settings(rate, 1, DECAY_PERIOD, range_learning=True, schedule="cosine")
        terms = replace(our_terms(network, PROBE_SEED), start=begun.measurement)
        return forecast.probe(_simulation(start), terms, validation.evaluate, settings, steps, forecast.MOST_SECONDS)

    probes = [probed(rate) for rate in RATES]
    expected = forecast.expected(Gate(), fp32, begun, probes, trial_steps)
    halves = [validation.evaluate(one.model) for one in forecast.halves(Begun(network, encodings))]
    weights, activations = (one.measurement.value for one in halves)
    seconds = time.perf_counter() - began
    return Told(fp32, begun.measurement, weights, activations, probes, begun.sqnr_db, expected, seconds)


def recovered(start: Start, epochs: int) -> tuple[float, float, float]:
    """Return the best validation accuracy that trials at the rates come to, that model's on test, and the seconds."""
    began = time.perf_counter()
    _, validation, test = mnist_networks.parts()
    found = []
    for rate in RATES:
        simulation = _simulation(start)
        train(simulation, our_terms(start.trainable[0], 0), Settings(rate, epochs, DECAY_PERIOD, range_learning=True))
        found.append((accuracy(simulation.model, validation), accuracy(simulation.model, test)))
    return *max(found), time.perf_counter() - began


def row_of(model: str, bits: str, start: str, epochs: int) -> Row:
    """Forecast a start, train it, and return both."""
    begun = start_of(model, bits, start, "qatflow", None)
    told = told_of(begun, epochs)
    validation, test, seconds = recovered(begun, epochs)
    probes = [one.record() for one in told.probes]
    return {
        "model": model,
        "bits": bits,
        "start": start,
        "fp32": told.fp32.value,
        "untrained": told.start.value,
        "weights_only": told.weights_only,
        "activations_only": told.activations_only,
        "sqnr_db": told.sqnr_db,
        **{f"{name} {one.lr:.0e}": getattr(one, name) for one in probes for name in ("value", "sqnr_db")},
        "steps": probes[0].steps,
        "low": told.expected.low,
        "expected": told.expected.value,
        "high": told.expected.high,
        "recovered": validation,
        "recovered_test": test,
        "epochs": epochs,
        "forecast_seconds": round(told.seconds, 1),
        "training_seconds": round(seconds, 1),
    }


def shown(rows: Sequence[Row], drops: Sequence[float]) -> list[Row]:
    """Return rows for people: percent, and by each gate whether QAT is begun and whether it was worth it."""
    return [_shown(row, drops) for row in rows]


def _shown(row: Row, drops: Sequence[float]) -> Row:
    names = ("fp32", "untrained", "weights_only", "activations_only")
    line: Row = {name: row[name] for name in ("model", "bits", "start")} | {name: _percent(row[name]) for name in names}
    line["expected"] = f"{_percent(row['expected'])} ({_percent(row['low'])} to {_percent(row['high'])})"
    line["recovered"] = _percent(row["recovered"])
    for drop in drops:
        untrained, begun, came_to = (_within(row, name, drop) for name in ("untrained", "high", "recovered"))
        words = "begun" if begun else "not begun", "worth it" if came_to else "not worth it"
        line[f"gate {100 * drop:g}"] = "" if untrained else ", ".join(words)
    return line


def _within(row: Row, name: str, drop: float) -> bool:
    fp32, value = (Measurement(float(str(row[one])), None, higher_is_better=True) for one in ("fp32", name))
    return meets(Gate(max_drop=drop), fp32, value)


def _percent(share: object) -> str:
    return f"{float(str(share)) * 100:.1f}"


def _simulation(start: Start) -> Simulation:
    network, encodings = start.trainable
    simulation = Simulation(network)
    simulation.load_encodings(encodings)
    return simulation


def _evaluator(network: Network) -> Evaluator:
    samples = batches(TensorDataset(*mnist_networks.parts()[1]), Data(name="digits", batch_size=128))
    return Evaluator(network.fp32_graph, lambda: samples, METRICS["accuracy"], torch.device("cpu"), "validation")
