"""AIMET's automatic mixed precision (AMP): weights of 4 or 8 bits, chosen layer after layer.

Phase 1 measures the model with one group of quantizers at 4 bits and all others off, for every group; the weights of
layers that read one tensor are one group. Phase 2 walks down that list, from all at 8 bits to all at 4, calibrates anew
and measures after every group. Its way to the end (`BruteForce`) gives the whole front; for one accuracy its default,
`Binary`, measures fewer of the same points. Both phases are given the SQNR of the outputs, as AIMET's guide has it for
phase 1.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import aimet
from benchmarks.peers.case import Case, PeerError, inference
from qatflow.quant.grid import sqnr_db

LOW, HIGH = 4, 8
"""Bits of a weight."""

Bits = Mapping[str, int]
"""Of the weight of every layer, by the layer's path in the prepared model."""


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        model: in float, prepared, as the search had it.
        choices: different ones, in the order of phase 2.
        phase1: seconds.
        phase2: seconds of the whole front.
    """

    model: nn.Module
    choices: list[Bits]
    phase1: float
    phase2: float


def float_model(case: Case, *, equalize: bool) -> nn.Module:
    """Return a copy of the model, prepared, with its batch norms folded, and with its layers equalized if asked.

    Raises:
        PeerError: AIMET is not installed, or cannot take the model.
    """
    if not equalize:
        return aimet.folded(case)
    from aimet_torch.cross_layer_equalization import equalize_model

    model = aimet.prepared(case)
    with _quiet():
        equalize_model(model, dummy_input=case.calibration[0])
    return model


def search(case: Case, scheme: str, *, equalize: bool) -> Found:
    """Search with all calibration data of the case.

    Args:
        case: at 8 bits.
        scheme: how ranges are chosen, one of `aimet.SCHEMES`.
        equalize: equalize layers before.

    Raises:
        PeerError: AIMET is not installed, or cannot take the model.
    """
    model = float_model(case, equalize=equalize)
    from aimet_torch.common.amp.utils import AMPSearchAlgo
    from aimet_torch.common.defs import CallbackFunc, QuantizationDataType
    from aimet_torch.mixed_precision import choose_mixed_precision

    wanted = _outputs(model, case.calibration)
    choices: list[Bits] = []
    ends: list[float] = []

    def closeness(simulated: nn.Module, _: Any = None) -> float:
        return sqnr_db(wanted, _outputs(simulated, case.calibration))

    def phase1(simulated: nn.Module, _: Any = None) -> float:
        found = closeness(simulated)
        ends.append(time.perf_counter())
        return found

    def phase2(simulated: nn.Module, _: Any = None) -> float:
        choices.append(_bits(simulated))
        return closeness(simulated)

    integer = QuantizationDataType.int
    candidates = [((case.activations, integer), (bits, integer)) for bits in (HIGH, LOW)]
    start = time.perf_counter()
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        sim = aimet.simulation(model, case, scheme, equal_grids=True)
        aimet.calibrate(sim, case.calibration)  # AMP runs the model before it calibrates
        try:
            choose_mixed_precision(
                sim,
                case.calibration[0],
                candidates,
                CallbackFunc(phase1),
                CallbackFunc(phase2),
                None,
                folder,
                True,
                CallbackFunc(lambda simulated, _=None: _outputs(simulated, case.calibration)),
                use_all_amp_candidates=True,
                amp_search_algo=AMPSearchAlgo.BruteForce,
            )
        except (RuntimeError, ValueError, KeyError, AssertionError) as error:
            message = f"choose_mixed_precision: {error}"
            raise PeerError(message) from error
    took = time.perf_counter() - start
    different = [one for place, one in enumerate(choices) if one not in choices[:place]]
    return Found(model, different, ends[-1] - start, took - (ends[-1] - start))


def simulated(found: Found, case: Case, scheme: str, bits: Bits) -> Callable[[Tensor], Tensor]:
    """Return the calibrated simulation of a choice."""
    with _quiet():
        sim = aimet.simulation(copy.deepcopy(found.model), case, scheme, equal_grids=True)
        for name, quantizer in _weights(sim.model):
            quantizer.bitwidth = bits[name]
        aimet.calibrate(sim, case.calibration)
    return inference(sim.model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with aimet.quiet(), contextlib.redirect_stdout(io.StringIO()):
        yield


def _weights(simulated: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the path of every layer whose weight is quantized, with that quantizer."""
    for name, module in simulated.named_modules():
        quantizers = getattr(module, "param_quantizers", {})
        if "weight" in quantizers and quantizers["weight"] is not None:
            yield name, quantizers["weight"]


def _bits(simulated: nn.Module) -> Bits:
    return {name: int(quantizer.bitwidth) for name, quantizer in _weights(simulated)}


def _outputs(model: nn.Module, batches: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(one) for one in batches])
