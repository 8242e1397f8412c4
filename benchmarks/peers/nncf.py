"""NNCF: `nncf.quantize`, which corrects biases as well, at 8 bits only.

Weights are symmetric and activations asymmetric, over the full range of 8 bits, as the others have them, and inputs of
depthwise convolutions have one scale per tensor, where NNCF would have one per channel. Batch norms are folded. NNCF
reads calibration samples one by one, as its guide says.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.peers.case import Case, Measure, PeerError, inference

NAME = "NNCF"
INSTALL = "pip install nncf==3.4.0"
BITS = 8
STEPS = {"quantize": True, "quantize (accurate)": False}
"""Names, and whether biases are corrected fast, which is the default, or layer after layer."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF from writing its log, its progress bars, and the exporter's warnings."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _nncf() -> Any:
    with _quiet():
        try:
            import nncf
            import nncf.torch
        except ImportError as error:
            message = f"{INSTALL} ({error})"
            raise PeerError(message) from error
    return nncf


def run(case: Case, measure: Measure, *, steps: Sequence[str] = tuple(STEPS), **_: Any) -> None:
    """Measure NNCF's quantization, with its fast and its accurate correction of biases.

    Args:
        case: what to quantize; 8 bits.
        measure: called after each step.
        steps: some of `STEPS`.

    Raises:
        PeerError: NNCF is not installed, has no such bits, or cannot take the model.
    """
    nncf = _nncf()
    if (case.weights, case.activations) != (BITS, BITS):
        message = f"nncf.quantize has 8 bits only, not W{case.weights}A{case.activations}"
        raise PeerError(message)
    samples = [sample for batch in case.calibration for sample in batch.split(1)]
    for step in steps:
        start = time.perf_counter()
        with _quiet():
            quantized = _quantized(nncf, case, samples, fast=STEPS[step])
        measure(step, inference(quantized), time.perf_counter() - start)


def _quantized(nncf: Any, case: Case, samples: list[torch.Tensor], *, fast: bool) -> nn.Module:
    """Return a quantized copy of the model: NNCF's backend for exported graphs, which compiles no extension."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    example = case.calibration[0]
    model = torch.export.export(copy.deepcopy(case.model), (example,), dynamic_shapes=({0: batch},)).module()
    advanced = nncf.quantization.advanced_parameters
    parameters = advanced.AdvancedQuantizationParameters(
        overflow_fix=advanced.OverflowFix.DISABLE,
        activations_quantization_params=advanced.QuantizationParameters(per_channel=False),
        weights_quantization_params=advanced.QuantizationParameters(per_channel=case.per_channel),
    )
    try:
        quantized: nn.Module = nncf.quantize(
            model,
            nncf.Dataset(samples),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(samples),
            fast_bias_correction=fast,
            advanced_parameters=parameters,
        )
    except (nncf.InternalError, nncf.ValidationError, nncf.UnsupportedModelError, RuntimeError, ValueError) as error:
        message = f"nncf.quantize: {error}"
        raise PeerError(message) from error
    return quantized
