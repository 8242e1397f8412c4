"""Accuracy that quantization-aware training recovers at low bits, by learning rate, beside AIMET on the same terms.

The networks of `mnist_networks`. Of the images that FP32 trained on, 1,000 train and 512 others calibrate; 512 that
nobody trained on choose the epoch, and the accuracy of that epoch on the 1,000 test images is told. Both tools get the
same batches in the same order, Adam, and a rate that is divided by 10 every five epochs. They start from where folding
batch norms and calibrating leaves them (`naive`), and from the best that they reach without training (`ptq`), by the
accuracy on the validation images and, of equals, by SQNR. Epoch 0 is the start, so training never makes it worse there.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks import mnist_networks
from benchmarks.peers import aimet, aimet_qat
from benchmarks.peers.case import Case, PeerError
from qatflow import STEPS, Network, Simulation
from qatflow.qat.devices import fabric_of
from qatflow.qat.losses import FROM_TEACHER, ON_LABELS, Objective
from qatflow.qat.optimizers import choose_optimizer
from qatflow.qat.schedule import Settings
from qatflow.qat.train import Training, train
from qatflow.quant.design import Design
from qatflow.quant.grid import sqnr_db
from qatflow.quant.prepare import captured_network
from qatflow.recipe import Data, Precision, Qat
from qatflow.recipe.steps import STEP_CONFIGS
from qatflow.results.gate import Measurement
from qatflow.steps.context import StepContext
from qatflow.tasks.data import Batches, batches

TRAINING, CALIBRATION, BATCH = 1000, 512, 32
DECAY_PERIOD = 5
LADDER = ("fold_batch_norms", "equalize", "adaround")
AIMET_LADDER = ("fold_batch_norms", "equalize", "adaround", "seqmse")
BITS = {"w4a8": (4, 8), "w4a4": (4, 4), "w2a8": (2, 8)}
STARTS = ("naive", "ptq")
Model = Callable[[Tensor], Tensor]
Row = dict[str, object]
SHARED = ("model", "bits", "start", "ranges")
"""What the runs in one row of the table for people have in common."""


@dataclass(frozen=True)
class Run:
    """One training run; two that are equal come to the same."""

    model: str
    bits: str
    start: str
    ranges: str
    rate: float
    tool: str
    epochs: int
    seed: int
    iterations: int | None
    """Of AIMET's AdaRound."""

    @property
    def settings(self) -> Settings:
        """The hyper-parameters, for both tools."""
        return Settings(self.rate, self.epochs, DECAY_PERIOD, range_learning=self.ranges == "learning")


@dataclass(frozen=True)
class Start:
    """Where training starts: a model, the name of the step that led there, and all that training it takes."""

    step: str
    model: Model
    trainable: Any


@dataclass(frozen=True)
class Trained:
    """A model at its best epoch, and why training was not undisturbed."""

    model: Model
    best_epoch: int
    note: str = ""


class SameOrder(Batches):
    """Batches whose order in the n-th pass is the same whoever trains."""

    def __init__(self, made: Batches, seed: int) -> None:
        super().__init__(made._loader, labels=True)
        self._next = seed * 1000

    def reshuffle(self, seed: int) -> None:
        """Go on to the order of the next pass; the trainer's own `seed` is not heeded."""
        super().reshuffle(self._next)
        self._next += 1


def training_batches(seed: int) -> Batches:
    """Return the training images in batches."""
    images, labels = mnist_networks.parts()[0]
    dataset = TensorDataset(images[:TRAINING], labels[:TRAINING])
    return SameOrder(batches(dataset, Data(name="digits", batch_size=BATCH), shuffle=True), seed)


def case_of(model: str, bits: str) -> Case:
    """Return a network with its calibration batches."""
    weights, activations = BITS[bits]
    images = mnist_networks.parts()[0][0][TRAINING : TRAINING + CALIBRATION]
    return Case(f"{model} {bits}", mnist_networks.load(model), list(images.split(32)), weights, activations, True)


@torch.no_grad()
def accuracy(model: Model, part: mnist_networks.Part) -> float:
    """Return the share of images that a model sorts right."""
    images, labels = part
    return float((outputs(model, images).argmax(1) == labels).double().mean())


@torch.no_grad()
def outputs(model: Model, images: Tensor) -> Tensor:
    """Return logits, computed in batches."""
    return torch.cat([model(part) for part in images.split(128)])


def best_of(starts: Iterator[Start], float_model: nn.Module) -> Start:
    """Return the start that is best on the validation images."""
    validation = mnist_networks.parts()[1]
    wanted = outputs(float_model, validation[0])

    def quality(start: Start) -> tuple[float, float]:
        return accuracy(start.model, validation), sqnr_db(wanted, outputs(start.model, validation[0]))

    return max(((quality(start), start) for start in starts), key=lambda pair: pair[0])[1]


def our_ladder(case: Case) -> Iterator[Start]:
    """Yield what qatflow's ladder comes to, rung after rung."""
    precision = Precision(weights=case.weights, activations=case.activations, per_channel=case.per_channel)
    context = StepContext(lambda limit: [((x,), {}) for x in torch.cat(case.calibration)[:limit].split(32)])
    network = captured_network(
        copy.deepcopy(case.model), (case.calibration[0][:2],), design=Design(precision=precision)
    )
    for name in LADDER:
        network, _notes = STEPS[name](network, STEP_CONFIGS[name](), context)
        calibrated, _notes = STEPS["calibrate"](network, STEP_CONFIGS["calibrate"](), context)
        simulation = Simulation(calibrated)
        simulation.calibrate(context.inputs(None))
        yield Start(name, simulation.model, (calibrated, simulation.encodings()))


