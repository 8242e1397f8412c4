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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


def backward(grad: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradient of the tensor, and three sums a channel that those of scale and zero point are made of.

    The sums, shape `[channels]`: gradient times the rounding in steps inside the grid, gradient below, gradient above.
    """
    wide, codes = grad.float(), code.float()  # codes compared as floats are vectorised, as bytes they are not
    below, above = codes == BELOW, codes == ABOVE
    inside = torch.where(below | above, 0.0, wide)
    moved = (inside * (codes - NONE)).sum(1) / CODES_A_STEP
    off_below, off_above = torch.where(below, wide, 0.0).sum(1), torch.where(above, wide, 0.0).sum(1)
    return inside.to(grad.dtype), moved, off_below, off_above


def extent(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest of every row of `x`, shape `[channels, values]`; shape `[channels]`."""
    return x.amin(1), x.amax(1)


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
    extent: Callable[..., Any]


FUNCTIONS: tuple[Callable[..., Any], ...] = (forward, forward_in_place, backward, backward_frozen, extent)


@functools.cache
def kernels(device: str) -> Kernels | str:
    """Return the compiled kernels for a type of device, or why there are none: then everything runs op by op."""
    if device not in ("cpu", "cuda"):
        return f"torch.compile is not used on {device}"
    compiled = Kernels(*(torch.compile(one, dynamic=True) for one in FUNCTIONS))
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


def usable(x: Tensor) -> Kernels | None:
    """Return the kernels for a tensor that they make faster; None for a small one, other types, or no compiler."""
    if x.numel() < SMALLEST or x.dtype not in (torch.float32, torch.bfloat16) or torch.compiler.is_compiling():
        return None
    found = kernels(x.device.type)
    return found if isinstance(found, Kernels) else None
