"""Which tensors get a better precision for the most noise saved within a budget: a knapsack with shared charges.

Relieving a tensor makes the layers that read or give it run above the recipe's bits, and a layer costs the same
whichever of its tensors did that. So charges are binary, gains are had once all charges of a tensor are paid, and the
best choice is a mixed-integer linear program (HiGHS, by `scipy.optimize.milp`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix

GAP = 1e-3
"""Of the noise saved: nearer to the best is not looked for."""
SECONDS = 20.0


@dataclass(frozen=True)
class Item:
    """A tensor that can be relieved.

    Attributes:
        tensor: its name in the placement.
        gain: noise that is saved then, relative to the signal.
        charges: what must be paid for it; keys of the costs.
    """

    tensor: str
    gain: float
    charges: frozenset[str]


def assign(items: Sequence[Item], costs: Mapping[str, float], budget: float) -> list[str]:
    """Return the tensors to relieve within a budget, in the order of `items`; those that save nothing stay.

    Args:
        items: all that can be relieved.
        costs: of every charge, none negative.
        budget: for all charges that are paid together; infinite pays for all.
    """
    free = [item.tensor for item in items if item.gain > 0 and not any(costs[one] > 0 for one in item.charges)]
    priced = [item for item in items if item.gain > 0 and item.tensor not in free]
    chosen = set(free) | (_solved(priced, costs, budget) if priced else set())
    return [item.tensor for item in items if item.tensor in chosen]


def _solved(items: Sequence[Item], costs: Mapping[str, float], budget: float) -> set[str]:
    charges = sorted({one for item in items for one in item.charges if costs[one] > 0})
    place = {name: len(items) + position for position, name in enumerate(charges)}
    pairs = [(row, place[one]) for row, item in enumerate(items) for one in sorted(item.charges) if one in place]
    size = len(items) + len(charges)
    rows = lil_matrix((len(pairs) + 1, size))
    for row, (item, charge) in enumerate(pairs):  # a gain is had only where its charge is paid
        rows[row, item], rows[row, charge] = 1, -1
    for name, column in place.items():
        rows[len(pairs), column] = costs[name]
    top = np.append(np.zeros(len(pairs)), budget)
    most = (
        max(item.gain for item in items if np.isfinite(item.gain)) if any(np.isfinite(i.gain) for i in items) else 1.0
    )
    gains = np.array([min(item.gain, 1e3 * most) for item in items]) / most
    found = milp(
        np.concatenate([-gains, np.zeros(len(charges))]),
        integrality=np.concatenate([np.zeros(len(items)), np.ones(len(charges))]),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(rows.tocsr(), ub=top),
        options={"mip_rel_gap": GAP, "time_limit": SECONDS},
    )
    if found.x is None:
        return set()
    return {item.tensor for item, value in zip(items, found.x, strict=False) if value > 0.5}
