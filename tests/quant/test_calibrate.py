"""Ranges found by calibration, against numpy and brute force on the values themselves."""

import numpy as np
import pytest
import torch
from torch import Tensor

from qatflow.quant.calibrate import CLIPPED, WEIGHT_RATIOS, activation_encoding, weight_encoding
from qatflow.quant.grid import Encoding, Grid, channel_range, encoding_of_range
from qatflow.quant.histogram import Histogram
from qatflow.recipe import Calibration

UINT8 = Grid(8, signed=False, symmetric=False)
INT8 = Grid(8, signed=True, symmetric=True)


def seen(values: Tensor) -> Histogram:
    result = Histogram()
    for part in values.flatten().chunk(3):
        result.update(part)
    return result


def found(values: Tensor, method: str, grid: Grid = UINT8, percentile: float = 99.99) -> Encoding:
    return activation_encoding(seen(values), grid, Calibration(activations=method, percentile=percentile))


def error(values: Tensor, encoding: Encoding) -> float:
    return float((encoding.dequantize(encoding.quantize(values)) - values).double().square().mean())


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(3)
    normal = torch.randn(10_000)
    return {
        "normal": normal,
        "relu": normal.relu(),
        "relu6": (4 * normal).clamp(0, 6),
        "shifted": normal + 20,
        "negative": -(normal.abs()) - 1,
        "outliers": torch.cat([normal, torch.tensor([16.0, -20.0])]),
        "one outlier": torch.cat([normal.relu(), torch.tensor([30.0])]),
        "heavy tails": normal / (torch.rand(10_000) + 1e-2),
        "silu": torch.nn.functional.silu(3 * normal),
        "two peaks": torch.cat([normal * 0.01, normal * 0.01 + 7]),
        "few levels": torch.randint(-3, 9, (10_000,)).float(),
        "tiny": normal * 1e-12,
        "huge": normal * 1e12,
    }


@pytest.mark.parametrize("name", tensors())
@pytest.mark.parametrize("grid", [UINT8, INT8, Grid(4, False, False), Grid(16, False, False), Grid(3, True, True)])
def test_least_squared_error_is_never_worse_than_min_max(name: str, grid: Grid) -> None:
    values = tensors()[name]
    least, full = error(values, found(values, "sqnr", grid)), error(values, found(values, "minmax", grid))
    assert least <= full * 1.02 + 1e-30


@pytest.mark.parametrize("name", ["outliers", "one outlier", "heavy tails"])
def test_least_squared_error_cuts_outliers_off(name: str) -> None:
    values, grid = tensors()[name], Grid(4, False, False)
    assert error(values, found(values, "sqnr", grid)) < 0.8 * error(values, found(values, "minmax", grid))


@pytest.mark.parametrize("name", ["normal", "relu", "outliers", "silu"])
@pytest.mark.parametrize("grid", [UINT8, Grid(4, False, False)], ids=["uint8", "uint4"])
def test_least_squared_error_is_close_to_that_of_a_search_over_values(name: str, grid: Grid) -> None:
    values = tensors()[name]
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    shares = torch.linspace(0.05, 1, 20)
    best = min(
        error(values, encoding_of_range(grid, low * a, high * b))
        for a in (shares if low < 0 else shares[-1:])
        for b in shares
    )
    assert error(values, found(values, "sqnr", grid)) <= 1.02 * best


def test_min_max_is_exact() -> None:
    values = tensors()["outliers"]
    got = found(values, "minmax")
    assert float(got.scale) == pytest.approx(36 / 255)
    assert float(got.zero_point) == round(20 / (36 / 255))


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("name", ["normal", "relu", "outliers", "heavy tails"])
def test_percentile_is_numpys_within_a_bin(name: str, percentile: float) -> None:
    values = tensors()[name]
    histogram = seen(values)
    quantiles = np.quantile(values.double().numpy(), [1 - percentile / 100, percentile / 100], method="inverted_cdf")
    got = found(values, "percentile", Grid(16, False, False), percentile)
    wanted = encoding_of_range(Grid(16, False, False), *(torch.tensor(bound) for bound in quantiles))
    width = 1.01 * histogram.bin_width
    assert float(got.high - got.low) == pytest.approx(float(wanted.high - wanted.low), abs=2 * width)
    assert float(got.low) == pytest.approx(min(0.0, quantiles[0]), abs=width + float(got.scale))
    assert float(got.high) == pytest.approx(max(0.0, quantiles[1]), abs=width + float(got.scale))


