"""Records about the tensors of a candidate: every quantizer, its grid, what it costs and why; and what is in float."""

from __future__ import annotations

from qatflow.graph.capture_errors import first_sentence
from qatflow.graph.sqnr import decibel
from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate
from qatflow.quant.diagnosis import Diagnosis, diagnose, estimated
from qatflow.quant.grid import Encoding
from qatflow.quant.placement import place
from qatflow.quant.saved import finite
from qatflow.quant.simulation import Simulation
from qatflow.results.result import FloatTensor, TensorRecord
from qatflow.results.store import key_of, read_usable, write_json

SAMPLES = 64
"""Calibration samples on which activations are looked at."""
FEW_SAMPLES = 32
"""Those behind what each quantizer costs the outputs."""
FILE = "sensitivity.json"


def tensors(bench: Bench, candidate: Candidate) -> tuple[TensorRecord, ...]:
    """Return one record per quantizer, in the order of the graph.

    `sqnr_db` is that of the tensor itself, float against rounded: its own error, without what came before; that of
    a weight against FP32's, where a step has fitted it.
    """
    simulation = bench.simulate(candidate.network, candidate.encodings)
    noise = _noise(bench, candidate, simulation)
    found = diagnose(simulation, list(bench.task.calibration_inputs(SAMPLES)), candidate.work.steps)
    return tuple(_record(one, candidate.encodings[name], noise.get(name)) for name, one in found.items())


def float_tensors(candidate: Candidate) -> tuple[FloatTensor, ...]:
    """Return one record per tensor that stays in float, with the reason."""
    return tuple(
        FloatTensor(layer=left.layer, tensor=left.tensor, op=left.op, reason=left.reason)
        for left in place(candidate.network).floats
    )


def _noise(bench: Bench, candidate: Candidate, simulation: Simulation) -> dict[str, float]:
    """Return what every quantizer costs the outputs, or what an earlier start found; nothing where that fails."""
    path, key = bench.run_folder / FILE, key_of(candidate.key, FEW_SAMPLES, bench.recipe.seed)
    stored = read_usable(path, bench.progress.note)
    if isinstance(stored, dict) and stored.get("key") == key and isinstance(stored.get("noise"), dict):
        return {name: one for name, one in stored["noise"].items() if isinstance(one, float)}
    bench.progress.stage("costs: what every quantizer costs the outputs")
    try:
        found = estimated(simulation, list(bench.task.calibration_inputs(FEW_SAMPLES)), bench.recipe.seed)
    except (RuntimeError, MemoryError) as error:  # an op has no derivative, or gradients no room: no run ends by that
        bench.progress.note(f"what single quantizers cost the outputs is not known: {first_sentence(error)}")
        return {}
    write_json(path, {"key": key, "noise": {name: finite(one) for name, one in found.items()}})
    return found


def _record(found: Diagnosis, encoding: Encoding, noise: float | None) -> TensorRecord:
    point, use = found.point, found.use
    scale, zero_points = encoding.scale.reshape(-1), encoding.zero_point.reshape(-1)
    return TensorRecord(
        layer=point.layer,
        tensor=point.parameter or point.tensor,
        kind="weight" if point.parameter else "activation",
        bits=encoding.grid.bits,
        signed=encoding.grid.signed,
        symmetric=encoding.grid.symmetric,
        channels=len(scale),
        scale_min=float(scale.min()),
        scale_max=float(scale.max()),
        range_min=float(encoding.low.min()),
        range_max=float(encoding.high.max()),
        zero_point=int(zero_points[0]) if bool((zero_points == zero_points[0]).all()) else None,
        sqnr_db=finite(use.sqnr_db),
        output_sqnr_db=None if noise is None else finite(decibel(1.0, noise)),
        clipped=use.clipped,
        levels=use.used,
        why=use.why,
        helps=found.helps,
    )
