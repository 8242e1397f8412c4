"""The compiled kernels against the formulas in double precision: exact where they must be, bounded where they round."""

import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qatflow.quant import fused
from qatflow.quant.fake_quantize import NO_BOUNDS, Bounds, fake_quantize, followed_range
from qatflow.quant.fused import CODES_A_STEP, SMALLEST, Kernels, kernels, usable
from qatflow.quant.grid import Grid, channel_range, encoding_of_range

UINT8 = Grid(8, signed=False, symmetric=False)
INT4 = Grid(4, signed=True, symmetric=True)
RELU, RELU6, HALF_OFF = (0.0, math.inf), (0.0, 6.0), (-1.0, 40.0)
CHANNELS = 64


@pytest.fixture(autouse=True, scope="module")
def _fresh_compiler() -> None:
    """What other tests of this process had compiled would count against the limit that is looked at here."""
    torch._dynamo.reset()
    kernels.cache_clear()


def values(grid: Grid, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """Values over the whole grid and beyond it, exact ties, zeros, and an empty channel where there are channels."""
    shape = (CHANNELS, SMALLEST // CHANNELS + 7)
    generator = torch.Generator().manual_seed(1)
    spread = (grid.qmax - grid.qmin) * 0.4
    s = scale if axis is None else scale[:, None]
    z = zero_point if axis is None else zero_point[:, None]
    x = (torch.randn(shape, generator=generator) * spread + (grid.qmax + grid.qmin) / 2 - z) * s
    x[:, :40] = ((torch.arange(40) - 20) + 0.5) * s  # exact in float32: scales are powers of two
    x[:, 40:50] = 0.0
    if axis == 0:
        x[3] = 0.0
    return x


def gradients(x: Tensor, scale: Tensor, zero_point: Tensor, weight: Tensor, *args: object, **kwargs: object):
    leaves = [one.clone().requires_grad_() for one in (x, scale, zero_point)]
    result = fake_quantize(*leaves, *args, **kwargs)
    (result * weight).sum().backward()
    return result.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize("clip", [NO_BOUNDS, RELU, RELU6, HALF_OFF], ids=["none", "relu", "relu6", "half_off"])
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("grid", [UINT8, INT4], ids=["uint8", "int4"])
def test_values_and_gradients_are_those_in_double_precision(grid: Grid, axis: int | None, clip: Bounds) -> None:
    size = () if axis is None else (CHANNELS,)
    scale = torch.full(size, 2.0**-5) * (2.0 ** (torch.arange(CHANNELS) % 3) if axis == 0 else 1.0)
    zero_point = torch.full(size, 0.0 if grid.symmetric else 100.0)
    x = values(grid, scale, zero_point, axis)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    assert usable(x) is not None, "no compiler here: the test would compare the reference with itself"
    got = gradients(x, scale, zero_point, weight, grid, axis, clip=clip)
    exact = (one.double() for one in (x, scale, zero_point, weight))
    wanted = gradients(*exact, grid, axis, clip=clip)
    assert torch.equal(got[0].double(), wanted[0])
    assert torch.equal(got[1].double(), wanted[1])
    assert 0 < int((got[1] == 0).sum()) < x.numel()
    rows = (lambda one: one.sum()) if axis is None else (lambda one: one.sum(1))
    factor = 1 / math.sqrt(x.numel() / max(1, scale.numel()) * grid.qmax)
    rounding = rows(weight.double().abs()) * factor * (0.5 / CODES_A_STEP + 1e-5)
    assert bool(((got[2].double() - wanted[2]).abs() <= rounding).all())
    assert float(wanted[2].abs().max()) > float(rounding.max())
    torch.testing.assert_close(got[3].double(), wanted[3], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 16, 64, 65), (4, 8, 16, 32, 33)])