def our_training(start: Start, settings: Settings, seed: int) -> Trained:
    """Train with qatflow."""
    network, encodings = start.trainable
    simulation = Simulation(network)
    simulation.load_encodings(encodings)
    outcome = train(simulation, our_terms(network, seed), settings)
    return Trained(simulation.model, outcome.best_epoch, outcome.reason)


def our_terms(network: Network, seed: int) -> Training:
    """Return what qatflow trains with besides the hyper-parameters."""
    validation, qat = mnist_networks.parts()[1], Qat()
    return Training(
        train=training_batches(seed),
        validate=lambda model: Measurement(accuracy(model, validation), None, higher_is_better=True),
        objective=Objective("cross_entropy", ON_LABELS["cross_entropy"], FROM_TEACHER["distillation"]),
        fp32=network.graph,
        qat=qat,
        optimizer=choose_optimizer(qat),
        fabric=fabric_of(torch.device("cpu"), qat),
        seed=seed,
    )


def aimet_ladder(case: Case, steps: Sequence[str], iterations: int | None) -> Iterator[Start]:
    """Yield what AIMET's steps come to, with each way of choosing ranges."""
    for step, sim, _seconds in aimet.simulations(case, steps=steps, iterations=iterations):
        yield Start(step, sim.model, sim.model)


def aimet_training(start: Start, settings: Settings, seed: int) -> Trained:
    """Train with AIMET."""
    validation = mnist_networks.parts()[1]
    outcome = aimet_qat.train(
        start.trainable, training_batches(seed), settings, lambda model: accuracy(model, validation)
    )
    return Trained(outcome.model, outcome.best_epoch)


TRAININGS = {"qatflow": our_training, "aimet": aimet_training}


@cache
def start_of(model: str, bits: str, start: str, tool: str, iterations: int | None) -> Start:
    """Return where a tool starts from.

    Raises:
        PeerError: it is not installed, or cannot take the network.
    """
    case = case_of(model, bits)
    if tool == "qatflow":
        ladder = our_ladder(case)
        return next(ladder) if start == "naive" else best_of(ladder, case.model)
    steps = AIMET_LADDER[:1] if start == "naive" else AIMET_LADDER
    return best_of(aimet_ladder(case, steps, iterations), case.model)


def row_of(run: Run) -> Row:
    """Carry out a run and return what it came to."""
    _, validation, test = mnist_networks.parts()
    try:
        start = start_of(run.model, run.bits, run.start, run.tool, run.iterations)
    except PeerError as error:
        return {**asdict(run), "note": f"not run: {error}"}
    started = time.perf_counter()
    trained = TRAININGS[run.tool](start, run.settings, run.seed)
    return {
        **asdict(run),
        "from": start.step,
        "fp32": accuracy(mnist_networks.load(run.model), test),
        "start_test": accuracy(start.model, test),
        "best_epoch": trained.best_epoch,
        "validation": accuracy(trained.model, validation),
        "test": accuracy(trained.model, test),
        "seconds": round(time.perf_counter() - started, 1),
        "note": trained.note,
    }


def runs(
    models: Sequence[str],
    bits: Sequence[str],
    starts: Sequence[str],
    ranges: Sequence[str],
    rates: Sequence[float],
    tools: Sequence[str],
    **common: Any,
) -> list[Run]:
    """Return every combination, those of one network and tool together."""
    return [
        Run(model, width, start, learned, rate, tool, **common)
        for model, width, tool, start, learned, rate in product(models, bits, tools, starts, ranges, rates)
    ]


def by_rate(rows: Sequence[Row]) -> list[Row]:
    """Return a row for each start, with the test accuracy of every tool in percent, to be read by people.

    Of each tool: the accuracy that training starts from, that of the best epoch for every rate, and `chosen`, that at
    the rate which is best on the validation images.
    """
    groups: dict[tuple[object, ...], dict[object, list[Row]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in SHARED), {}).setdefault(row["tool"], []).append(row)
    shown = []
    for key, tools in groups.items():
        line: Row = dict(zip(SHARED, key, strict=True))
        for tool, found in tools.items():
            line |= _of_tool(tool, found)
        shown.append(line)
    return shown


def _of_tool(tool: object, rows: Sequence[Row]) -> Row:
    """Return one tool's columns of a row."""
    done: list[dict[str, Any]] = [row for row in rows if "test" in row]
    if not done:
        return {f"{tool} start": rows[0]["note"]}
    columns: Row = {"fp32": _percent(done[0]["fp32"])}
    columns[f"{tool} start"] = f"{_percent(done[0]['start_test'])} ({done[0]['from']})"
    columns |= {f"{tool} {row['rate']:.0e}": _percent(row["test"]) for row in done}
    return {**columns, f"{tool} chosen": _percent(max(done, key=lambda row: row["validation"])["test"])}


def _percent(share: Any) -> str:
    return f"{share * 100:.1f}"
