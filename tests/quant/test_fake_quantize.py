"""Quantize-dequantize against torch's own ops, ONNX Runtime, and gradients in double precision."""

import math

import pytest
import torch
from torch import Tensor

from qatflow.quant.fake_quantize import fake_quantize
from qatflow.quant.grid import Encoding, Grid, along
from tests.quant.runtime import through_onnxruntime

UINT8 = Grid(8, signed=False, symmetric=False)
INT8 = Grid(8, signed=True, symmetric=True)
NARROW8 = Grid(8, signed=True, symmetric=True, narrow=True)
INT4 = Grid(4, signed=True, symmetric=True)
UINT16 = Grid(16, signed=False, symmetric=False)
GRIDS = {"uint8": UINT8, "int8": INT8, "narrow8": NARROW8, "int4": INT4, "uint16": UINT16}


def zero_point_of(grid: Grid, share: float = 0.4) -> float:
    return 0.0 if grid.symmetric else float(round(grid.qmax * share))


def off_ties(x: Tensor, scale: Tensor) -> Tensor:
    """Move values away from the middle between two steps, where float rounding decides."""
    steps = x / scale
    close = (steps - steps.floor() - 0.5).abs() < 1e-3
    return torch.where(close, x + 0.1 * scale, x)


@pytest.mark.parametrize("name", GRIDS)
def test_forward_is_torchs_per_tensor(name: str) -> None:
    grid = GRIDS[name]
    scale, zero_point = torch.tensor(0.037), zero_point_of(grid)
    x = off_ties(torch.randn(3, 1000) * 0.037 * (grid.qmax - grid.qmin), scale)
    wanted = torch.fake_quantize_per_tensor_affine(x, 0.037, int(zero_point), grid.qmin, grid.qmax)
    got = fake_quantize(x, scale, torch.tensor(zero_point), grid)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
    saturated = (got == wanted.max()) | (got == wanted.min())
    assert 0 < int(saturated.sum()) < x.numel()


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("grid", [UINT8, INT8], ids=["uint8", "int8"])
def test_forward_is_torchs_per_channel(axis: int, grid: Grid) -> None:
    x = torch.randn(5, 6, 7)
    channels = x.shape[axis]
    scale = torch.rand(channels) * 0.01 + 0.005
    zero_point = torch.full((channels,), zero_point_of(grid)) + (0 if grid.symmetric else torch.arange(channels))
    x = off_ties(x, along(scale, x, axis))
    wanted = torch.fake_quantize_per_channel_affine(x, scale, zero_point.int(), axis % 3, grid.qmin, grid.qmax)
    torch.testing.assert_close(fake_quantize(x, scale, zero_point, grid, axis), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("grid", [UINT8, INT8], ids=["uint8", "int8"])
def test_forward_is_onnxruntimes_to_the_last_bit_ties_included(grid: Grid) -> None:
    zero_point = torch.tensor(zero_point_of(grid))
    for scale in (torch.tensor(0.0437), torch.tensor(0.25), torch.tensor(3.1e-4)):
        ties = (torch.arange(-300, 300) + 0.5) * scale
        x = torch.cat([torch.randn(20_000) * 90 * scale, ties, torch.tensor([0.0, 1e9, -1e9])])
        wanted = through_onnxruntime(x, Encoding(grid, scale, zero_point))
        assert torch.equal(fake_quantize(x, scale, zero_point, grid), wanted)
        encoding = Encoding(grid, scale, zero_point)
        assert torch.equal(encoding.dequantize(encoding.quantize(x)), wanted)


@pytest.mark.parametrize("axis", [0, 1])
def test_forward_is_onnxruntimes_per_channel(axis: int) -> None:
    x = torch.randn(4, 5, 3, 3)
    scale = torch.rand(x.shape[axis]) * 0.01 + 0.005
    encoding = Encoding(INT8, scale, torch.zeros_like(scale), axis)
    got = fake_quantize(x, scale, encoding.zero_point, INT8, axis)
    assert torch.equal(got, through_onnxruntime(x, encoding))


def test_ties_go_to_the_even_step() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    got = fake_quantize(x, torch.tensor(1.0), torch.tensor(0.0), INT8)
    assert got.tolist() == [0.0, 2.0, 2.0, 0.0, -2.0]


def reference(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, axis: int | None) -> Tensor:
    """The straight-through estimator spelled out with autograd: rounding is the identity backwards."""

    def straight(values: Tensor) -> Tensor:
        return values + (values.round() - values).detach()

    s, z = along(scale, x, axis), straight(along(zero_point, x, axis))
    q = straight(x / s) + z
    inside = (q >= grid.qmin) & (q <= grid.qmax)
    ends = torch.where(q > grid.qmax, grid.qmax, grid.qmin)
    return (torch.where(inside, q, ends) - z) * s


def gradients(call, x: Tensor, scale: Tensor, zero_point: Tensor, weight: Tensor) -> list[Tensor]:
    leaves = [value.clone().requires_grad_() for value in (x, scale, zero_point)]
    (call(*leaves) * weight).sum().backward()
    return [leaf.grad for leaf in leaves]


def lsq(x: Tensor, scale: Tensor, grid: Grid) -> float:
    return 1 / math.sqrt(x.numel() / scale.numel() * grid.qmax)


CASES = {
    "per_tensor": ((4, 9, 5), None),
    "axis_0": ((4, 9, 5), 0),
    "axis_1": ((4, 9, 5), 1),
    "vector_axis_0": ((6,), 0),
    "scalar": ((), None),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("grid", [UINT8, INT8, INT4], ids=["uint8", "int8", "int4"])
def test_gradients_are_the_straight_through_estimators(grid: Grid, case: str) -> None:
    shape, axis = CASES[case]
    size = () if axis is None else (shape[axis],)
    scale = torch.rand(size, dtype=torch.float64) * 0.02 + 0.01
    zero_point = torch.full(size, zero_point_of(grid), dtype=torch.float64) + (0 if grid.symmetric else 0.3)
    x = torch.randn(shape, dtype=torch.float64) * 0.015 * (grid.qmax - grid.qmin)
    weight = torch.randn(shape, dtype=torch.float64)
    got = gradients(lambda *leaves: fake_quantize(*leaves, grid, axis), x, scale, zero_point, weight)
    wanted = gradients(lambda *leaves: reference(*leaves, grid, axis), x, scale, zero_point, weight)
    factor = lsq(x, scale, grid)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-14, atol=0)
    torch.testing.assert_close(got[1], wanted[1] * factor, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[2], wanted[2] * factor, rtol=1e-12, atol=1e-12)


def test_gradients_at_saturation_and_at_exact_ties() -> None:
    scale, zero_point = torch.tensor(0.5, dtype=torch.float64), torch.tensor(100.0, dtype=torch.float64)
    low, high = -100 * 0.5, 155 * 0.5
    x = torch.tensor(
        [low, low - 0.24, low - 0.26, high, high + 0.24, high + 0.26, 0.25, 0.75, -0.25], dtype=torch.float64
    )
    one_by_one = [
        gradients(lambda *leaves: fake_quantize(*leaves, UINT8), value, scale, zero_point, torch.tensor(1.0))
        for value in x
    ]
    factor = 1 / math.sqrt(255)
    inside = [1, 1, 0, 1, 1, 0, 1, 1, 1]
    assert [float(one[0]) for one in one_by_one] == inside
    ds = [0, 0.48, -100, 0, -0.48, 155, -0.5, 0.5, 0.5]
    assert [float(one[1]) for one in one_by_one] == pytest.approx([slope * factor for slope in ds])
    dz = [0 if kept else -0.5 * factor for kept in inside]
    assert [float(one[2]) for one in one_by_one] == pytest.approx(dz)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("grid", [UINT8, INT8], ids=["uint8", "int8"])
def test_gradients_are_those_of_torchs_learnable_op(grid: Grid, axis: int | None) -> None:
    x = torch.randn(6, 5, 4) * 3
    channels = 1 if axis is None else x.shape[axis]
    scale = torch.rand(channels) * 0.01 + 0.01
    zero_point = torch.full((channels,), zero_point_of(grid))
    x = off_ties(x, along(scale, x, axis) if axis is not None else scale)
    weight = torch.randn(x.shape)
    factor = lsq(x, scale, grid)

    def torchs(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        if axis is None:
            return torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, grid.qmin, grid.qmax, factor)
        return torch._fake_quantize_learnable_per_channel_affine(
            x, scale, zero_point, axis, grid.qmin, grid.qmax, factor
        )

    def ours(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        if axis is None:
            scale, zero_point = scale.squeeze(), zero_point.squeeze()
        return fake_quantize(x, scale, zero_point, grid, axis)

    got, wanted = (gradients(call, x, scale, zero_point, weight) for call in (ours, torchs))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)
    assert float(got[1].abs().max()) > 0.1


@pytest.mark.parametrize(("shape", "axis"), [((0, 4), None), ((0, 4), 1), ((3, 0), 0)])
def test_an_empty_tensor_stays_empty_and_gives_no_gradient(shape: tuple[int, ...], axis: int | None) -> None:
    size = () if axis is None else (shape[axis],)
    x, scale, zero_point = torch.zeros(shape), torch.ones(size), torch.zeros(size)
    got = gradients(lambda *leaves: fake_quantize(*leaves, INT8, axis), x, scale, zero_point, torch.tensor(1.0))
    assert [tuple(gradient.shape) for gradient in got] == [shape, size, size]
    assert float(got[1].sum()) == float(got[2].sum()) == 0


def test_only_the_gradients_that_are_asked_for() -> None:
    x, scale = torch.randn(8), torch.tensor(0.1, requires_grad=True)
    fake_quantize(x, scale, torch.tensor(0.0), INT8).sum().backward()
    assert x.grad is None
    assert scale.grad is not None
