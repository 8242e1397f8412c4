"""Weights that jump to and fro: counted by the paper's rule, written out here as loops, and held where asked."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from qatflow.qat.oscillation import FROZEN, MOMENTUM, OSCILLATING, Oscillations
from qatflow.quant.design import Design
from qatflow.quant.grid import Encoding
from qatflow.quant.prepare import captured_network
from qatflow.quant.simulation import Simulation
from qatflow.recipe import Calibration, Precision

STEPS = 60


@pytest.fixture
def simulation() -> Simulation:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    x = torch.randn(32, 4)
    design = Design(precision=Precision(weights=4), calibration=Calibration(weights="minmax"))
    result = Simulation(captured_network(model, (x[:2],), design=design))
    result.calibrate([((x,), {})])
    return result


def weight_of(simulation: Simulation) -> tuple[nn.Parameter, Encoding]:
    (point,) = (one for one in simulation.placement.points if one.parameter == "0.weight")
    weight = simulation.model.get_parameter("0.weight")
    return weight, simulation.quantizer(point.tensor).encoding_of(weight)


def jump(weight: Tensor, encoding: Encoding, row: int, column: int, integer: float) -> None:
    """Put a weight on an integer of its grid; the channel's largest weight, and so its scale, stays."""
    with torch.no_grad():
        weight[row, column] = integer * encoding.scale[row]


def integer_at(weight: Tensor, encoding: Encoding, row: int, column: int) -> float:
    return float((weight.detach()[row, column] / encoding.scale[row]).round())


def small(weight: Tensor) -> tuple[int, int]:
    """Return where a weight lies that is not the largest of its channel."""
    row = 0
    return row, int(weight[row].detach().abs().argmin())


def by_the_rule(integers: list[int]) -> list[float]:
    """Return the averaged share of oscillating steps after each step (equations 9 and 10 of the paper)."""
    share, last, shares = 0.0, 0, []
    for before, now in itertools.pairwise(integers):
        change = (now > before) - (now < before)
        flipped = change != 0 and change == -last
        share = (1 - MOMENTUM) * share + MOMENTUM * flipped
        last = change or last
        shares.append(share)
    return shares


@pytest.mark.parametrize(
    "pattern",
    [[0, 1] * 40, [0, 1, 2, 1, 0, -1] * 12, [0, 1, 1, 1, 0, 0, 0] * 10, list(range(-3, 4)) + [3] * 50],
    ids=["every step", "there and back", "with rests", "one way"],
)
def test_the_share_of_steps_is_the_papers(simulation: Simulation, pattern: list[int]) -> None:
    weight, encoding = weight_of(simulation)
    row, column = small(weight)
    jump(weight, encoding, row, column, pattern[0])
    oscillations = Oscillations(simulation, freeze=False)
    count = sum(one.numel() for name, one in simulation.model.named_parameters() if name.endswith("weight"))
    for integer, share in zip(pattern[1:], by_the_rule(pattern), strict=True):
        jump(weight, encoding, row, column, integer)
        oscillations.step()
        assert oscillations.shares() == ((1 / count, 0.0) if share > OSCILLATING else (0.0, 0.0))


def test_what_oscillates_is_held_on_its_most_frequent_integer(simulation: Simulation) -> None:
    weight, encoding = weight_of(simulation)
    row, column = small(weight)
    jump(weight, encoding, row, column, 1)
    oscillations = Oscillations(simulation, freeze=True)
    others = weight.detach().clone()
    pattern = [1, 1, 1, 0] * (STEPS // 4)
    frozen_at = next(number for number, share in enumerate(by_the_rule([1, *pattern])) if share > FROZEN)
    for number, integer in enumerate(pattern):
        jump(weight, encoding, row, column, integer)
        oscillations.step()
        now = integer_at(weight, encoding, row, column)
        assert now == (integer if number < frozen_at else 1), number
    assert oscillations.shares()[1] > 0
    others[row, column] = weight[row, column].detach()
    assert torch.equal(others, weight.detach())  # nothing else is touched


def test_measuring_changes_nothing_and_freezing_goes_on_from_a_saved_state(simulation: Simulation) -> None:
    weight, encoding = weight_of(simulation)
    row, column = small(weight)
    measured, frozen = Oscillations(simulation, freeze=False), Oscillations(simulation, freeze=True)
    before = weight.detach().clone()
    for integer in [1, 0] * 10:
        jump(weight, encoding, row, column, integer)
        measured.step()
        assert integer_at(weight, encoding, row, column) == integer
        frozen.step()
    held = integer_at(weight, encoding, row, column)
    resumed = Oscillations(simulation, freeze=True)
    resumed.load_state(copy.deepcopy(frozen.state()))
    assert resumed.shares() == frozen.shares()
    jump(weight, encoding, row, column, held + 3)
    resumed.step()
    assert integer_at(weight, encoding, row, column) == held
    before[row, column] = weight[row, column].detach()
    assert torch.equal(before, weight.detach())
