"""The choice of tensors within a budget, beside all choices that there are."""

from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatflow.quant.assignment import GAP, Item, assign

CHARGES = ["a", "b", "c", "d"]
ITEMS = st.lists(
    st.tuples(st.floats(0, 100), st.frozensets(st.sampled_from(CHARGES), max_size=3)), min_size=1, max_size=7
)
COSTS = st.fixed_dictionaries({name: st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]) for name in CHARGES})


def paid(items: list[Item], costs: dict[str, float]) -> float:
    return sum(costs[one] for one in {charge for item in items for charge in item.charges})


@settings(max_examples=60, deadline=None)
@given(ITEMS, COSTS, st.sampled_from([0.0, 0.2, 0.6, 1.1, 5.0]))
def test_no_other_choice_within_the_budget_saves_more(
    stated: list[tuple[float, frozenset[str]]], costs: dict[str, float], budget: float
) -> None:
    items = [Item(f"t{place}", gain, charges) for place, (gain, charges) in enumerate(stated)]
    chosen = [item for item in items if item.tensor in assign(items, costs, budget)]
    assert paid(chosen, costs) <= budget + 1e-9
    every = chain.from_iterable(combinations(items, size) for size in range(len(items) + 1))
    best = max(sum(item.gain for item in some) for some in every if paid(list(some), costs) <= budget + 1e-9)
    assert sum(item.gain for item in chosen) >= best * (1 - 2 * GAP) - 1e-6


def test_what_costs_nothing_is_always_chosen_and_what_saves_nothing_never() -> None:
    items = [Item("free", 1e-9, frozenset()), Item("useless", 0.0, frozenset()), Item("dear", 1.0, frozenset("a"))]
    assert assign(items, {"a": 1.0}, 0.5) == ["free"]


@pytest.mark.parametrize("gain", [float("inf"), 1e30])
def test_a_tensor_that_breaks_the_model_is_chosen_first(gain: float) -> None:
    items = [Item("some", 5.0, frozenset("a")), Item("broken", gain, frozenset("b"))]
    assert assign(items, {"a": 1.0, "b": 1.0}, 1.0) == ["broken"]
