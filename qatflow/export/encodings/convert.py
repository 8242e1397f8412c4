"""From one version to another: what is lost or had to be assumed is said in notes, never silently."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from qatflow.errors import EncodingsError
from qatflow.export.encodings import version_2_0_0
from qatflow.export.encodings.check import problems_of
from qatflow.export.encodings.fields import fail, shown
from qatflow.export.encodings.files import WRITERS
from qatflow.export.encodings.onnx_model import ModelFacts, misfits, with_model
from qatflow.export.encodings.tensor import EncodingsFile

IN_ONNX_TERMS = (version_2_0_0.VERSION, version_2_0_0.READ_ALIKE)


def convert(file: EncodingsFile, version: str, model: ModelFacts | None = None) -> tuple[EncodingsFile, list[str]]:
    """Return the content for another version, and notes about what it lost or what had to be assumed.

    The producer stays: it tells who found the numbers.

    Args:
        file: what was read.
        version: to write.
        model: of the tensors. It tells parameters from activations and along which axis a parameter has its scales.

    Raises:
        EncodingsError: the version cannot be written, the encodings are not sound, or the model has other shapes.
    """
    if version not in WRITERS:
        message = f"version {shown(version)} cannot be written; there are {', '.join(WRITERS)}"
        raise EncodingsError(message)
    if model is not None:
        file = with_model(file, model)
    fail(problems_of(file) + ([] if model is None else misfits(file, model)))
    told, tells = file.version in IN_ONNX_TERMS, version in IN_ONNX_TERMS
    if told == tells:
        return replace(file, version=version), []
    return _without_places(file, version, model) if tells else _without_biases(file, version, model)


def _without_biases(file: EncodingsFile, version: str, model: ModelFacts | None) -> tuple[EncodingsFile, list[str]]:
    notes = [f"{version} has excluded_layers and quantizer_args; {file.version} tells neither: they are left out"]
    biases = [tensor.name for tensor in file.tensors if tensor.role == "bias"]
    if biases:
        notes.append(f"{version} has no 32-bit biases; left out: {_listed(biases)}")
    if model is None:
        notes.append(
            f"{file.version} does not tell parameters from activations: those with an axis, or signed without a zero "
            "point, were taken for parameters; a model would tell"
        )
    kept = tuple(tensor for tensor in file.tensors if tensor.role != "bias")
    unsigned = [tensor.name for tensor in kept if tensor.signed and not tensor.symmetric]
    if unsigned:
        notes.append(f"{version} does not tell signed from unsigned; read back as unsigned: {_listed(unsigned)}")
    elsewhere = [f"{shown(tensor.name)} ({tensor.axis})" for tensor in kept if tensor.axis]
    if elsewhere:
        notes.append(f"{version} does not tell the axis of scales per channel; other than 0: {', '.join(elsewhere)}")
    return replace(file, version=version, tensors=kept), notes


def _without_places(file: EncodingsFile, version: str, model: ModelFacts | None) -> tuple[EncodingsFile, list[str]]:
    notes = [f"{file.version} has no 32-bit biases: none are written, the runtime finds them itself"]
    floats = [tensor.name for tensor in file.tensors if tensor.in_float]
    if floats:
        notes.append(f"{version} has no entries for tensors in float; left out: {_listed(floats)}")
    for key, value in (("excluded_layers", file.excluded_layers), ("quantizer_args", file.quantizer_args)):
        if value:
            notes.append(f"{version} has no {key}: left out")
    assumed = [
        tensor.name
        for tensor in file.tensors
        if tensor.axis is not None and (model is None or tensor.name not in model.shapes)
    ]
    if assumed:
        why = "a model would tell it" if model is None else "the model does not have them"
        notes.append(
            f"{file.version} does not tell the axis of scales per channel: 0 was taken, {why}: {_listed(assumed)}"
        )
    kept = tuple(tensor for tensor in file.tensors if not tensor.in_float)
    return replace(file, version=version, tensors=kept, excluded_layers=None, quantizer_args=None), notes


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(shown, names))
