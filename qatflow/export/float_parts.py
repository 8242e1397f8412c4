"""Which parts of a model do not pay on integers: measured in its runtime, file beside file, in turn.

Integers are not faster everywhere: a small depthwise convolution, or an op between quantizers that has no integer
kernel, costs more than it saves. Every part (`qatflow.quant.regions`) is tried in float by itself; those that pay are
taken together one after the other, and then what is left once more, since two parts in float beside each other need no
conversion between them. Files that are only timed are made of the quantized one, without the Q/DQ of the parts, where
that is possible: the numbers in them do not matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import onnx_ir as ir

from qatflow.errors import ExportError
from qatflow.export.integer_biases import integer_biases
from qatflow.export.latency import Beside, beside
from qatflow.export.loaded import LoadedFile
from qatflow.export.onnx_export import onnx_files
from qatflow.export.onnx_file import save_onnx
from qatflow.export.onnx_float import without_qdq
from qatflow.export.onnx_spelling import spell
from qatflow.export.pte_export import export_pte
from qatflow.export.runtimes import Runtime
from qatflow.export.signature import Example, Signature, repeated
from qatflow.quant.network import Network
from qatflow.quant.placement import place
from qatflow.quant.regions import Region, gone, in_float, regions
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Export
from qatflow.recipe.targets import FileKind
from qatflow.steps.set_precision import redesigned

SECONDS = 1.5
"""For two files in turn."""
LEAST_GAIN = 1.01
MOST_SECONDS = 600.0
"""After which nothing more is tried."""
Track = Callable[[Iterable[Region], str], Iterable[Region]]


class Files:
    """Files of one simulation with some parts in float, loaded as their runtime runs them by default.

    Args:
        simulation: calibrated or trained.
        example: positional and keyword inputs, at least 2 samples.
        config: how files are written.
        kind: of the files.
        runtime: that runs them.
        folder: for them.
    """

    def __init__(
        self, simulation: Simulation, example: Example, config: Export, kind: FileKind, runtime: Runtime, folder: Path
    ) -> None:
        self.simulation, self.example, self.config, self.folder = simulation, example, config, folder
        self.network: Network = simulation.network
        self.load = runtime.by_default or runtime.load
        self.model: ir.Model | None = None
        if kind == "onnx":
            files = onnx_files(simulation, integer_biases(simulation), example, config)
            self.model, self.signature, self.tensors = files.quantized, files.signature, files.tensors
        else:
            self.signature = Signature.of(self.network.graph, example)

    def with_parts_in_float(self, parts: Iterable[str]) -> LoadedFile | None:
        """Return the file with some parts in float; None where that changes nothing, or leaves no integers.

        Raises:
            ExportError: it cannot be written or loaded.
        """
        network = in_float(self.network, parts)
        if network is None:
            return None
        if self.model is None:
            return self.load(*self._program(network, self.folder / "tried.pte"), ())
        path = self.folder / "tried.onnx"
        names = gone(self.simulation.placement, place(network))
        model = without_qdq(self.model, {self.tensors.names.get(name, name) for name in names})
        road = self.network.design.target.road
        spell(model, [one for one in road.spelling if one == "float_layer_before_sum"])
        save_onnx(model, path)  # a new file in the place of the one before, which whoever has it open keeps
        return self.load(path, self.signature, ())

    def _program(self, network: Network, path: Path) -> tuple[Path, Signature]:
        simulation = Simulation(redesigned(self.network, network))
        simulation.calibrate([self.example])
        found = export_pte(simulation, self.example, path, batch=self.config.batch or 1)
        return found.path, found.signature

    def timed(self, one: LoadedFile, other: LoadedFile) -> Beside:
        """Return how many times as fast one file is as another."""
        args, kwargs = repeated(self.config.batch or 1, self.example)
        return beside(partial(one.run, args, kwargs), partial(other.run, args, kwargs), SECONDS)


def float_parts(files: Files, track: Track) -> Region:
    """Return the patterns of all parts that together are faster in float; none where none is.

    Args:
        files: to time.
        track: passes parts on, and shows how many are done.

    Raises:
        ExportError: the quantized file cannot be loaded.
    """
    end = time.monotonic() + MOST_SECONDS
    now, chosen = files.with_parts_in_float(()), Region()
    assert now is not None
    pending = regions(files.network)
    while pending:
        gains = dict(_gains(files, now, chosen, track(pending, "parts in float"), end))
        found = _taken(files, now, chosen, sorted(gains, key=lambda part: -gains[part]), end)
        if found is None:
            break
        now, chosen, taken = found
        pending = [part for part in pending if part not in taken]
    return chosen


def _gains(
    files: Files, now: LoadedFile, chosen: Region, parts: Iterable[Region], end: float
) -> Iterator[tuple[Region, float]]:
    """Yield the parts that pay by themselves, beside those that are chosen, and how many times as fast they make it."""
    for part in parts:
        found = _tried(files, now, (*chosen, *part), end)
        if found is not None:
            yield part, found[1]


def _taken(
    files: Files, now: LoadedFile, chosen: Region, parts: Iterable[Region], end: float
) -> tuple[LoadedFile, Region, list[Region]] | None:
    """Take parts together, each as long as it still pays; None where none does."""
    taken: list[Region] = []
    for part in parts:
        found = _tried(files, now, (*chosen, *part), end)
        if found is not None:
            now, chosen = found[0], (*chosen, *part)
            taken.append(part)
    return (now, chosen, taken) if taken else None


def _tried(files: Files, now: LoadedFile, parts: Region, end: float) -> tuple[LoadedFile, float] | None:
    """Return a file with more parts in float and how many times as fast it is; None where it is not, beyond chance."""
    if time.monotonic() > end:
        return None
    try:
        file = files.with_parts_in_float(parts)
        found = None if file is None else files.timed(file, now)
    except ExportError:  # a part that this runtime does not take in float is none that pays
        return None
    if file is None or found is None:
        return None
    return (file, found.ratio) if found.faster and found.ratio > LEAST_GAIN else None
