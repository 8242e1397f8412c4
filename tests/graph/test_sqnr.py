"""Signal and noise of the parts of an output, by hand."""

import math

import numpy as np
import pytest
import torch

from qatflow.graph.outputs import OutputPart
from qatflow.graph.padding import Padding
from qatflow.graph.sqnr import OutputSqnr, decibel, lowest, lowest_of_samples, part_powers, powers

BOXES, SCORES = OutputPart("boxes", 0, (slice(None), slice(0, 2))), OutputPart("scores", 0, (slice(None), slice(2, 5)))


def test_ratios_by_hand_over_two_batches() -> None:
    torch.manual_seed(0)
    wanted = torch.randn(6, 5) * torch.tensor([300.0, 300, 1, 1, 1])
    got = wanted + torch.randn(6, 5) * torch.tensor([1.0, 1, 0.5, 0.5, 0.5])
    sqnr = OutputSqnr([BOXES, SCORES])
    for few in (slice(0, 4), slice(4, 6)):
        sqnr.add(part_powers(sqnr.parts, [wanted[few]], [got[few]]))
    a, b = wanted.double().numpy(), got.double().numpy()

    def ratio(columns: slice) -> float:
        return 10 * math.log10(np.square(a[:, columns]).sum() / np.square(a[:, columns] - b[:, columns]).sum())

    assert dict(sqnr.ratios()) == pytest.approx({"boxes": ratio(slice(0, 2)), "scores": ratio(slice(2, 5))})
    assert sqnr.lowest == pytest.approx(ratio(slice(2, 5)))
    assert sqnr.lowest < 10 < ratio(slice(0, 5))


def test_of_a_sample_the_lowest_part_counts() -> None:
    wanted = torch.tensor([[10.0, 0, 1, 0, 0], [1, 0, 10, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    off = torch.tensor([[1.0, 0, 1, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [math.nan, 0, 0, 0, 0]])
    got = lowest_of_samples(part_powers([BOXES, SCORES], [wanted], [wanted + off]), 5)
    assert got.dtype == torch.float64
    assert got.tolist()[:4] == pytest.approx([0, 0, 100, -100])
    assert math.isnan(got[4])
    infinite = part_powers([BOXES], [wanted], [wanted + off.nan_to_num(math.inf)])
    assert math.isnan(lowest_of_samples(infinite, 5)[4])


def test_outputs_without_one_entry_a_sample_are_no_samples() -> None:
    number = part_powers([OutputPart("loss", 0)], [torch.tensor(2.0)], [torch.tensor(1.0)])
    assert [one.tolist() for one in number[0]] == [[4.0], [1.0]]
    assert bool(lowest_of_samples(number, 3).isnan().all())


def test_the_same_infinity_is_neither_signal_nor_noise() -> None:
    wanted, got = torch.tensor([[3.0, -math.inf]]), torch.tensor([[4.0, -math.inf]])
    assert [one.tolist() for one in powers(wanted, got)] == [[9.0], [1.0]]
    for other in (5.0, math.inf, math.nan):
        assert not math.isfinite(float(powers(wanted, torch.tensor([[4.0, other]]))[1]))


def test_padded_positions_do_not_count_whatever_is_there() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    wanted = torch.arange(12.0).reshape(2, 3, 2)
    got = wanted + 1
    got[~mask] = math.nan
    whole, last = OutputPart("tokens", 0), OutputPart("second", 0, (slice(None), slice(None), slice(1, 2)))
    found = part_powers([whole, last], [wanted], [got], Padding(mask, (1,)))
    assert [one.tolist() for one in found[0]] == [[0 + 1 + 4 + 9, 36 + 49], [4, 2]]
    assert [one.tolist() for one in found[1]] == [[1 + 9, 49], [2, 1]]
    turned = part_powers([whole], [wanted.mT], [got.mT], Padding(mask, (2,)))
    assert [one.tolist() for one in turned[0]] == [one.tolist() for one in found[0]]
    pooled = part_powers([whole], [wanted.mean(1)], [wanted.mean(1) + 1], Padding(mask, (None,)))
    assert pooled[0][1].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("signal", "noise", "ratio"),
    [(100, 1, 20), (1, 0, 300), (0, 0, 300), (0, 1e-30, -300), (1, math.inf, math.nan), (math.nan, 1, math.nan)],
)
def test_decibel(signal: float, noise: float, ratio: float) -> None:
    assert decibel(signal, noise) == pytest.approx(ratio, nan_ok=True)


def test_the_lowest_is_nan_where_one_is_or_where_there_is_none() -> None:
    assert lowest([3.0, 1.0, 2.0]) == 1.0
    assert math.isnan(lowest([3.0, math.nan]))
    assert math.isnan(lowest([]))
