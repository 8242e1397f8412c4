"""Integers found by linear algebra: within their bounds, hard to improve, and close to the best there are."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qatflow.quant.integer_rows import Lattice, descend, successive


def lattice(seed: int, groups: int = 1, rows: int = 4, size: int = 6, reach: float = 2.0) -> tuple[Lattice, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 60, size, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(groups, size, size, generator=generator, dtype=torch.float64)
    gram = x.mT @ x / 60 + 0.01 * torch.eye(size, dtype=torch.float64)
    real = torch.randn(groups, rows, size, generator=generator, dtype=torch.float64)
    bound = torch.full((), reach, dtype=torch.float64)
    return Lattice(gram, real @ gram, -bound, bound), real


@given(seed=st.integers(0, 10_000), size=st.integers(1, 150), groups=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_descending_never_makes_a_row_worse_and_keeps_the_bounds(seed: int, size: int, groups: int) -> None:
    problem, real = lattice(seed, groups, 3, size)
    start = problem.nearest(real)
    before = start.clone()
    for first in (start, successive(problem)):
        found = descend(problem, first)
        assert bool((problem.error(found) <= problem.error(first) + 1e-9).all())
        assert float(found.abs().max()) <= 2
        assert torch.equal(found, found.round())
    assert torch.equal(start, before)


@pytest.mark.parametrize("seed", range(8))
def test_no_single_step_improves_what_descending_ends_with(seed: int) -> None:
    problem, real = lattice(seed, rows=5, size=12)
    found = descend(problem, problem.nearest(real))
    error = problem.error(found)
    for column, step in itertools.product(range(12), (-1.0, 1.0)):
        other = found.clone()
        other[:, :, column] = (other[:, :, column] + step).clamp(-2, 2)
        assert bool((problem.error(other) >= error - 1e-3 * error.abs()).all())


def test_the_better_of_both_starts_is_close_to_the_best_of_all() -> None:
    hits, shares = 0, []
    every = torch.tensor(list(itertools.product(range(-2, 3), repeat=4)), dtype=torch.float64)
    for seed in range(30):
        problem, real = lattice(seed, rows=1, size=4)
        constant = float(((real @ problem.gram) * real).sum())
        best = float(problem.error(every[None]).min()) + constant
        worst = float(problem.error(problem.nearest(real))) + constant
        starts = (problem.nearest(real), successive(problem))
        found = min(float(problem.error(descend(problem, one))) for one in starts) + constant
        hits += found <= best * (1 + 1e-6) + 1e-9
        shares.append((found - best) / max(worst, 1e-9))
        assert found >= best - 1e-9
    assert hits >= 18
    assert sum(shares) / len(shares) < 0.1


def test_bounds_hold_for_every_weight_by_itself() -> None:
    problem, real = lattice(3, groups=2)
    low = real.floor()
    adjacent = Lattice(problem.gram, problem.wanted, low, low + 1)
    for start in (adjacent.nearest(real), successive(adjacent)):
        found = descend(adjacent, start)
        assert bool(((found == low) | (found == low + 1)).all())


def test_groups_do_not_know_of_one_another() -> None:
    problem, _ = lattice(5, groups=3)
    both = descend(problem, successive(problem))
    alone = Lattice(problem.gram[1:2], problem.wanted[1:2], problem.low, problem.high)
    assert torch.equal(both[1:2], descend(alone, successive(alone)))
