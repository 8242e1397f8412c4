"""torchao: its flow of export, `prepare_pt2e` and `convert_pt2e`, with the quantizer for x86.

The quantizer's own configuration is kept (histogram observers for activations, minimum and maximum for weights), but
for the bits, and for the scale per tensor where the case asks for it. Other than at 8 bits there are no kernels; the
numbers are right all the same.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.peers.case import Case, Measure, PeerError, inference

NAME = "torchao"
INSTALL = "pip install torchao==0.18.0"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torchao and the exporter from logging and warning."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _configuration(case: Case) -> Any:
    """Return the default configuration for x86 with the bits of the case."""
    from torchao.quantization.pt2e.observer import MinMaxObserver
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    default = x86.get_default_x86_inductor_quantization_config()
    activation = dataclasses.replace(default.input_activation, quant_max=2**case.activations - 1)
    half = 2 ** (case.weights - 1)
    weight = dataclasses.replace(default.weight, quant_min=-half, quant_max=half - 1)
    if not case.per_channel:
        weight = dataclasses.replace(
            weight,
            qscheme=torch.per_tensor_symmetric,
            ch_axis=None,
            observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12),
        )
    return dataclasses.replace(default, input_activation=activation, output_activation=activation, weight=weight)


def run(case: Case, measure: Measure, **_: Any) -> None:
    """Measure the one step that there is, `pt2e`.

    Raises:
        PeerError: torchao is not installed, has no such bits, or cannot take the model.
    """
    with _quiet():
        try:
            from torchao.quantization.pt2e import move_exported_model_to_eval
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
            from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer
        except ImportError as error:
            message = f"{INSTALL} ({error})"
            raise PeerError(message) from error
    if max(case.weights, case.activations) > 8:
        message = f"the x86 quantizer has 8 bits at most, not W{case.weights}A{case.activations}"
        raise PeerError(message)
    start = time.perf_counter()
    with _quiet():
        batch = torch.export.Dim("batch", min=1, max=4096)
        try:
            exported = torch.export.export(
                copy.deepcopy(case.model), (case.calibration[0],), dynamic_shapes=({0: batch},)
            )
            quantizer = X86InductorQuantizer().set_global(_configuration(case))
            model: nn.Module = prepare_pt2e(exported.module(), quantizer)
            with torch.no_grad():
                for inputs in case.calibration:
                    model(inputs)
            model = move_exported_model_to_eval(convert_pt2e(model))
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            message = f"prepare_pt2e, convert_pt2e: {error}"
            raise PeerError(message) from error
    measure("pt2e", inference(model), time.perf_counter() - start)
