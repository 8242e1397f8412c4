"""Moments say what the error of any rounding is, whatever the samples were."""

import pytest
import torch
from torch import Tensor

from qatflow.quant.moments import Collector, Moments


def problem(offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 3, 5, generator=generator)
    x = torch.randn(2, 40, 6, 5, generator=generator) + offset
    return rows, x, x + 0.1 * torch.randn(x.shape, generator=generator) + 0.05


def collected(rows: Tensor, x: Tensor, y: Tensor, sizes: list[int]) -> Moments:
    collector = Collector(rows)
    for a, b in zip(x.split(sizes, 1), y.split(sizes, 1), strict=True):
        collector.add(a, b)
    return collector.moments()


def direct(rows: Tensor, x: Tensor, y: Tensor, rounded: Tensor, free_bias: bool) -> Tensor:
    wanted, got = ((one.double().flatten(1, 2) @ weight.double().mT) for one, weight in ((x, rows), (y, rounded)))
    error = wanted - got
    return (error - error.mean(1, keepdim=True) if free_bias else error).square().mean(1)


@pytest.mark.parametrize("free_bias", [True, False])
@pytest.mark.parametrize("sizes", [[40], [1, 39], [13, 13, 14]])
def test_the_error_is_the_one_computed_directly(free_bias: bool, sizes: list[int]) -> None:
    rows, x, y = problem()
    rounded = (rows * 3).round() / 3
    moments = collected(rows, x, y, sizes)
    assert moments.count == 240
    found = (moments if free_bias else moments.about_zero()).error(rounded)
    torch.testing.assert_close(found, direct(rows, x, y, rounded, free_bias), rtol=1e-4, atol=1e-6)


def test_a_large_mean_does_not_hide_a_small_variance() -> None:
    rows, x, y = problem(offset=1e4)
    rounded = (rows * 3).round() / 3
    found = collected(rows, x, y, [8] * 5).error(rounded)
    torch.testing.assert_close(found, direct(rows, x, y, rounded, True), rtol=1e-2, atol=1e-4)


def test_without_a_sample_there_are_no_moments() -> None:
    with pytest.raises(ValueError, match="no calibration sample"):
        Collector(torch.ones(1, 2, 3)).moments()
