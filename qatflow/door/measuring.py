"""What every quantizer of a recipe, or of a run's best candidate, costs the outputs: estimated, and one by one.

Every measurement is written down at once, and a second start goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from qatflow.door.inspection import Prepared, prepared
from qatflow.graph.capture_errors import first_sentence
from qatflow.graph.fingerprint import graph_fingerprint
from qatflow.graph.sqnr import decibel, lowest
from qatflow.quant.diagnosis import diagnose, estimated
from qatflow.quant.saved import encoding_to_json, finite
from qatflow.quant.sensitivity import Cost, Sensitivity
from qatflow.quant.simulation import Inputs, Simulation
from qatflow.recipe import Recipe
from qatflow.results.progress import Progress
from qatflow.results.store import key_of, made_folder, read_usable, write_json, write_text
from qatflow.tasks.evaluate import Evaluator
from qatflow.users_code import blame_machine

NAME = "sensitivity"
NOISE = "alone_noise"
"""Kept beside what is shown: of several outputs, their noise added up, as the estimate is."""


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        frame: a row for every quantizer, the one that costs most first.
        path: of the CSV file that has it.
        together_db: SQNR of the outputs where all is quantized.
        rank_correlation: Spearman's, of the estimate and the measured noise; NaN where nothing was measured.
        resumed: how many rows an earlier start measured.
        notes: what a reader should know.
    """

    frame: pd.DataFrame
    path: Path
    together_db: float
    rank_correlation: float = math.nan
    resumed: int = 0
    notes: list[str] = field(default_factory=list)


def measured(
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    trust: tuple[str, ...] = (),
    *,
    samples: int = 32,
    exact: bool = False,
    metric: bool = False,
) -> Measured:
    """Return what every quantizer costs; `sensitivity.csv` in `folder` has it as well.

    Columns are `tensor`, `kind`, `bits`, `estimated_db` (of the outputs if only this were quantized, in one pass),
    `share` (of all quantizers' noise), `why` and `helps`; with `exact`, `alone_db` (the same, measured) and
    `without_db` (all but this quantized), each of the output that has the lowest, and of every output where there are
    several; with `metric`, `alone_metric` and `without_metric`.

    Args:
        recipe: where `run.dir` has a run, its best candidate is measured; else the prepared model, calibrated.
        folder: for the files.
        progress: who is told.
        trust: packages that the recipe may import from.
        samples: calibration samples.
        exact: measure one by one.
        metric: likewise the recipe's metric, on the choosing part.

    Raises:
        QatflowError: the recipe, model, data or folder cannot be used.
    """
    progress.stage("load: model and data")
    found = prepared(recipe, trust)
    made_folder(folder)
    simulation = Simulation(found.network)
    if found.encodings is None:
        progress.stage("calibrate: ranges of the prepared model")
        simulation.calibrate(found.task.calibration_inputs(found.network.design.calibration.samples))
    else:
        simulation.load_encodings(found.encodings)
    batches = list(found.task.calibration_inputs(samples))
    notes: list[str] = []
    progress.stage("estimate: what every quantizer costs the outputs")
    noise = _estimated(simulation, batches, found.recipe.seed, notes)
    sensitivity = Sensitivity(simulation)
    together = sensitivity.together(batches)
    store = _Store(folder / f"{NAME}_exact.json", _key(found, simulation, samples), progress)
    if exact or metric:
        one_by_one = _OneByOne(found, sensitivity, batches, exact=exact, metric=metric)
        for name in progress.track([point.tensor for point in sensitivity.points], "one by one"):
            store.complete(name, one_by_one)
    rows = _rows(simulation, batches, noise, store.rows, found.steps)
    frame = pd.DataFrame(rows).sort_values(_order(rows), na_position="last", kind="stable", ignore_index=True)
    path = write_text(folder / f"{NAME}.csv", frame.to_csv(index=False, lineterminator="\n"))
    return Measured(frame, path, together.lowest, _correlation(noise, store.rows), store.resumed, notes)


def _estimated(simulation: Simulation, batches: Sequence[Inputs], seed: int, notes: list[str]) -> dict[str, float]:
    try:
        return estimated(simulation, batches, seed)
    except RuntimeError as error:  # an op of the model has no derivative
        blame_machine(error)
        notes.append(f"no estimate can be had, --exact measures instead: {first_sentence(error)}")
        return {}


