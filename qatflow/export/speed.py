"""The second gate: as fast beside FP32 as the recipe asks for, by letting go of integers where they do not pay.

The metric's gate counts more: where the faster candidate misses it and the slower one does not, the slower one stays.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from qatflow.errors import ExportError, Mistake, RecipeError
from qatflow.export.float_parts import Files, float_parts
from qatflow.export.processor import processor_name
from qatflow.export.runtimes import Runtime, missing, runtime_of
from qatflow.export.timing import latency_of, write_fp32
from qatflow.graph.capture_errors import first_sentence
from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate, Work
from qatflow.quant.grid import Encoding
from qatflow.quant.network import Network
from qatflow.quant.placement import place
from qatflow.quant.regions import Region, in_float
from qatflow.recipe.precision import written
from qatflow.recipe.targets import FileKind
from qatflow.results.result import Note
from qatflow.results.speed import SpeedRecord
from qatflow.results.store import key_of, read_usable, write_json
from qatflow.steps.set_precision import redesigned

NAME = "float_parts"
KEY = "gate.min_speedup"
FILE = "speed.json"
NONE_PAYS = "no part of the model is faster in float"


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
    lacking = missing(target.road)
    why = lacking or f"nothing here can tell how fast this file of target {target.name} is"
    raise RecipeError([Mistake(KEY, why, f"do that, or remove {KEY}" if lacking else "remove it")])


def sped_up(bench: Bench, winner: Candidate) -> Candidate:
    """Return a candidate with those parts in float that do not pay on integers; the same where it is fast enough.

    Where the recipe asks for no speed, any is.

    Its notes say how fast it was before (`speed_up_before`), which parts are in float (`parts`), and the `overrides`.
    What a step has fitted to the weights of these parts is undone. Where files cannot be written or run here, that is
    told, and nothing is changed.
    """
    wanted, strict = bench.recipe.gate.min_speedup, bench.recipe.gate.strict
    if wanted is None:
        return winner
    kind, runtime = timed_runtime(bench)
    key = key_of(winner.key, NAME, wanted, strict, processor_name(), bench.recipe.export.model_dump(mode="json"))
    if (found := bench.recall(NAME, key)) is not None:
        return _better(bench, winner, bench.keep(found, kept=True))
    stored = read_usable(bench.run_folder / FILE, bench.progress.note)
    if isinstance(stored, dict) and stored.get("key") == key:
        bench.progress.note(NONE_PAYS)
        return winner
    bench.progress.stage("speed: the exported file beside FP32 in its runtime")
    started = time.perf_counter()
    try:
        chosen, before = _searched(bench, winner, kind, runtime)
    except ExportError as error:
        bench.progress.note(f"whether parts are faster in float cannot be told: {first_sentence(error)}")
        return winner
    if chosen is None or before.reached is None:
        return winner
    designed = in_float(winner.network, chosen)
    if not chosen or designed is None:
        bench.progress.note(NONE_PAYS)
        write_json(bench.run_folder / FILE, {"key": key, "speed": before.model_dump(mode="json")})
        return winner
    network = redesigned(winner.network, designed)
    notes: dict[str, Note] = {
        "parts": len(chosen),
        "speed_up_before": round(before.reached, 3),
        "overrides": written(network.design.precision.overrides),
    }
    work = Work(NAME, winner.work.stage, (*winner.work.steps, NAME), notes)
    candidate = bench.measure(network, work, key=key, started=started, encodings=_encodings(bench, winner, network))
    return _better(bench, winner, bench.keep(candidate, kept=True))


def _searched(bench: Bench, winner: Candidate, kind: FileKind, runtime: Runtime) -> tuple[Region | None, SpeedRecord]:
    """Return the parts that pay in float, None where the file is fast enough or too small to time; and its speed.

    Raises:
        ExportError: the quantized file, or FP32 beside it, cannot be written or loaded.
    """
    gate, example, asked = bench.recipe.gate, bench.task.example(), bench.recipe.export
    assert gate.min_speedup is not None
    with tempfile.TemporaryDirectory() as folder:
        simulation = bench.simulate(winner.network, winner.encodings)
        files = Files(simulation, example, asked, kind, runtime, Path(folder))
        int8 = files.with_parts_in_float(())
        fp32 = files.load(write_fp32(bench, files.signature, kind, Path(folder)), files.signature, ())
        assert int8 is not None
        before = SpeedRecord.of(latency_of(int8, fp32, example, asked.batch), gate.min_speedup, strict=gate.strict)
        if before.passed or before.reached is None:
            return None, before
        bench.progress.note(before.sentence)
        return float_parts(files, bench.progress.track), before


def _encodings(bench: Bench, winner: Candidate, network: Network) -> Mapping[str, Encoding]:
    """Return the winner's encodings of all that is quantized as before, and calibrated ones of the rest."""
    simulation = bench.simulate(network)
    before = {point.tensor: point for point in place(winner.network).points}
    same = {point.tensor for point in simulation.placement.points if before.get(point.tensor) == point}
    return {name: winner.encodings[name] if name in same else one for name, one in simulation.encodings().items()}


def _better(bench: Bench, winner: Candidate, faster: Candidate) -> Candidate:
    """Return the faster candidate, unless only the slower one meets the metric's gate, or neither, and it is better."""
    if bench.judge(faster).passed:
        return faster
    if not bench.judge(winner).passed:
        return bench.choose([winner, faster])
    bench.progress.note(f"{NAME} misses the gate that {winner.record.id} meets: the slower one is shipped")
    return winner
