"""What a grid clips, how many levels are used and why, by values whose answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qatflow.quant.grid import Encoding, Grid, encoding_of_range
from qatflow.quant.grid_use import GridUse, GridUseObserver, what_helps

BYTE = Grid(8, signed=False, symmetric=False)


def encoding(low: float, high: float, grid: Grid = BYTE) -> Encoding:
    return encoding_of_range(grid, torch.tensor(low), torch.tensor(high))


def seen(value: Tensor, found: Encoding, channels: int = 1) -> GridUse:
    observer = GridUseObserver(found, channels)
    for part in value.split(max(1, len(value) // 3)):
        observer.see(part)
    return observer.use


@given(st.integers(0, 2**31), st.floats(0.2, 3.0), st.sampled_from([3, 8]))
def test_counts_are_those_of_numpy(seed: int, high: float, bits: int) -> None:
    grid = Grid(bits, signed=False, symmetric=False)
    found = encoding(-0.5, high, grid)
    value = np.random.default_rng(seed).normal(size=(30, 40))
    use = seen(torch.from_numpy(value), found)
    scale, zero = float(found.scale), float(found.zero_point)
    codes = np.clip(np.rint(value / scale) + zero, 0, 2**bits - 1)
    error = (codes - zero) * scale - value
    outside = np.abs(error) > scale
    assert use.levels == 2**bits
    assert use.clipped == pytest.approx(outside.mean())
    assert use.noise == pytest.approx((error**2).sum(), rel=1e-6)
    assert use.sqnr_db == pytest.approx(10 * np.log10((value**2).sum() / (error**2).sum()), rel=1e-6)
    assert use.clipping == pytest.approx((error[outside] ** 2).sum() / (error**2).sum(), abs=1e-9)
    ordered = np.sort(codes.flatten())
    middle = ordered[6:1194]
    assert use.used == pytest.approx(middle[-1] - middle[0] + 1, abs=2)


def test_a_single_large_value_leaves_few_levels_to_the_rest() -> None:
    value = torch.rand(400, 8)
    value[0, 0] = 100.0
    use = seen(value, encoding(0.0, 100.0))
    assert use.used <= 4
    assert use.why == f"outliers: 99 % of the values share {use.used} of 256 levels"
    assert use.clipped == 0


def test_a_large_channel_is_told_from_outliers() -> None:
    value = torch.rand(200, 512)
    value[:, 3] *= 50
    use = seen(value, encoding(0.0, 50.0))
    assert use.imbalance == pytest.approx(50, rel=0.1)
    assert use.why.startswith("channel imbalance: 99 % of the values share")
    assert seen(value, encoding(0.0, 50.0), channels=0).why.startswith("outliers")


def test_values_outside_are_clipped_and_plain_rounding_has_no_name() -> None:
    value = torch.linspace(0, 1, 4000).reshape(500, 8)
    assert seen(value, encoding(0.0, 0.8)).why.startswith("clipped: 20 %")
    assert seen(value, encoding(0.0, 1.0)).why == ""
    assert seen(value, encoding(0.0, 1.0, Grid(4, signed=False, symmetric=False))).why == "few levels: 16 in all"


def test_values_off_the_edge_by_less_than_a_step_are_not_outside() -> None:
    found = encoding(0.0, 255.0)
    assert seen(torch.tensor([[-0.7, 255.9, 10.0]]), found).clipped == 0
    assert seen(torch.tensor([[-1.1, 255.9, 10.0]]), found).clipped == pytest.approx(1 / 3)


def test_channels_with_scales_of_their_own_are_never_unequal() -> None:
    weight = torch.rand(4, 100) * torch.tensor([[1.0], [1.0], [1.0], [100.0]])
    grid = Grid(8, signed=True, symmetric=True)
    own = encoding_of_range(grid, -weight.amax(1), weight.amax(1), axis=0)
    one = encoding_of_range(grid, -weight.max(), weight.max())
    whole, each = GridUseObserver(one, 0), GridUseObserver(own, 0)
    for observer in (whole, each):
        observer.see(weight)
    assert whole.use.imbalance > 50
    assert each.use.imbalance == 1


@pytest.mark.parametrize(
    ("value", "grid", "weight", "per_tensor", "expected"),
    [
        (torch.rand(400, 8), encoding(0.0, 0.5), False, True, "calibrate, MORE"),
        (torch.rand(400, 8), encoding(0.0, 0.5), True, True, "search_scales, MORE"),
        (torch.rand(400, 8), encoding(0.0, 90.0), False, True, "MORE"),
        (torch.rand(400, 8), encoding(0.0, 1.0), False, True, ""),
        (torch.rand(400, 8), encoding(0.0, 1.0, Grid(4, signed=False, symmetric=False)), True, False, "adaround, MORE"),
    ],
)
def test_what_helps_is_by_cause(value: Tensor, grid: Encoding, weight: bool, per_tensor: bool, expected: str) -> None:
    use = seen(value, grid)
    assert what_helps(use, weight=weight, per_tensor=per_tensor, better="MORE") == expected