def test_any_layout_of_memory_gives_the_same(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    weight = torch.randn(shape)
    args = torch.tensor(0.02), torch.tensor(128.0)
    plain = gradients(x, *args, weight, UINT8)
    last = gradients(x.contiguous(memory_format=formats[len(shape)]), *args, weight, UINT8)
    assert last[0].is_contiguous(memory_format=formats[len(shape)])
    for one, other in zip(plain, last, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_tensor_with_gaps_is_rounded_op_by_op() -> None:
    x = torch.randn(600, 1000)[:, ::2]
    assert x.numel() > SMALLEST
    got = gradients(x, torch.tensor(0.02), torch.tensor(128.0), torch.ones(x.shape), UINT8)
    wanted = gradients(x.contiguous(), torch.tensor(0.02), torch.tensor(128.0), torch.ones(x.shape), UINT8)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


def test_what_is_kept_for_the_backward_pass_is_a_byte_an_element() -> None:
    kept: list[Tensor] = []
    x = torch.randn(1000, 1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        fake_quantize(x, torch.tensor(0.02, requires_grad=True), torch.tensor(128.0), UINT8)
    assert sum(one.numel() * one.element_size() for one in kept) < 1.001 * x.numel()


def test_frozen_ranges_give_the_same_gradient_of_the_tensor() -> None:
    x = torch.randn(700, 700)
    scale, zero_point = torch.tensor(0.01), torch.tensor(100.0)
    learned = gradients(x, scale, zero_point, torch.ones(x.shape), UINT8)
    frozen = x.clone().requires_grad_()
    fake_quantize(frozen, scale, zero_point, UINT8).sum().backward()
    assert torch.equal(frozen.grad, learned[1])


def test_bfloat16_is_rounded_in_float32() -> None:
    x = (torch.randn(600, 600) * 3).bfloat16()
    scale, zero_point = torch.tensor(0.03), torch.tensor(128.0)
    got = gradients(x, scale, zero_point, torch.ones(x.shape, dtype=torch.bfloat16), UINT8)
    wanted = gradients(x.float(), scale, zero_point, torch.ones(x.shape), UINT8)
    assert got[0].dtype == got[1].dtype == torch.bfloat16
    assert torch.equal(got[0], wanted[0].bfloat16())
    assert torch.equal(got[1].float(), wanted[1])
    small = gradients(x[:9, :9], scale, zero_point, torch.ones(9, 9, dtype=torch.bfloat16), UINT8)
    assert torch.equal(small[0], got[0][:9, :9])


def test_without_a_compiler_everything_runs_op_by_op(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object):
        def call(*args: object) -> None:
            raise RuntimeError("no C++ compiler\nand more")

        return call

    x = torch.randn(600, 600)
    args = torch.tensor(0.01), torch.tensor(100.0), torch.ones(x.shape), UINT8
    wanted = gradients(x, *args)
    monkeypatch.setattr(torch, "compile", broken)
    kernels.cache_clear()
    try:
        assert kernels("cpu") == "torch.compile failed on this machine: no C++ compiler"
        assert usable(x) is None
        got = gradients(x, *args)
    finally:
        kernels.cache_clear()
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])
    assert "mps" in str(kernels("mps"))


@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def test_few_variants_serve_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant a shape would soon hit the compiler's limit and fall back to running op by op."""
    found = kernels("cpu")
    assert isinstance(found, Kernels)
    torch._dynamo.reset()  # what other tests compiled does not count
    torch._dynamo.utils.counters.clear()
    for rows, columns in [(1, 300_000), (1, 400_001), (32, 9_000), (64, 8_192), (96, 5_000), (512, 4_608), (7, 50_000)]:
        x = torch.randn(rows, columns, requires_grad=True)
        scale = torch.full((rows,), 0.1, requires_grad=True)
        fake_quantize(x, scale, torch.zeros(rows), INT4, 0).sum().backward()
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled <= 4
    assert fused.SMALLEST <= 300_000
    monkeypatch.setattr(fused, "SMALLEST", 1)
    for out, inner, size, groups in product((8, 32, 96), (1, 16, 64), (1, 3, 5), (1, 8)):
        weight = torch.randn(out, inner, size, size, requires_grad=True)
        scale = torch.full((out,), 0.1, requires_grad=True)
        x = torch.randn(2, inner * groups, 9, 9)
        result = nn.functional.conv2d(x, fake_quantize(weight, scale, torch.zeros(out), INT4, 0), groups=groups)
        fake_quantize(result, torch.tensor(0.1, requires_grad=True), torch.tensor(0.0), UINT8).sum().backward()


def test_without_a_compiler_everything_runs_op_by_op_and_the_reason_is_told(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "tests.quant.no_compiler"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("torch.compile failed on this machine: ")


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("grid", [INT4, UINT8, Grid(8, signed=True, symmetric=True, narrow=True)])
def test_scales_that_follow_weights_are_min_max_to_the_last_bit(grid: Grid, axis: int | None) -> None:
    weight = torch.randn(CHANNELS, SMALLEST // CHANNELS + 3, generator=torch.Generator().manual_seed(3))
    weight[3] = 0
    weight[4].abs_()
    weight[5].abs_().neg_()
    assert usable(weight) is not None
    wanted = encoding_of_range(grid, *channel_range(weight, axis), axis)
    scale, zero_point = followed_range(weight, grid, axis)
    assert torch.equal(scale, wanted.scale)
    assert torch.equal(zero_point, wanted.zero_point)
