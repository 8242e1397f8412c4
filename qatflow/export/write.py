"""Write `export/`: what the winner ships as."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file

from qatflow.bench import Bench
from qatflow.candidates import Candidate
from qatflow.export.encodings import aimet_encodings
from qatflow.export.integer_biases import IntegerBiases, integer_biases
from qatflow.export.onnx_export import Exported, export_onnx
from qatflow.export.pt2_export import export_pt2
from qatflow.export.pte_export import export_pte
from qatflow.export.weights import float_weights
from qatflow.quant.placement import Placement
from qatflow.result import Note
from qatflow.store import write_atomically, write_json


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
    out, shipped, asked = folder / "export", Shipped(), bench.recipe.export
    simulation = bench.simulate(winner.network, winner.encodings)
    content = integer_biases(simulation)
    if content.raised:
        shipped.notes["weight_scales_raised_for_biases"] = ", ".join(content.raised)
    _write_encodings(bench, winner, simulation.placement, content, out, shipped)
    _write_weights(bench, winner, out, shipped)
    if asked.pt2:
        export_pt2(simulation, bench.task.example(), out / "model.pt2")
        shipped.artefacts["pt2"] = "export/model.pt2"
    if asked.onnx if asked.onnx is not None else bench.recipe.target != "xnnpack":
        shipped.to_verify = export_onnx(simulation, bench.task.example(), out / "model.onnx", asked)
        shipped.artefacts["onnx"] = "export/model.onnx"
    if asked.pte:
        shipped.to_verify = export_pte(simulation, bench.task.example(), out / "model.pte")
        shipped.artefacts["pte"] = "export/model.pte"
    return shipped


def _write_encodings(
    bench: Bench, winner: Candidate, placement: Placement, content: IntegerBiases, out: Path, shipped: Shipped
) -> None:
    recipe = bench.recipe
    values = aimet_encodings(
        placement,
        content.encodings,
        recipe.precision,
        winner.network.calibration(recipe.calibration),
        version=recipe.export.encodings_version,
        biases=content.biases,
    )
    write_json(out / "model.encodings", values)
    shipped.artefacts["encodings"] = "export/model.encodings"


def _write_weights(bench: Bench, winner: Candidate, out: Path, shipped: Shipped) -> None:
    weights = float_weights(bench.task.model, bench.base.graph, winner.network.graph, bench.task.example())
    state = {name: value.cpu().contiguous() for name, value in weights.state.items()}
    metadata = {"candidate": winner.record.id, "loads_into_model": str(weights.loadable).lower()}
    write_atomically(out / "model.safetensors", lambda aside: save_file(state, aside, metadata=metadata))
    shipped.artefacts["weights"] = "export/model.safetensors"
    shipped.notes["loads_into_model"] = weights.loadable
    if weights.reason:
        shipped.notes["why_not"] = weights.reason
