"""Write `export/`: what the winner ships as."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file

from qatflow import __version__
from qatflow.errors import ExportError
from qatflow.export.integer_biases import IntegerBiases, integer_biases
from qatflow.export.onnx_export import Exported, OnnxFiles, onnx_files, write_quantized
from qatflow.export.onnx_file import save_onnx
from qatflow.export.pair import write_encodings
from qatflow.export.pt2_export import export_pt2
from qatflow.export.pte_export import export_pte
from qatflow.export.signature import Example
from qatflow.export.weights import float_weights
from qatflow.ladder.bench import Bench
from qatflow.ladder.candidates import Candidate
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Export
from qatflow.results.result import Note
from qatflow.results.store import key_of, write_atomically
from qatflow.tasks.class_names import class_names


@dataclass
class Shipped:
    """What was written.

    Attributes:
        artefacts: paths relative to the run folder, by name.
        notes: what a user of the files should know.
        to_verify: the file that is run in a runtime and what it must compute; None where none was written.
    """

    artefacts: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Note] = field(default_factory=dict)
    to_verify: Exported | None = None


def export(bench: Bench, winner: Candidate, folder: Path) -> Shipped:
    """Write the winner's weights and encodings, and the files that the recipe asks for besides.

    Args:
        bench: the run's.
        winner: the candidate to ship.
        folder: the run folder.

    Raises:
        ExportError: the model cannot be written as one of them; those before it are there.
    """
    out, shipped, asked, road = folder / "export", Shipped(), bench.recipe.export, bench.base.design.target.road
    example = bench.task.example()
    simulation = bench.simulate(winner.network, winner.encodings)
    content = integer_biases(simulation)
    shipped.notes |= content.notes
    onnx = _onnx_files(bench, simulation, content, example)
    _write_encodings(bench, winner, simulation, content, onnx, out, shipped)
    _write_weights(bench, winner, example, out, shipped)
    if isinstance(onnx, OnnxFiles):
        save_onnx(onnx.floats, out / "model_float.onnx")
        shipped.artefacts["float_onnx"] = "export/model_float.onnx"
    if asked.pt2:
        export_pt2(simulation, example, out / "model.pt2", content)
        shipped.artefacts["pt2"] = "export/model.pt2"
    program = _program(asked, simulation, content, example, out, shipped) if road.writes("pte", asked.pte) else None
    if road.writes("onnx", asked.onnx) or "no_program" in shipped.notes:
        if isinstance(onnx, ExportError):
            raise onnx
        onnx.quantized.metadata_props.update(story(bench, winner))
        shipped.to_verify = write_quantized(simulation, content, onnx, out / "model.onnx")
        shipped.artefacts["onnx"] = "export/model.onnx"
    if program is not None:
        shipped.to_verify, shipped.artefacts["pte"] = program, "export/model.pte"
    return shipped


def story(bench: Bench, winner: Candidate) -> dict[str, str]:
    """Return what an ONNX file says of itself, in `metadata_props`: where it comes from, and what the gate said."""
    judged, gate = bench.judge(winner), bench.gate_record
    names = class_names(bench.task.model, bench.task.splits.test)
    known = {
        "version": __version__,
        "recipe": bench.recipe.name,
        "recipe_hash": key_of(bench.recipe.model_dump(mode="json", exclude={"run"})),  # wherever its run folder is
        "target": bench.base.design.target.name,
        "candidate": judged.id,
        "metric": gate.metric,
        "value": judged.value,
        "fp32": judged.fp32,
        "drop": judged.drop,
        "drop_low": judged.drop_low,
        "drop_high": judged.drop_high,
        "verdict": judged.verdict.value,
        "classes": json.dumps(names, ensure_ascii=False) if names else None,
    }
    return {f"qatflow.{name}": str(value) for name, value in known.items() if value is not None}


def _program(
    asked: Export, simulation: Simulation, content: IntegerBiases, example: Example, out: Path, shipped: Shipped
) -> Exported | None:
    """Write an ExecuTorch program; None, with a note, where nobody asked for it and ExecuTorch does not take the model.

    Raises:
        ExportError: it was asked for.
    """
    try:
        return export_pte(simulation, example, out / "model.pte", content, batch=asked.batch or 1)
    except ExportError as error:
        if asked.pte:
            raise
        shipped.notes["no_program"] = f"{error}; an ONNX file takes its place"
        return None


def _onnx_files(
    bench: Bench, simulation: Simulation, content: IntegerBiases, example: Example
) -> OnnxFiles | ExportError:
    """Return the ONNX models, or why there are none: what else is shipped is written all the same."""
    if bench.recipe.export.onnx is False:
        return ExportError("export.onnx is false")
    try:
        return onnx_files(simulation, content, example, bench.recipe.export)
    except ExportError as error:
        return error


def _write_encodings(
    bench: Bench,
    winner: Candidate,
    simulation: Simulation,
    content: IntegerBiases,
    onnx: OnnxFiles | ExportError,
    out: Path,
    shipped: Shipped,
) -> None:
    tensors = None if isinstance(onnx, ExportError) else onnx.tensors
    write_encodings(simulation, content, out, bench.recipe.export.encodings_version, tensors)
    shipped.artefacts["encodings"] = "export/model.encodings"
    if isinstance(onnx, ExportError):
        shipped.notes["encodings_name_tensors_of_the_graph"] = f"there is no ONNX file: {onnx}"
    elif gone := [
        point.tensor
        for point in simulation.placement.points
        if point.parameter is None and point.tensor not in onnx.tensors.names
    ]:
        shipped.notes["tensors_that_the_files_do_not_have"] = ", ".join(gone)


def _write_weights(bench: Bench, winner: Candidate, example: Example, out: Path, shipped: Shipped) -> None:
    weights = float_weights(bench.task.model, bench.base.graph, winner.network.graph, example)
    state = {name: value.cpu().contiguous() for name, value in weights.state.items()}
    metadata = {"candidate": winner.record.id, "loads_into_model": str(weights.loadable).lower()}
    write_atomically(out / "model.safetensors", lambda aside: save_file(state, aside, metadata=metadata))
    shipped.artefacts["weights"] = "export/model.safetensors"
    shipped.notes["loads_into_model"] = weights.loadable
    if weights.reason:
        shipped.notes["why_not"] = weights.reason
