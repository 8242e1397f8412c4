"""The kernels of fake-quantization, each one pass over memory, compiled by `torch.compile`.

Run op by op, quantize-dequantize and its gradients read and write a large tensor a dozen times, and a training step is
bound by memory. Compiled, the forward pass costs about as much as a ReLU and so does the backward pass. All shapes come
as rows, `[channels, values]`, so that a handful of compiled variants serves every quantizer of every model.

What the backward pass needs of an element is kept as one byte instead of the input's four: whether it fell off the
grid, and on which side, and otherwise how far it was rounded, in 250ths of a step. The gradient of the tensor is exact
with that; those of scale and zero point are sums of many elements, each off by at most a 500th of a step.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qatflow.quant.compiled_files import compiler_cache, remove_half_written

SMALLEST = 2**14
"""Elements from which on fewer passes over memory outweigh what a call of a compiled kernel costs, about 100 us."""
BELOW, ABOVE = 254, 255
"""Codes of elements that fell off the grid, or were clipped."""
CODES_A_STEP, NONE = 250, 125
"""Codes of half a step down to half a step up are 0 to 250, of no rounding 125."""


def forward(x: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Return `clamp(round(x / scale), low, high) * scale` and a code of every element.

    Args:
        x: shape `[channels, values]`, float32 or bfloat16; rounding is in float32.
        bounds: shape `[5, channels]`: scale, smallest and largest whole number, and the least and most that `x` itself
            is clipped to; the whole numbers are within these.
    """
    scale, low, high, least, most = (row[:, None] for row in bounds.unbind())
    wide = x.float()
    steps = wide / scale
    rounded = steps.round()
    below = (wide < least) | (rounded < low)
    above = (wide > most) | (rounded > high)
    moved = (rounded - steps) * CODES_A_STEP + (NONE + 0.5)  # positive, so that cutting off rounds, and is vectorised
    code = torch.where(below, float(BELOW), torch.where(above, float(ABOVE), moved)).to(torch.uint8)
    return (rounded.clamp(low, high) * scale).to(x.dtype), code


def forward_in_place(x: Tensor, bounds: Tensor) -> Tensor:
    """Put the result of `forward` where `x` is, and return the codes."""
    result, code = forward(x, bounds)
    x.copy_(result)
    return code


def backward(grad: Tensor, code: Tensor, bounds: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the tensor, and those of scale and zero point, shape `[channels]`, without LSQ's factor.

    What is outside has one slope a side: that of the grid's end, or of the rounded bound that clipped it.

    Args:
        grad: shape `[channels, values]`.
        code: what `forward` gave.
        bounds: as in `forward`.
        ends: shape `[2, channels]`: smallest and largest whole number of the grid itself.
    """
    wide, codes = grad.float(), code.float()  # codes compared as floats are vectorised, as bytes they are not
    below, above = codes == BELOW, codes == ABOVE
    inside = torch.where(below | above, 0.0, wide)
    moved = (inside * (codes - NONE)).sum(1) / CODES_A_STEP
    outside = torch.where(below, wide, 0.0).sum(1), torch.where(above, wide, 0.0).sum(1)
    scale, clips = bounds[0], bounds[3:] / bounds[0]
    low, high = ends
    cut_low, cut_high = clips[0].round(), clips[1].round()
    off_low, off_high = cut_low < low, cut_high > high
    slope_low = torch.where(off_low, low, cut_low - clips[0])
    slope_high = torch.where(off_high, high, cut_high - clips[1])
    grad_scale = moved + outside[0] * slope_low + outside[1] * slope_high
    grad_zero_point = -(outside[0] * torch.where(off_low, scale, 0.0) + outside[1] * torch.where(off_high, scale, 0.0))
    return inside.to(grad.dtype), grad_scale, grad_zero_point


def followed(x: Tensor, ends: Tensor, smallest: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return the min-max scale and zero point of every row of `x`, as `grid.encoding_of_range` does, in one pass.

    Args:
        x: shape `[channels, values]`.
        ends: shape `[2]`: smallest and largest whole number of the grid.
        smallest: the smallest scale, shape `[]`.
        symmetric: whether the zero point is 0.
    """
    least, most = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    qmin, qmax = ends
    if symmetric:
        scale = torch.maximum(torch.maximum(most / qmax, least / qmin), smallest)
        return scale, torch.zeros_like(scale)
    scale = torch.maximum((most - least) / (qmax - qmin), smallest)
    return scale, (qmin - (least / scale).round()).clamp(qmin, qmax)


def backward_frozen(grad: Tensor, code: Tensor) -> Tensor:
    """Return the gradient of the tensor alone."""
    codes = code.float()
    return torch.where((codes == BELOW) | (codes == ABOVE), 0.0, grad.float()).to(grad.dtype)


@dataclass(frozen=True)
class Kernels:
    """The functions above, compiled."""

    forward: Callable[..., Any]
    forward_in_place: Callable[..., Any]
    backward: Callable[..., Any]
    backward_frozen: Callable[..., Any]
    followed: Callable[..., Any]


_chosen = ContextVar("_chosen", default=True)
FUNCTIONS: tuple[Callable[..., Any], ...] = (forward, forward_in_place, backward, backward_frozen, followed)


@functools.cache
def kernels(device: str) -> Kernels | str:
    """Return the compiled kernels for a type of device, or why there are none: then everything runs op by op."""
    if device not in ("cpu", "cuda"):
        return f"torch.compile is not used on {device}"
    compiled = Kernels(*(torch.compile(one, dynamic=True) for one in FUNCTIONS))
    remove_half_written(compiler_cache())
    try:
        with _quietly(), torch.no_grad():
            compiled.forward(torch.zeros(2, 3, device=device), torch.ones(5, 2, device=device))
    except Exception as error:  # noqa: BLE001  no compiler, a broken one, no Triton: there are many ways
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"torch.compile failed on this machine: {said}"
    return compiled


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back what the compiler's own packages warn of, such as a CUDA that a CPU does not need."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def choice(compiled: bool) -> Iterator[None]:
    """Use kernels in here where there are any, or run everything op by op: sums of gradients differ in a last bit."""
    before = _chosen.set(compiled)
    try:
        yield
    finally:
        _chosen.reset(before)


def usable(x: Tensor) -> Kernels | None:
    """Return the kernels for a tensor that they make faster; None for a small one, other types, or no compiler."""
    if x.numel() < SMALLEST or x.dtype not in (torch.float32, torch.bfloat16) or torch.compiler.is_compiling():
        return None
    if not _chosen.get():
        return None
    found = kernels(x.device.type)
    return found if isinstance(found, Kernels) else None
