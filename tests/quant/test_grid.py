"""Encodings of ranges: AIMET's rule by hand, AIMET's own file, and what holds for every grid."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qatflow.quant.grid import TINY_SCALE, Encoding, Grid, channel_range, encoding_of_range, sqnr_db
from tests.export.golden_model import golden_encodings, golden_weights

INT8 = Grid(8, signed=True, symmetric=True)
UINT8 = Grid(8, signed=False, symmetric=False)

bounds = st.floats(-1e6, 1e6, width=32)
grids = st.builds(
    lambda bits, signed, narrow: Grid(bits, signed=signed, symmetric=signed, narrow=signed and narrow),
    st.integers(2, 16),
    st.booleans(),
    st.booleans(),
)


def encoding(grid: Grid, low: float, high: float) -> Encoding:
    return encoding_of_range(grid, torch.tensor(low), torch.tensor(high))


@pytest.mark.parametrize(
    ("grid", "qmin", "qmax"),
    [
        (INT8, -128, 127),
        (Grid(8, True, True, narrow=True), -127, 127),
        (UINT8, 0, 255),
        (Grid(2, True, True), -2, 1),
        (Grid(2, True, True, narrow=True), -1, 1),
        (Grid(4, False, False), 0, 15),
        (Grid(16, False, False), 0, 65535),
        (Grid(16, True, False), -32768, 32767),
    ],
)
def test_integers_of_a_grid(grid: Grid, qmin: int, qmax: int) -> None:
    assert (grid.qmin, grid.qmax) == (qmin, qmax)


@pytest.mark.parametrize("narrow", [False, True])
def test_a_symmetric_or_narrow_grid_is_signed(narrow: bool) -> None:
    with pytest.raises(ValueError, match="is signed"):
        Grid(8, signed=False, symmetric=not narrow, narrow=narrow)


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize(
    ("low", "high"), [(-1.28, 0.5), (-0.3, 2.54), (0.0, 3.0), (-3.0, 0.0), (0.7, 1.1), (-2.0, -1.0)]
)
def test_symmetric_range_by_hand(bits: int, low: float, high: float) -> None:
    got = encoding(Grid(bits, True, True), low, high)
    wanted = max(max(high, 0) / (2 ** (bits - 1) - 1), max(-low, 0) / 2 ** (bits - 1))
    assert float(got.scale) == pytest.approx(wanted, rel=1e-6)
    assert float(got.zero_point) == 0
    assert float(got.low) <= low * (1 - 1e-6) + 1e-6
    assert float(got.high) >= high * (1 - 1e-6) - 1e-6


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("low", "high"), [(-1.28, 0.51), (0.0, 3.0), (-3.0, 0.0), (0.7, 1.1), (-2.0, -1.0), (-5.0, 5.0)]
)
def test_asymmetric_range_by_hand(bits: int, signed: bool, low: float, high: float) -> None:
    got = encoding(Grid(bits, signed, False), low, high)
    low, high = np.float64(min(low, 0)), np.float64(max(high, 0))
    scale = (high - low) / (2**bits - 1)
    qmin = -(2 ** (bits - 1)) if signed else 0
    assert float(got.scale) == pytest.approx(scale, rel=1e-6)
    zero_point = qmin - np.round(low / scale)
    tie = abs((low / scale) % 1 - 0.5) < 1e-2
    assert abs(float(got.zero_point) - zero_point) <= int(tie)


def test_a_range_of_nothing_has_a_grid_all_the_same() -> None:
    for grid in (INT8, UINT8):
        got = encoding(grid, 0.0, 0.0)
        assert float(got.scale) == pytest.approx(TINY_SCALE)
        assert float(got.quantize(torch.tensor(0.0)) - got.zero_point) == 0


def test_weights_have_the_scales_of_aimets_file() -> None:
    entries = {entry["name"]: entry for entry in golden_encodings()["param_encodings"]}
    weights = {name: value for name, value in golden_weights().items() if name.endswith("weight")}
    assert entries.keys() == weights.keys()
    for name, weight in weights.items():
        got = encoding_of_range(INT8, *channel_range(weight, 0), 0)
        assert got.scale.tolist() == pytest.approx(entries[name]["scale"], rel=1e-6)
        snapped = got.dequantize(got.quantize(weight))
        torch.testing.assert_close(snapped, weight, rtol=1e-5, atol=1e-8)
        wrong = weight.abs().amax(tuple(range(1, weight.dim()))) / 127
        assert wrong.tolist() != pytest.approx(entries[name]["scale"], rel=1e-3)


def test_activations_have_the_zero_points_of_aimets_file() -> None:
    for entry in golden_encodings()["activation_encodings"]:
        (scale,), (offset,) = entry["scale"], entry["offset"]
        got = encoding(UINT8, offset * scale, (offset + 255) * scale)
        assert float(got.scale) == pytest.approx(scale, rel=1e-6)
        assert float(got.zero_point) == -offset


@given(grids, bounds, bounds)
def test_zero_is_on_the_grid(grid: Grid, one: float, other: float) -> None:
    got = encoding(grid, min(one, other), max(one, other))
    assert grid.qmin <= float(got.zero_point) <= grid.qmax
    assert float(got.zero_point) == round(float(got.zero_point))
    assert float(got.dequantize(got.quantize(torch.tensor(0.0)))) == 0
    assert float(got.low) <= 0 <= float(got.high)


@given(grids, bounds, bounds, st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_inside_the_range_the_error_is_half_a_step_at_most(
    grid: Grid, one: float, other: float, shares: list[float]
) -> None:
    low, high = min(one, other, 0.0), max(one, other, 0.0)
    got = encoding(grid, low, high)
    x = (low + (high - low) * torch.tensor(shares, dtype=torch.float64)).float().clamp(low, high)
    error = (got.dequantize(got.quantize(x)).double() - x.double()).abs()
    rounding = 4 * torch.finfo(torch.float32).eps * max(-low, high)
    assert float(error.max()) <= float(got.scale) / 2 + rounding


@given(grids, bounds, bounds, st.lists(st.floats(-2e6, 2e6, width=32), min_size=1, max_size=20))
def test_values_on_the_grid_stay_where_they_are(grid: Grid, one: float, other: float, values: list[float]) -> None:
    got = encoding(grid, min(one, other), max(one, other))
    once = got.dequantize(got.quantize(torch.tensor(values)))
    assert torch.equal(got.dequantize(got.quantize(once)), once)
    assert float(got.quantize(once).min()) >= grid.qmin
    assert float(got.quantize(once).max()) <= grid.qmax


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
def test_channel_range_by_hand(axis: int | None) -> None:
    x = torch.randn(3, 4, 5)
    low, high = channel_range(x, axis)
    others = tuple(a for a in range(3) if axis is None or a != axis % 3)
    assert np.array_equal(low.numpy(), x.numpy().min(others))
    assert np.array_equal(high.numpy(), x.numpy().max(others))


def test_channel_range_of_a_vector_and_of_nothing() -> None:
    x = torch.tensor([3.0, -1.0])
    assert [bound.tolist() for bound in channel_range(x, 0)] == [[3.0, -1.0], [3.0, -1.0]]
    assert [bound.tolist() for bound in channel_range(torch.zeros(0, 2), 1)] == [[0.0, 0.0], [0.0, 0.0]]
    assert [float(bound) for bound in channel_range(torch.zeros(0), None)] == [0.0, 0.0]


def test_sqnr_by_hand() -> None:
    signal, noisy = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5])
    assert sqnr_db(signal, noisy) == pytest.approx(10 * math.log10(25 / 0.25))
    assert sqnr_db(signal, signal) == math.inf