def _key(found: Prepared, simulation: Simulation, samples: int) -> str:
    encodings, task = {name: encoding_to_json(one) for name, one in simulation.encodings().items()}, found.task
    parts = found.recipe.data.model_dump(mode="json")
    return key_of(
        graph_fingerprint(found.network.graph), encodings, task.key(task.hashes(found.base.graph)), parts, samples
    )


class _OneByOne:
    """Measures one tensor after the other."""

    def __init__(
        self, found: Prepared, sensitivity: Sensitivity, batches: Sequence[Inputs], *, exact: bool, metric: bool
    ) -> None:
        self.sensitivity, self.batches = sensitivity, batches
        self.columns = [*(["alone_db", "without_db"] if exact else ()), *(["alone_metric"] if metric else ())]
        self.evaluator: Evaluator | None = None
        if metric:
            task = found.task
            self.evaluator = Evaluator(
                found.base.graph, lambda: task.part(task.choosing_part), task.metric, task.device, task.choosing_part
            )

    def measure(self, name: str, column: str) -> dict[str, float | None]:
        """Return what is measured for a column, and for those that come with it."""
        if column == "alone_metric":
            assert self.evaluator is not None
            with self.sensitivity.only_quantized(name) as alone:
                one = self.evaluator.evaluate(alone.model).measurement.value
            with self.sensitivity.only_float(name) as without:
                other = self.evaluator.evaluate(without.model).measurement.value
            return {"alone_metric": finite(one), "without_metric": finite(other)}
        if column == "alone_db":
            cost = self.sensitivity.alone(name, self.batches)
            return {**_columns("alone_db", cost), NOISE: finite(cost.noise)}
        return _columns("without_db", self.sensitivity.without(name, self.batches))


def _columns(column: str, cost: Cost) -> dict[str, float | None]:
    """Return a cost in the output that has the lowest ratio, and in every one where there are several."""
    several = {f"{column}.{part}": finite(ratio) for part, ratio in cost.ratios} if len(cost.ratios) > 1 else {}
    return {column: finite(lowest(ratio for _, ratio in cost.ratios)), **several}


class _Store:
    """What was measured, written down after every tensor."""

    def __init__(self, path: Path, key: str, progress: Progress) -> None:
        self.path, self.key = path, key
        stored = read_usable(path, progress.note)
        known = stored.get("rows") if isinstance(stored, dict) and stored.get("key") == key else None
        every = known if isinstance(known, dict) else {}
        self.rows: dict[str, dict[str, float | None]] = {
            name: {column: one for column, one in row.items() if one is None or type(one) in (int, float)}
            for name, row in every.items()
            if isinstance(row, dict)
        }
        self.resumed = 0

    def complete(self, name: str, measure: _OneByOne) -> None:
        """Measure what is not known of a tensor."""
        row = self.rows.setdefault(name, {})
        missing = [column for column in measure.columns if column not in row]
        self.resumed += not missing
        for column in missing:
            row |= measure.measure(name, column)
            write_json(self.path, {"key": self.key, "rows": self.rows})


def _rows(
    simulation: Simulation,
    batches: Sequence[Inputs],
    noise: dict[str, float],
    exact: dict[str, dict[str, float | None]],
    done: Sequence[str],
) -> list[dict[str, Any]]:
    own = {point.tensor for point in simulation.placement.points if point.shares is None}
    total = sum(one for name, one in noise.items() if name in own and math.isfinite(one))
    return [
        {
            "tensor": one.point.parameter or name,
            "kind": "weight" if one.point.parameter else "activation",
            "bits": one.point.grid.bits,
            "estimated_db": finite(decibel(1.0, noise[name])) if name in noise else None,
            "share": noise[name] / total if name in noise and total else None,
            **{column: value for column, value in exact.get(name, {}).items() if column != NOISE},
            "own_db": finite(one.use.sqnr_db),
            "clipped": one.use.clipped,
            "levels": one.use.used,
            "why": one.use.why,
            "helps": one.helps,
        }
        for name, one in diagnose(simulation, batches, done).items()
        if name in own
    ]


def _order(rows: Sequence[dict[str, Any]]) -> str:
    return "alone_db" if any("alone_db" in row for row in rows) else "estimated_db"


def _correlation(noise: Mapping[str, float], exact: Mapping[str, Mapping[str, float | None]]) -> float:
    both = [(noise[name], own) for name, row in exact.items() if name in noise and (own := row.get(NOISE)) is not None]
    return float(spearmanr(both).statistic) if len(both) > 2 else math.nan
