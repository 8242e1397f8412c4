"""The second gate: as fast beside FP32 as the recipe asks for, by letting go of integers where they do not pay.

The metric's gate counts more: where the faster candidate misses it and the slower one does not, the slower one stays.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from qatflow.errors import Mistake, RecipeError
from qatflow.export.float_parts import Files, float_parts
from qatflow.export.processor import processor_name
from qatflow.export.runtimes import Runtime, missing, runtime_of
from qatflow.export.timing import latency_of, write_fp32
from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate, Work
from qatflow.quant.grid import Encoding
from qatflow.quant.network import Network
from qatflow.quant.regions import FLOAT
from qatflow.recipe.precision import written
from qatflow.recipe.targets import FileKind
from qatflow.results.result import Note
from qatflow.results.speed import SpeedRecord
from qatflow.results.store import key_of, read_usable, write_json
from qatflow.steps.set_precision import redesigned

NAME = "float_parts"
KEY = "gate.min_speedup"
FILE = "speed.json"


def timed_runtime(bench: Bench) -> tuple[FileKind, Runtime]:
    """Return the file that the run ships and the runtime that times it.

    Raises:
        RecipeError: nothing here can time it.
    """
    target, asked = bench.base.design.target, bench.recipe.export
    kind: FileKind = "pte" if target.road.writes("pte", asked.pte) else "onnx"
    runtime = runtime_of(target.road, kind, target.name).runtime
    if runtime is not None and runtime.timed:
        return kind, runtime
    why = missing(target.road) or f"nothing here can tell how fast target {target.name} is"
    raise RecipeError([Mistake(KEY, why, "remove it" if runtime is not None else f"do that, or remove {KEY}")])


def sped_up(bench: Bench, winner: Candidate) -> Candidate:
    """Return a candidate with those parts in float that do not pay on integers; the same where it is fast enough.

    Where the recipe asks for no speed, any is.

    Its notes say how fast it was before (`speed_up_before`), which parts are in float (`parts`), and the `overrides`.
    What a step or training has fitted to the weights of these parts is undone.

    Raises:
        ExportError: the quantized file, or FP32 beside it, cannot be written or loaded.
    """
    wanted, strict = bench.recipe.gate.min_speedup, bench.recipe.gate.strict
    if wanted is None:
        return winner
    kind, runtime = timed_runtime(bench)
    key = key_of(winner.key, NAME, wanted, strict, processor_name(), bench.recipe.export.model_dump(mode="json"))
    if (found := bench.recall(NAME, key)) is not None:
        return _better(bench, winner, bench.keep(found, kept=True))
    stored = read_usable(bench.run_folder / FILE, bench.progress.note)
    if isinstance(stored, dict) and stored.get("key") == key:  # an earlier start found nothing to do
        return winner
    bench.progress.stage("speed: the exported file beside FP32 in its runtime")
    started, example = time.perf_counter(), bench.task.example()
    with tempfile.TemporaryDirectory() as folder:
        simulation = bench.simulate(winner.network, winner.encodings)
        files = Files(simulation, example, bench.recipe.export, kind, runtime, Path(folder))
        int8 = files.with_parts_in_float(())
        fp32 = files.load(write_fp32(bench, files.signature, kind, Path(folder)), files.signature, ())
        assert int8 is not None
        before = SpeedRecord.of(latency_of(int8, fp32, example, bench.recipe.export.batch), wanted, strict=strict)
        if not before.passed:
            bench.progress.note(before.sentence)
        chosen = () if before.passed else float_parts(files, bench.progress.track)
    if not chosen:
        if not before.passed:
            bench.progress.note("no part of the model is faster in float")
        write_json(bench.run_folder / FILE, {"key": key, "speed": before.model_dump(mode="json")})
        return winner
    said = dict.fromkeys(chosen, FLOAT)
    network = redesigned(winner.network, winner.network.designed(winner.network.design.with_overrides(said)))
    notes: dict[str, Note] = {
        "parts": len(chosen),
        "speed_up_before": round(before.reached or 0.0, 3),
        "overrides": written(said),
    }
    work = Work(NAME, winner.work.stage, (*winner.work.steps, NAME), notes)
    candidate = bench.measure(network, work, key=key, started=started, encodings=_encodings(bench, winner, network))
    return _better(bench, winner, bench.keep(candidate, kept=True))


def _encodings(bench: Bench, winner: Candidate, network: Network) -> Mapping[str, Encoding]:
    """Return the winner's encodings of all that is quantized as before, and calibrated ones of the rest."""
    simulation = bench.simulate(network)
    before = {point.tensor: point for point in bench.simulate(winner.network, winner.encodings).placement.points}
    same = {point.tensor for point in simulation.placement.points if before.get(point.tensor) == point}
    return {name: winner.encodings[name] if name in same else one for name, one in simulation.encodings().items()}


def _better(bench: Bench, winner: Candidate, faster: Candidate) -> Candidate:
    """Return the faster candidate, unless only the slower one meets the metric's gate."""
    if bench.judge(faster).passed or not bench.judge(winner).passed:
        return faster
    bench.progress.note(f"{NAME} misses the gate that {winner.record.id} meets: the slower one is shipped")
    return winner