@pytest.mark.parametrize("method", ["minmax", "percentile", "sqnr"])
@pytest.mark.parametrize("constant", [0.0, 3.0, -2.5, 1e-7, 1e7])
def test_a_constant_is_kept(method: str, constant: float) -> None:
    values = torch.full((100,), constant)
    got = found(values, method)
    assert torch.isfinite(got.scale)
    assert float(got.scale) > 0
    back = got.dequantize(got.quantize(values))
    torch.testing.assert_close(back, values, rtol=1e-2, atol=1e-9)


@pytest.mark.parametrize("method", ["minmax", "percentile", "sqnr"])
def test_one_sided_values_get_a_one_sided_grid(method: str) -> None:
    positive = tensors()["relu"] + 1
    assert float(found(positive, method).zero_point) == 0
    assert float(found(-positive, method).zero_point) == 255


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_scales_are_the_best_of_all_candidates(axis: int | None, bits: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 6, 3, 3).double() * torch.logspace(-2, 1, 5).view(-1, 1, 1, 1)
    weight[0, 0] = 40 * weight[0, 0]
    grid = Grid(bits, signed=True, symmetric=True)
    got = weight_encoding(weight, grid, axis, "sqnr")
    channels = [weight] if axis is None else list(weight.movedim(axis, 0))
    for channel, scale in zip(channels, got.scale.view(-1).tolist(), strict=True):
        full, values = float(encoding_of_range(grid, *channel_range(channel, None)).scale), channel.numpy()

        def cost(ratio: float, values: np.ndarray = values, full: float = full) -> float:
            steps = np.round(values / (full * ratio))
            q = np.clip(steps, grid.qmin, grid.qmax)
            return float((np.where(q == steps, 1, CLIPPED) * (q * full * ratio - values) ** 2).sum())

        best = min(map(cost, WEIGHT_RATIOS.tolist()))
        assert cost(scale / full) == pytest.approx(best, rel=1e-5)
    assert got.axis == axis
    assert got.scale.shape == (() if axis is None else (weight.shape[axis],))


@pytest.mark.parametrize("method", ["minmax", "sqnr"])
@pytest.mark.parametrize("axis", [None, 0])
def test_weights_that_are_zero_constant_or_missing(method: str, axis: int | None) -> None:
    weight = torch.stack([torch.zeros(4), torch.full((4,), 0.5), torch.full((4,), -0.5)])
    got = weight_encoding(weight, INT8, axis, method)
    torch.testing.assert_close(got.dequantize(got.quantize(weight)), weight, rtol=1e-2, atol=0)
    empty = weight_encoding(torch.zeros(3, 0), INT8, axis, method)
    assert empty.scale.shape == got.scale.shape
    assert bool((empty.scale > 0).all())


def test_weights_at_sixteen_bits_keep_their_values() -> None:
    weight = torch.randn(4, 100)
    got = weight_encoding(weight, Grid(16, True, True), 0, "sqnr")
    torch.testing.assert_close(got.dequantize(got.quantize(weight)), weight, rtol=0, atol=1e-4)


def test_entropy_cuts_off_what_is_far_from_the_rest_and_keeps_a_plain_range() -> None:
    torch.manual_seed(0)
    far = torch.cat([torch.randn(100_000).relu(), torch.tensor([60.0])])
    assert float(found(far, "entropy").high) < 15
    even = torch.rand(100_000) * 4 - 1
    assert float(found(even, "entropy").high) == pytest.approx(3, abs=0.15)
    assert float(found(even, "entropy").low) == pytest.approx(-1, abs=0.15)


def test_entropy_keeps_the_bound_that_many_values_have() -> None:
    torch.manual_seed(0)
    clipped = (torch.randn(100_000) * 4).clamp(0, 6)
    assert float(found(clipped, "entropy").high) == pytest.approx(6, abs=0.1)


def test_entropy_of_a_handful_of_values_and_of_zeros() -> None:
    for values in (torch.zeros(50), torch.tensor([1.5]), torch.tensor([-2.0, 0.0, 2.0])):
        encoding = found(values, "entropy")
        assert bool(torch.isfinite(encoding.scale)) and float(encoding.scale) > 0
