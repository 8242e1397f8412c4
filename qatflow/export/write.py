"""Write `export/`: what the winner ships as."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from qatflow.bench import Bench, Candidate
from qatflow.export.encodings import aimet_encodings
from qatflow.export.weights import float_weights
from qatflow.result import Note
from qatflow.store import write_atomically, write_json


def export(bench: Bench, winner: Candidate, folder: Path) -> tuple[dict[str, str], dict[str, Note]]:
    """Write `model.safetensors` and `model.encodings`; returns the files by name, and notes for their users.

    Args:
        bench: the run's.
        winner: the candidate to ship.
        folder: the run folder.
    """
    out = folder / "export"
    placement = bench.placement(winner.network)
    content = aimet_encodings(placement, winner.encodings, bench.recipe.precision, bench.recipe.calibration)
    write_json(out / "model.encodings", content)
    weights = float_weights(bench.task.model, bench.base.graph, winner.network.graph, bench.task.example())
    state = {name: value.cpu().contiguous() for name, value in weights.state.items()}
    metadata = {"candidate": winner.record.id, "loads_into_model": str(weights.loadable).lower()}
    write_atomically(out / "model.safetensors", lambda aside: save_file(state, aside, metadata=metadata))
    notes: dict[str, Note] = {"loads_into_model": weights.loadable}
    if weights.reason:
        notes["why_not"] = weights.reason
    return {"weights": "export/model.safetensors", "encodings": "export/model.encodings"}, notes
