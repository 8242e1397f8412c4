"""A histogram is the same however the samples were cut into batches, and counts every value where it lies."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qatflow.quant import histogram
from qatflow.quant.histogram import BINS, Histogram

numbers = st.floats(-1e9, 1e9, width=32).filter(lambda value: value == 0 or abs(value) > 1e-12)
samples = st.lists(numbers, min_size=1, max_size=60)


def of(*batches: torch.Tensor) -> Histogram:
    result = Histogram()
    for batch in batches:
        result.update(batch)
    return result


def counted(result: Histogram) -> list[tuple[float, float]]:
    centres, counts = result.bins()
    return [(float(c), float(n)) for c, n in zip(centres, counts, strict=True) if n > 0]


@given(samples, st.data())
def test_cut_and_order_of_the_batches_do_not_matter(values: list[float], data: st.DataObject) -> None:
    whole = of(torch.tensor(values))
    shuffled = data.draw(st.permutations(values))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(values)), max_size=6)))
    parts = [torch.tensor(part) for part in np.split(np.array(shuffled, dtype=np.float32), cuts)]
    cut = of(*parts)
    assert counted(cut) == counted(whole)
    assert (cut.low, cut.high, cut.bin_width) == (whole.low, whole.high, whole.bin_width)


@given(samples)
def test_every_value_is_counted_and_the_extremes_are_exact(values: list[float]) -> None:
    result = of(torch.tensor(values))
    centres, counts = result.bins()
    assert float(counts.sum()) == len(values)
    assert (result.low, result.high) == (min(values), max(values))
    assert len(centres) <= BINS
    assert bool((centres[1:] >= centres[:-1]).all())
    assert float(counts[0]) > 0
    assert float(counts[-1]) > 0


@given(samples)
def test_counts_are_numpys_on_the_same_edges(values: list[float]) -> None:
    result = of(torch.tensor(values))
    width = result.bin_width
    first, last = math.floor(min(values) / width), math.floor(max(values) / width)
    edges = np.arange(first, last + 2, dtype=np.float64) * width
    wanted, _ = np.histogram(np.array(values, dtype=np.float64), edges)
    inner = np.array(values, dtype=np.float64) == edges[-1]
    assert not inner.any()
    assert result.bins()[1].tolist() == wanted.tolist()


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(-100, 100), st.floats(0.01, 1000))
def test_at_least_half_of_the_bins_are_in_use_for_spread_values(seed: int, shift: float, spread: float) -> None:
    values = torch.rand(2000, generator=torch.Generator().manual_seed(seed)) * spread + shift
    centres, _ = of(values, torch.tensor([shift, shift + spread])).bins()
    assert BINS // 2 - 2 <= len(centres) <= BINS


def test_a_first_batch_of_zeros_is_no_obstacle() -> None:
    values = torch.randn(100) * 1e6
    result = of(torch.zeros(50), values)
    assert counted(result) == counted(of(torch.cat([values, torch.zeros(50)])))


def test_more_values_in_a_bin_than_float32_can_count() -> None:
    count = 2**24 + 2**18
    result = of(torch.zeros(1).expand(count))
    assert float(result.bins()[1].sum()) == count


def test_values_far_from_zero_with_a_narrow_range() -> None:
    values = torch.linspace(1000.0, 1000.01, 50)
    result = of(values)
    assert float(result.bins()[1].sum()) == 50
    assert len(counted(result)) == len(set(values.tolist()))


def test_every_shape_and_type_of_float() -> None:
    result = of(torch.ones(2, 3, 4), torch.zeros(()), torch.full((2,), -1.0, dtype=torch.float16), torch.zeros(0))
    assert (result.low, result.high, float(result.bins()[1].sum())) == (-1.0, 1.0, 27.0)


def test_nothing_seen() -> None:
    result = of(torch.zeros(0))
    with pytest.raises(ValueError, match="nothing was calibrated"):
        result.bins()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        of(torch.tensor([1.0, bad]))


def test_large_samples_are_counted_by_evenly_spread_values(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 32, 32)
    x[..., 0] += 8  # a column that a stride of the image's width would see always or never
    x[0, 0, 5, 7] = 40.0
    exact = of(x)
    monkeypatch.setattr(histogram, "PER_SAMPLE", 300)
    spread, parts = of(x), of(*x.split(1))
    assert (spread.low, spread.high) == (exact.low, exact.high)
    assert torch.equal(spread.bins()[1], parts.bins()[1])
    assert abs(float(spread.bins()[1].sum()) / x.numel() - 1) < 0.05
    centres, counts = spread.bins()
    shifted = float(counts[centres > 5].sum() / counts.sum())
    assert shifted == pytest.approx(1 / 32, rel=0.3)
    assert float(counts[-1]) >= 1
