"""Rounding in pieces and in place is rounding."""

import pytest
import torch
from torch import Tensor

from qatflow.quant import rounding
from qatflow.quant.grid import along
from qatflow.quant.rounding import round_to_grid


def plain(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, axis: int | None) -> Tensor:
    s, a, b = (along(one, x, axis) for one in (scale, low, high))
    return (x / s).round().clamp(a, b) * s


FORMS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "with gaps": lambda x: x[:, :, ::2],
    "repeated": lambda x: x[:1].expand(3, -1, -1, -1),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_every_memory_format_gives_the_plain_formula(
    form: str, axis: int | None, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "PIECE", 64)
    x = FORMS[form](torch.randn(5, 6, 8, 8) * 3)
    if form == "repeated" and overwrite:
        pytest.skip("memory that stands for several values cannot be overwritten")
    shape = () if axis is None else (x.shape[axis],)
    scale, low = torch.rand(shape) + 0.1, -torch.randint(3, 9, shape).float()
    wanted = plain(x.clone(), scale, low, low + 12, axis)
    got = round_to_grid(x, scale, low, low + 12, axis, overwrite=overwrite)
    assert torch.equal(got, wanted)
    assert (got.data_ptr() == x.data_ptr()) == overwrite


def test_what_is_not_to_be_overwritten_stays() -> None:
    x = torch.randn(rounding.PIECE + 5)
    before = x.clone()
    round_to_grid(x, torch.tensor(0.1), torch.tensor(-8.0), torch.tensor(7.0))
    assert torch.equal(x, before)
