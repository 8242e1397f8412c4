"""An encodings file and the float ONNX model that it belongs to: what AIMET's and Qualcomm's tools want."""

from __future__ import annotations

from pathlib import Path

from qatflow.export.aimet_encodings import aimet_encodings, encodings_from_file
from qatflow.export.encodings import read
from qatflow.export.integer_biases import IntegerBiases, integer_biases
from qatflow.export.onnx_export import onnx_files
from qatflow.export.onnx_file import save_onnx
from qatflow.export.onnx_float import FileTensors
from qatflow.export.signature import Example, Signature
from qatflow.export.tensor_names import tensor_names
from qatflow.quant.grid import Encoding
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Export
from qatflow.results.store import write_json


def export_encodings(
    simulation: Simulation,
    example: Example,
    folder: Path,
    version: str = "1.0.0",
) -> None:
    """Write `model.encodings` and `model_float.onnx` into a folder.

    Args:
        simulation: calibrated or trained.
        example: positional and keyword inputs, at least 2 samples.
        folder: where to.
        version: 0.6.1, 1.0.0 or 2.0.0.

    Raises:
        ExportError: `torch.onnx.export` has no translation for an op of the model.
        EncodingsError: there is no such version.
    """
    content = integer_biases(simulation)
    files = onnx_files(simulation, content, example, Export())
    write_encodings(simulation, content, folder, version, files.tensors)
    save_onnx(files.floats, folder / "model_float.onnx")


def write_encodings(
    simulation: Simulation,
    content: IntegerBiases,
    folder: Path,
    version: str,
    tensors: FileTensors | None,
) -> None:
    """Write `model.encodings`; see `aimet_encodings`."""
    values = aimet_encodings(
        simulation.placement,
        content.encodings,
        simulation.design,
        version=version,
        biases=content.biases,
        tensors=tensors,
    )
    write_json(folder / "model.encodings", values)


def read_encodings(path: Path, simulation: Simulation, example: Example) -> dict[str, Encoding]:
    """Return what an encodings file says of a simulation's tensors, for `Simulation.load_encodings`.

    Args:
        path: the file, of any version, its tensors called as in the ONNX file.
        simulation: of the same model, target and precision.
        example: positional and keyword inputs.

    Raises:
        EncodingsError: it cannot be read or contradicts itself, a tensor is missing, or has another grid; all such
            tensors are named.
    """
    graph = simulation.network.graph
    names = tensor_names(graph, Signature.of(graph, example))
    return encodings_from_file(read(path), simulation.placement, simulation.model.state_dict(), names)
