"""Graphs have the same hash exactly where they compute the same, in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from qatflow.graph.capture import capture
from qatflow.graph.fingerprint import graph_fingerprint, tensor_fingerprint


def small(
    slope: float = 0.1, bias: bool = True, seed: int = 0, kernel: int = 3, padding: int = 1, norm: bool = False
) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, kernel, padding=padding, bias=bias), nn.LeakyReLU(slope)]
    return nn.Sequential(*layers, *([nn.BatchNorm2d(4)] if norm else []), nn.Flatten(2)).eval()


def of(model: nn.Module, size: int = 8) -> str:
    return graph_fingerprint(capture(model, (torch.zeros(2, 2, size, size),)))


def changed_weight() -> nn.Module:
    model = small()
    with torch.no_grad():
        model[0].weight[1, 0, 2, 2] += 1e-6
    return model


class Shifted(nn.Module):
    """Adds a constant that is no parameter."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.inner, self.by = small(), torch.full((1,), by)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.by


class Outputs(nn.Module):
    def __init__(self, named: bool) -> None:
        super().__init__()
        self.inner, self.named = small(), named

    def forward(self, x: Tensor) -> object:
        y = self.inner(x)
        return {"out": y} if self.named else (y,)


def test_the_same_model_captured_again_has_the_same_hash() -> None:
    assert of(small()) == of(small()) == of(small().to(memory_format=torch.channels_last))


@pytest.mark.parametrize(
    "other",
    [
        lambda: small(slope=0.2),
        lambda: small(bias=False),
        lambda: small(seed=1),
        lambda: small(padding=0),
        lambda: small(norm=True),
        changed_weight,
        lambda: nn.Sequential(*small(), nn.ReLU()),
    ],
)
def test_another_function_has_another_hash(other: Callable[[], nn.Module]) -> None:
    assert of(small()) != of(other())


def test_constants_and_the_form_of_outputs_count() -> None:
    assert of(Shifted(1.0)) != of(Shifted(1.5))
    assert of(Outputs(named=True)) != of(Outputs(named=False))


def test_the_hash_is_the_same_in_every_process() -> None:
    code = "from tests.graph.test_fingerprint import *; print(of(small()), of(Shifted(1.0)), of(Outputs(named=True)))"
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1]
    assert texts[0].split() == [of(small()), of(Shifted(1.0)), of(Outputs(named=True))]


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.complex64]


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 2**30))
def test_tensors_count_by_type_shape_and_values(dtype: torch.dtype, shape: list[int], seed: int) -> None:
    value = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 9).to(dtype)
    known = tensor_fingerprint(value)
    assert known == tensor_fingerprint(value.clone())
    assert known == tensor_fingerprint(value.transpose(0, -1).contiguous().transpose(0, -1) if shape else value)
    assert known != tensor_fingerprint(value[None])
    if value.numel():
        other = value.clone()
        other.view(-1)[-1] = value.view(-1)[-1].logical_not().to(dtype)
        assert known != tensor_fingerprint(other)


def test_types_count_even_where_the_bytes_are_the_same() -> None:
    assert tensor_fingerprint(torch.zeros(4)) != tensor_fingerprint(torch.zeros(4, dtype=torch.int32))
